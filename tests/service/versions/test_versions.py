"""Aliases over HTTP, rolling back, and the end of versions."""

from __future__ import annotations

import asyncio

import pytest

from service.versions.schemas import AliasEntry, AliasPage, VersionPage

OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"


@pytest.fixture
def dog(publish):
    publish("dog", OLD)
    return publish("dog", NEW)


async def put(http, alias, version, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.put(f"/priors/dog/aliases/{alias}", json={"version": version}, headers=headers)


async def test_alias_is_made_shown_and_removed(http, dog, problem):
    made = await put(http, "champion", OLD)
    assert (made.status_code, made.headers["etag"]) == (201, f'"{OLD}"')
    assert made.json() == {"category": "dog", "alias": "champion", "version": OLD}
    got = await http.get("/priors/dog/aliases/champion")
    assert (got.json(), got.headers["etag"]) == (made.json(), f'"{OLD}"')
    AliasEntry.model_validate(got.json())
    page = (await http.get("/priors/dog/aliases")).json()
    assert [(item["alias"], item["version"]) for item in page["items"]] == [("active", NEW), ("champion", OLD)]
    AliasPage.model_validate(page)
    listed = (await http.get("/priors/dog/versions")).json()
    assert [item["aliases"] for item in listed["items"]] == [["active"], ["champion"]]
    VersionPage.model_validate(listed)
    assert (await http.delete("/priors/dog/aliases/champion")).status_code == 204
    problem(await http.get("/priors/dog/aliases/champion"), 404, "unknown_alias")


async def test_alias_that_exists_is_moved_only_from_where_it_is_known_to_be(http, dog, problem):
    await put(http, "champion", OLD)
    document = problem(await put(http, "champion", NEW), 428, "precondition_required")
    assert OLD in document["detail"]
    problem(await put(http, "champion", NEW, If_Match=f'"{NEW}"'), 412, "precondition_failed")
    problem(await put(http, "champion", NEW, If_Match=f'W/"{OLD}"'), 412, "precondition_failed")
    problem(await put(http, "champion", NEW, If_Match="nonsense"), 400, "bad_request")
    problem(await http.delete("/priors/dog/aliases/champion", headers={"If-Match": '"x"'}), 412, "precondition_failed")
    assert (await http.get("/priors/dog/aliases/champion")).json()["version"] == OLD
    moved = await put(http, "champion", NEW, If_Match=f'"zzz", "{OLD}"')
    assert (moved.status_code, moved.headers["etag"]) == (200, f'"{NEW}"')
    assert (await put(http, "champion", OLD, If_Match="*")).status_code == 200
    problem(await put(http, "new", OLD, If_Match="*"), 412, "precondition_failed")


async def test_moving_active_rolls_estimates_and_priors_back(http, dog, consumer, make_picture):
    async def served() -> set[str]:
        files = [("images", ("a.png", make_picture()))]
        estimate = (await http.post("/estimate", data={"category": "dog"}, files=files)).json()
        return {estimate["version"], (await http.get("/priors/dog")).json()["version"]}

    assert await served() == {NEW}
    assert (await put(http, "active", OLD, If_Match=f'"{NEW}"')).status_code == 200
    assert await served() == {OLD}


@pytest.mark.parametrize("address", ["", "/memory", "/history", "/link-map"])
async def test_alias_can_be_named_as_a_version(http, dog, address):
    await put(http, "champion", OLD)
    answer = await http.get(f"/priors/dog{address}", params={"version": "champion"})
    assert answer.status_code == 200
    if address != "/link-map":
        assert answer.json()["version"] == OLD


async def test_estimate_and_prior_from_take_an_alias(http, dog, consumer, make_picture, data_root):
    await put(http, "champion", OLD)
    files = [("images", ("a.png", make_picture()))]
    for version, name in (("champion", OLD), ("active", NEW)):
        answer = await http.post("/estimate", data={"category": "dog", "version": version}, files=files)
        assert answer.json()["version"] == name
    assert {batch.version for batch in consumer.batches} == {OLD, NEW}
    folder = data_root / "imports"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_picture())
    wanted = {"category": "owl", "folder": "imports", "prior_from": "dog@champion", "connectivity_prior": "predefined"}
    assert (await http.post("/train-jobs", json=wanted)).status_code == 202


async def test_two_gateways_see_one_move_at_once(serve, dog):
    first, second = await serve(), await serve()
    await put(first, "champion", OLD)
    answers = await asyncio.gather(
        *(put(client, "champion", NEW, If_Match=f'"{OLD}"') for client in (first, second) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[412] * 7]
    for client in (first, second):
        assert (await client.get("/priors/dog?version=champion")).json()["version"] == NEW


@pytest.mark.parametrize(
    ("alias", "status", "code"),
    [("Bad", 400, "bad_alias_name"), (OLD, 400, "bad_alias_name"), ("x" * 65, 400, "bad_alias_name")],
)
async def test_odd_aliases_are_refused(http, dog, problem, alias, status, code):
    problem(await put(http, alias, OLD), status, code)


async def test_targets_that_are_none_are_refused(http, dog, problem):
    problem(await put(http, "champion", "20990101T000000-ffffff"), 404, "unknown_version")
    problem(await put(http, "champion", "../x"), 400, "bad_version_name")
    problem(await http.put("/priors/cat/aliases/champion", json={"version": OLD}), 404, "unknown_category")
    problem(await http.put("/priors/dog/aliases/champion", json={"versio": OLD}), 422, "bad_request")
    problem(await http.get("/priors/dog?version=champion"), 404, "unknown_version")


async def test_active_can_not_be_removed(http, dog, problem):
    problem(await http.delete("/priors/dog/aliases/active"), 409, "conflict")
    assert (await http.get("/priors/dog")).json()["version"] == NEW


async def test_version_is_deleted_unless_something_points_to_it(http, dog, problem, data_root):
    document = problem(await http.delete(f"/priors/dog/versions/{NEW}"), 409, "version_in_use")
    assert "active" in document["detail"]
    await put(http, "champion", OLD)
    problem(await http.delete(f"/priors/dog/versions/{OLD}"), 409, "version_in_use")
    problem(await http.delete("/priors/dog/versions/champion"), 404, "unknown_version")
    await http.delete("/priors/dog/aliases/champion")
    assert (await http.get(f"/priors/dog?version={OLD}")).status_code == 200
    assert (await http.delete(f"/priors/dog/versions/{OLD}")).status_code == 204
    problem(await http.get(f"/priors/dog?version={OLD}"), 404, "unknown_version")
    problem(await http.get(f"/priors/dog/link-map?version={OLD}"), 404, "unknown_version")
    problem(await http.delete(f"/priors/dog/versions/{OLD}"), 404, "unknown_version")
    assert [path.name for path in (data_root / "categories" / "dog" / "versions").iterdir()] == [NEW]


async def test_list_goes_on_after_a_version_that_was_deleted_between_two_pages(http, dog, publish):
    publish("dog", "20260303T000000-cccccc")
    first = (await http.get("/priors/dog/versions", params={"limit": 2})).json()
    assert [item["version"] for item in first["items"]] == ["20260303T000000-cccccc", NEW]
    assert (await http.delete(f"/priors/dog/versions/{NEW}")).status_code == 204
    rest = await http.get("/priors/dog/versions", params={"cursor": first["next_cursor"]})
    assert rest.status_code == 200, rest.text
    assert [item["version"] for item in rest.json()["items"]] == [OLD]


async def test_list_is_there_while_versions_are_deleted(http, dog, publish):
    names = [f"2025010{number % 9 + 1}T0000{number:02}-dddddd" for number in range(30)]
    for name in names:
        publish("dog", name)
    await put(http, "active", OLD, If_Match="*")

    async def delete() -> None:
        for name in names:
            assert (await http.delete(f"/priors/dog/versions/{name}")).status_code == 204

    deleting = asyncio.create_task(delete())
    while not deleting.done():
        assert {answer.status_code for answer in await asyncio.gather(*listing(http, 4))} == {200}
    await deleting


def listing(http, count: int):
    return [http.get("/priors/dog/versions") for _ in range(count)]


async def test_estimate_of_a_deleted_version_is_refused_though_it_was_served_before(
    http, dog, consumer, make_picture, problem
):
    async def ask():
        files = [("images", ("a.png", make_picture()))]
        return await http.post("/estimate", data={"category": "dog", "version": OLD}, files=files)

    assert (await ask()).status_code == 200
    await http.delete(f"/priors/dog/versions/{OLD}")
    problem(await ask(), 404, "unknown_version")


async def test_job_stores_activate(http, data_root, make_picture, problem):
    folder = data_root / "imports"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_picture())
    for given, kept in ((None, True), (True, True), (False, False), ("false", False), ("always", "always")):
        body = {"category": "dog", "folder": "imports", **({} if given is None else {"activate": given})}
        job = (await http.post("/train-jobs", json=body)).json()
        assert job["activate"] == kept
        assert (await http.get(f"/train-jobs/{job['id']}")).json()["activate"] == kept
    document = problem(
        await http.post("/train-jobs", json={"category": "dog", "folder": "imports", "activate": "maybe"}),
        422,
        "bad_request",
    )
    assert document["field"] == "activate"


@pytest.mark.parametrize("odd", ["%00", "%FF%FE", "..%2F..%2Fx", "%ED%A0%80", "a" * 300, "%0A", "DOG", "%E2%80%AE"])
async def test_odd_names_anywhere_in_an_address_are_the_clients_fault(http, dog, odd):
    named = {"json": {"names": ["a", "b", "c", "d", "e"]}}
    asked = [
        ("GET", f"/priors/{odd}/aliases", {}),
        ("GET", f"/priors/dog/aliases/{odd}", {}),
        ("PUT", f"/priors/dog/aliases/{odd}", {"json": {"version": OLD}}),
        ("PUT", f"/priors/{odd}/aliases/champion", {"json": {"version": OLD}}),
        ("DELETE", f"/priors/dog/aliases/{odd}", {}),
        ("DELETE", f"/priors/dog/versions/{odd}", {}),
        ("DELETE", f"/priors/{odd}/versions/{OLD}", {}),
        ("GET", f"/priors/dog/versions/{odd}/export", {}),
        ("POST", f"/priors/{odd}/versions/import", {"files": [("file", ("a.zip", b"x"))]}),
        ("GET", f"/priors/dog/diff?from={odd}", {}),
        ("GET", f"/priors/dog/keypoint-names?version={odd}", {}),
        ("PUT", f"/priors/{odd}/keypoint-names", named),
        ("GET", f"/priors/dog/landmarks?version={odd}", {}),
        ("GET", f"/priors/dog/landmarks/{odd}", {}),
        ("DELETE", f"/priors/dog/landmarks/{odd}", {}),
        ("POST", f"/priors/{odd}/landmarks", {"files": [("images", ("a.png", b"x"))]}),
    ]
    for method, address, content in asked:
        answer = await http.request(method, address, **content)
        assert 400 <= answer.status_code < 500, (method, address, answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await http.get("/priors")).json()["items"][0]["num_versions"] == 2

"""Requests to train that are sent again under a key of their sender's."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.access.keys import KeyStore, Scope
from service.contract import routing
from service.contract.errors import BadRequest
from service.contract.jobs.store import JobStatus, NamedRequest, NewJob
from service.http.headers import fingerprint
from service.training import job_request

from .test_train_jobs import GOOD, move, zip_of


@pytest.fixture
def post(http):
    async def send(key: str | None = "one", archive: bytes = GOOD, **fields: str | bytes):
        files = {name: (name, value) for name, value in fields.items() if isinstance(value, bytes)}
        return await http.post(
            "/train-jobs",
            data={"category": "dog", **{name: value for name, value in fields.items() if name not in files}},
            files={"archive": ("pictures.zip", archive), **files},
            headers={"Idempotency-Key": key} if key is not None else {},
        )

    return send


def ids(http) -> list[str]:
    return [job.id for job in http.gateway.jobs.page().items]


async def test_same_request_gives_the_same_job(http, post):
    first, second = await post(), await post()
    assert (first.status_code, second.status_code) == (202, 202)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert ids(http) == [first.json()["id"]] == [second.json()["id"]]
    left = [folder.name for folder in http.gateway.files.folder(first.json()["id"]).parent.iterdir()]
    assert left == [first.json()["id"]]  # the second upload is gone, the first one's is not


async def test_answer_is_the_job_as_it_stands_now(http, post):
    job_id = (await post()).json()["id"]
    move(http, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
    assert (await post()).json()["status"] == "running"


@pytest.mark.parametrize(
    "other",
    [
        {"steps": "77"},
        {"category": "cat"},
        {"activate": "false"},
        {"archive": zip_of({"a.png": b"another"})},
        {"labels": b"image,keypoint,x,y\na.png,nose,1,2\n"},
    ],
    ids=lambda value: next(iter(value)),
)
async def test_another_request_of_the_same_key_is_refused(http, post, problem, other):
    first = (await post()).json()["id"]
    found = problem(await post(**other), 422, "idempotency_key_reused")
    assert found["job_id"] == first
    assert ids(http) == [first]


async def test_another_prior_is_another_request(http, post, problem):
    def prior(x: float) -> bytes:
        links = [{"i": 0, "j": 1, "weight": 1.0}]
        return json.dumps({"keypoint_prior": [[0, 0], [0.5, 0], [0, 0.5], [x, 0.2]], "links": links}).encode()

    first = await post(prior=prior(0.1), keypoint_prior="predefined")
    assert first.status_code == 202, first.text
    assert (await post(prior=prior(0.1), keypoint_prior="predefined")).json()["id"] == first.json()["id"]
    problem(await post(prior=prior(0.2), keypoint_prior="predefined"), 422, "idempotency_key_reused")


async def test_settings_said_or_left_to_their_defaults_are_the_same_request(http, post):
    first = (await post()).json()["id"]
    assert (await post(preset="compact", activate="true")).json()["id"] == first


async def test_settings_are_checked_once_a_request(http, post, monkeypatch):
    checked = []
    resolve = job_request.resolve
    monkeypatch.setattr(job_request, "resolve", lambda *arguments: checked.append(1) or resolve(*arguments))
    for key in ("one", "one", None):
        assert (await post(key)).status_code == 202
    assert len(checked) == 3


async def test_requests_at_once_make_one_job(http, post):
    answers = await asyncio.gather(*(post() for _ in range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(ids(http)) == 1


async def test_without_a_key_or_with_another_one_each_request_is_a_job_of_its_own(http, post):
    assert len({(await post(key)).json()["id"] for key in (None, None, "one", "two")}) == 4


async def test_key_of_a_forgotten_job_is_free_again(http, post):
    first = (await post()).json()["id"]
    move(http, first, JobStatus.CANCELLED)
    assert (await http.delete(f"/train-jobs/{first}")).status_code == 204
    second = await post(steps="55")
    assert second.status_code == 202
    assert second.json()["id"] != first


async def test_key_is_forgotten_after_its_time(http, post, redis_client):
    await post("k" * 255)
    left = redis_client.ttl(routing.request_key("k" * 255))
    assert 0 < left <= http.gateway.settings.idempotency_ttl_s


async def test_failed_request_leaves_its_key_free(http, post, problem):
    problem(await post(archive=b"no archive"), 422, "bad_archive")
    assert (await post()).status_code == 202


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "caf\xe9"])
async def test_bad_key(http, problem, key):
    response = await http.post(
        "/train-jobs",
        data={"category": "dog"},
        files={"archive": ("a.zip", GOOD)},
        headers=[(b"Idempotency-Key", key.encode("latin-1"))],
    )
    assert problem(response, 422, "bad_request")["field"] == "Idempotency-Key"
    assert ids(http) == []


async def test_json_request(http, data_root):
    (data_root / "imports" / "dog").mkdir(parents=True)
    (data_root / "imports" / "dog" / "a.png").write_bytes(b"x")
    body = {"category": "dog", "folder": "imports/dog"}
    answers = [await http.post("/train-jobs", json=body, headers={"Idempotency-Key": "j"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]


@pytest.mark.parametrize("field", ["continue_from", "prior_from"])
async def test_alias_that_moved_since_makes_no_other_request(http, post, publish, field):
    publish("dog", "20260101T000000-abc123")
    named = {"continue_from": "active"}
    if field == "prior_from":
        named = {"prior_from": "dog", "connectivity_prior": "predefined"}
    first = (await post(**named)).json()["id"]
    publish("dog", "20260102T000000-abc124", side=128)
    again = await post(**named)
    assert (again.status_code, again.json()["id"]) == (202, first), again.text
    assert (await post(**{**named, "steps": "77"})).status_code == 422
    other = "20260102T000000-abc124" if field == "continue_from" else "dog@20260102T000000-abc124"
    assert (await post(**{**named, field: other})).status_code == 422


async def test_two_senders_may_use_the_same_key(http):
    jobs = http.gateway.jobs
    made = [
        jobs.create(NewJob("dog", {}, 5, owner=owner), request=NamedRequest("one", print_, 60)).id
        for owner, print_ in (("anna", "a"), ("bert", "b"), (None, "c"))
    ]
    assert len(set(made)) == 3
    assert jobs.create(NewJob("dog", {}, 5, owner="bert"), request=NamedRequest("one", "b", 60)).id == made[1]


async def test_what_the_request_named_may_have_gone_since(http, post, publish, data_root, problem):
    """A repeated request still returns the job it created, even hours later."""
    publish("dog", "20260101T000000-abc123")
    publish("dog", "20260102T000000-abc124")
    sent = await http.post("/datasets", files={"archive": ("pictures.zip", GOOD)})
    dataset = sent.json()["id"]
    folder = data_root / "imports" / "dog"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    named = {
        "base": {"dataset": dataset, "continue_from": "20260101T000000-abc123"},
        "prior": {"dataset": dataset, "prior_from": "dog@20260101T000000-abc123", "connectivity_prior": "predefined"},
        "dataset": {"dataset": dataset},
        "folder": {"folder": "imports/dog"},
    }

    async def send() -> dict:
        return {
            key: await http.post("/train-jobs", json={"category": "dog", **body}, headers={"Idempotency-Key": key})
            for key, body in named.items()
        }

    first = await send()
    assert {answer.status_code for answer in first.values()} == {202}, {k: a.text for k, a in first.items()}
    for answer in first.values():
        move(http, answer.json()["id"], JobStatus.CANCELLED)
    assert (await http.delete(f"/datasets/{dataset}")).status_code == 204
    assert (await http.delete("/priors/dog/versions/20260101T000000-abc123")).status_code == 204
    (folder / "a.png").unlink()
    folder.rmdir()
    again = await send()
    assert {key: a.json().get("id") for key, a in again.items()} == {key: a.json()["id"] for key, a in first.items()}
    assert {answer.headers.get("idempotent-replayed") for answer in again.values()} == {"true"}
    named["dataset"] |= {"steps": 77}
    problem((await send())["dataset"], 422, "idempotency_key_reused")
    new = await http.post("/train-jobs", json={"category": "dog", **named["base"]}, headers={"Idempotency-Key": "new"})
    problem(new, 404, "unknown_version")


async def test_same_key_of_another_owner_finds_nothing(serve, data_root, problem):
    """Idempotency keys belong to one API key, even if the request names something deleted."""
    http = await serve(api_keys=True)
    store = KeyStore(data_root)
    anna, bert = (
        {"Authorization": f"Bearer {store.create(name, list(Scope))[1]}", "Idempotency-Key": "same"}
        for name in ("anna", "bert")
    )
    dataset = (await http.post("/datasets", files={"archive": ("a.zip", GOOD)}, headers=anna)).json()["id"]
    body = {"category": "dog", "dataset": dataset}
    first = await http.post("/train-jobs", json=body, headers=anna)
    assert first.status_code == 202
    move(http, first.json()["id"], JobStatus.CANCELLED)
    assert (await http.delete(f"/datasets/{dataset}", headers=anna)).status_code == 204
    assert (await http.post("/train-jobs", json=body, headers=anna)).json()["id"] == first.json()["id"]
    problem(await http.post("/train-jobs", json=body, headers=bert), 404, "unknown_dataset")


def test_values_nested_deeper_than_can_be_written_are_refused():
    """On some Pythons the parser goes deeper than the writer."""
    deep: dict = {}
    for _ in range(200_000):
        deep = {"a": deep}
    with pytest.raises(BadRequest, match="too deeply"):
        fingerprint(deep, [])
    while deep:  # taken apart by hand: freeing it at once would go as deep
        deep = deep.pop("a")

"""Names of keypoints over HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.estimates.schemas import Estimate
from service.versions.schemas import KeypointNames, Prior

OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"
NAMES = ["nose", "neck", "tail", "left paw", "right paw"]


@pytest.fixture
def dog(publish):
    publish("dog", OLD)
    return publish("dog", NEW)


async def put(http, names, etag=None, **params):
    headers = {"If-Match": etag} if etag else {}
    return await http.put("/priors/dog/keypoint-names", params=params, json={"names": names}, headers=headers)


async def test_names_appear_in_priors_and_estimates_of_their_version(http, dog, consumer, make_picture):
    async def estimate(version):
        files = [("images", ("a.png", make_picture()))]
        answer = await http.post("/estimate", data={"category": "dog", "version": version}, files=files)
        Estimate.model_validate(answer.json())
        return [point.get("name") for point in answer.json()["images"][0]["keypoints"]]

    assert await estimate("active") == [None] * 5
    done = await put(http, NAMES)
    assert done.status_code == 200, done.text
    assert done.json() == {"category": "dog", "version": NEW, "names": NAMES}
    assert await estimate("active") == NAMES
    assert await estimate(OLD) == [None] * 5
    prior = (await http.get("/priors/dog")).json()
    assert prior["keypoint_names"] == NAMES
    Prior.model_validate(prior)
    assert (await http.get(f"/priors/dog?version={OLD}")).json()["keypoint_names"][0] == "keypoint_0"


async def test_names_of_another_version_are_put_by_alias(http, dog):
    await http.put("/priors/dog/aliases/champion", json={"version": OLD})
    assert (await put(http, NAMES, version="champion")).json()["version"] == OLD
    assert (await http.get("/priors/dog/keypoint-names?version=champion")).json()["names"] == NAMES
    assert (await http.get("/priors/dog/keypoint-names")).json()["names"][4] == "keypoint_4"


async def test_names_that_exist_are_changed_only_by_who_knows_them(http, dog, problem):
    first = await http.get("/priors/dog/keypoint-names")
    KeypointNames.model_validate(first.json())
    problem(await put(http, NAMES, '"other"'), 412, "precondition_failed")
    done = await put(http, NAMES, first.headers["etag"])
    assert done.status_code == 200
    problem(await put(http, NAMES[::-1]), 428, "precondition_required")
    problem(await put(http, NAMES[::-1], first.headers["etag"]), 412, "precondition_failed")
    got = await http.get("/priors/dog/keypoint-names")
    assert (got.json()["names"], got.headers["etag"]) == (NAMES, done.headers["etag"])
    assert (await put(http, NAMES[::-1], got.headers["etag"])).status_code == 200


async def test_of_two_gateways_one_names(serve, dog):
    first, second = await serve(), await serve()
    await put(first, NAMES)
    etag = (await second.get("/priors/dog/keypoint-names")).headers["etag"]
    tries = [put(http, [f"{name} {n}" for name in NAMES], etag) for n, http in enumerate((first, second))]
    answers = await asyncio.gather(*tries)
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    (winner,) = [answer.json()["names"] for answer in answers if answer.status_code == 200]
    for http in (first, second):
        assert (await http.get("/priors/dog")).json()["keypoint_names"] == winner


@pytest.mark.parametrize(
    "names",
    [NAMES[:4], [*NAMES, "more"], [*NAMES[:4], "nose"], [*NAMES[:4], ""], [*NAMES[:4], "x" * 65], [*NAMES[:4], "a\nb"]],
)
async def test_names_that_do_not_fit_are_refused(http, dog, problem, names):
    problem(await put(http, names), 422, "bad_keypoint_names")
    assert (await http.get("/priors/dog/keypoint-names")).json()["names"][0] == "keypoint_0"


async def test_bodies_that_are_none_are_refused(http, dog, problem):
    problem(await put(http, [1, 2, 3, 4, 5]), 422, "bad_request")
    problem(await http.put("/priors/dog/keypoint-names", json=NAMES), 422, "bad_request")
    problem(await http.put("/priors/cat/keypoint-names", json={"names": NAMES}), 404, "unknown_category")


async def test_names_go_with_their_version(http, dog, publish, data_root):
    await put(http, NAMES, version=OLD)
    await http.delete(f"/priors/dog/versions/{OLD}")
    assert not (data_root / "categories" / "dog" / "additions" / OLD).exists()
    publish("dog", OLD)
    assert (await http.get(f"/priors/dog/keypoint-names?version={OLD}")).json()["names"][0] == "keypoint_0"


async def test_names_go_on_into_a_training_that_starts_from_their_prior(http, dog, data_root, make_picture):
    await put(http, NAMES)
    (data_root / "imports").mkdir()
    (data_root / "imports" / "a.png").write_bytes(make_picture())
    wanted = {"category": "owl", "folder": "imports", "connectivity_prior": "predefined"}
    for named, names in (("dog", NAMES), (f"dog@{OLD}", [f"keypoint_{n}" for n in range(5)])):
        answer = await http.post("/train-jobs", json={**wanted, "prior_from": named})
        assert answer.status_code == 202, answer.text
        kept = json.loads((data_root / "jobs" / answer.json()["id"] / "prior.json").read_text())
        assert kept["keypoint_names"] == names

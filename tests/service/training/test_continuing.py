"""``continue_from`` of a train job."""

from __future__ import annotations

import json

import pytest

from service.contract.jobs.files import JobFiles

from .test_train_jobs import GOOD

VERSION = "20260101T000000-abc123"


@pytest.fixture
def post(http):
    async def send(**fields: str):
        data = {"category": "dog", **fields}
        return await http.post("/train-jobs", data=data, files={"archive": ("a.zip", GOOD)})

    return send


async def test_settings_are_the_versions_unless_named(post, publish, data_root):
    publish("dog", VERSION)
    answer = await post(continue_from="active", steps="77", learning_rate="0.001")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["continued_from"] == {
        "category": "dog",
        "version": VERSION,
        "keypoint_names": None,
        "lineage": [f"dog@{VERSION}"],
    }
    settings = job["settings"]
    assert (settings["num_keypoints"], settings["image_size"], settings["steps"]) == (5, 64, 77)
    assert settings["base_width"] == 64  # the version's, where compact has 16
    assert settings["link_width_start"] == settings["link_width"]
    weights = data_root / "categories" / "dog" / "versions" / VERSION / "weights.safetensors"
    assert JobFiles(data_root).start(job["id"]).read_bytes() == weights.read_bytes()


async def test_names_are_carried_on(post, http, publish):
    publish("dog", VERSION)
    names = ["nose", "neck", "tail", "left paw", "right paw"]
    await http.put("/priors/dog/keypoint-names", json={"names": names}, headers={"If-Match": "*"})
    assert (await post(continue_from=VERSION)).json()["continued_from"]["keypoint_names"] == names


async def test_another_categorys_version_can_be_named(post, publish):
    publish("wolf", VERSION)
    assert (await post(continue_from="wolf@active")).json()["continued_from"]["category"] == "wolf"


async def test_json_can_name_it_too(http, publish, data_root):
    publish("dog", VERSION)
    folder = data_root / "imports"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    body = {"category": "dog", "folder": "imports", "continue_from": VERSION, "steps": 5}
    answer = await http.post("/train-jobs", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["continued_from"]["version"] == VERSION


@pytest.mark.parametrize(
    ("fields", "status", "code", "word"),
    [
        ({"continue_from": "nothing"}, 404, "unknown_version", "nothing"),
        ({"continue_from": "cat@active"}, 404, "unknown_category", "cat"),
        ({"continue_from": "active", "num_keypoints": "12"}, 422, "bad_setting", "num_keypoints is 12"),
        ({"continue_from": "active", "base_width": "16"}, 422, "bad_setting", "is 64 in dog@"),
        ({"continue_from": "active", "preset": "paper"}, 422, "bad_setting", "preset"),
        ({"continue_from": "active", "steps": "0"}, 422, "bad_setting", "steps"),
        ({"continue_from": "active", "nonsense": "0"}, 422, "bad_setting", "nonsense"),
        ({"continue_from": "active", "prior_from": "dog"}, 422, "bad_request", "continue_from"),
        ({"continue_from": "../x"}, 400, "bad_version_name", ""),
        ({"continue_from": " "}, 422, "bad_request", "continue_from is empty"),
        ({"prior_from": ""}, 422, "bad_request", "prior_from is empty"),
    ],
)
async def test_what_can_not_be_continued_is_refused(post, publish, problem, no_trace, fields, status, code, word):
    publish("dog", VERSION)
    document = problem(await post(**fields), status, code)
    assert word in document["detail"]


async def test_version_without_its_weights_is_reported(post, publish, problem, data_root, no_trace):
    publish("dog", VERSION)
    (data_root / "categories" / "dog" / "versions" / VERSION / "weights.safetensors").unlink()
    document = problem(await post(continue_from="active"), 500, "store_corrupt")
    assert "lacks its weights" in document["detail"]


async def test_the_same_value_may_be_named(post, publish):
    publish("dog", VERSION)
    assert (await post(continue_from="active", num_keypoints="5", preset="compact")).status_code == 202


async def test_listing_and_difference_know_it(http, publish, data_root):
    publish("dog", "v1")
    publish("dog", "v2")
    path = data_root / "categories" / "dog" / "versions" / "v2" / "version.json"
    info = json.loads(path.read_text())
    info["training"]["continued_from"] = {"category": "dog", "version": "v1", "lineage": ["dog@v1"]}
    path.write_text(json.dumps(info))
    listed = (await http.get("/priors/dog/versions")).json()["items"]
    assert {item["version"]: item["continued_from"] for item in listed} == {"v1": None, "v2": "dog@v1"}
    for older, newer in (("v1", "v2"), ("v2", "v1")):
        diff = (await http.get(f"/priors/dog/diff?from={older}&to={newer}")).json()
        assert diff["matched_by"] == "number"
        assert "continues the training" in diff["why"]
    assert (await http.get("/priors/dog")).json()["training"]["continued_from"]["version"] == "v1"

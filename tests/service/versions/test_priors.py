"""Priors over HTTP, from disk alone."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from model.version.bank_poses import vary_bank
from service.contract.jobs.files import check_prior
from service.contract.versions.store import VersionStore
from service.estimates.drawing import prior_picture
from service.versions.schemas import History, Memory, Prior, PriorPage, VersionPage

OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"


@pytest.fixture
def dog(publish):
    publish("dog", OLD)
    return publish("dog", NEW)


async def test_list_is_paged_by_name(http, publish):
    for name in ("owl", "dog", "cat"):
        publish(name)
    first = (await http.get("/priors?limit=2")).json()
    assert [item["category"] for item in first["items"]] == ["cat", "dog"]
    second = (await http.get("/priors", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [item["category"] for item in second["items"]] == ["owl"]
    assert second["next_cursor"] is None
    PriorPage.model_validate(first)


async def test_empty_list(http):
    assert (await http.get("/priors")).json() == {"items": [], "next_cursor": None}


async def test_prior_has_the_documented_shape(http, dog):
    prior = (await http.get("/priors/dog")).json()
    assert {
        "category",
        "version",
        "num_keypoints",
        "keypoint_names",
        "keypoint_prior",
        "connectivity_prior",
        "links",
        "settings",
        "training",
    } <= set(prior)
    assert (prior["category"], prior["version"], prior["num_keypoints"]) == ("dog", dog, 5)
    assert np.shape(prior["keypoint_prior"]) == (5, 2)
    assert np.shape(prior["connectivity_prior"]) == (5, 5)
    assert [[link["i"], link["j"]] for link in prior["links"]] == prior["skeleton"]
    assert len(prior["skeleton"]) == 4
    every = (await http.get("/priors/dog?include=links")).json()["links"]
    assert len(every) == 10
    assert [link for link in every if link in prior["links"]] == prior["links"]
    assert prior["settings"]["num_keypoints"] == 5
    assert prior["training"]["images"] == 99
    assert prior["training"]["job_id"] == "0123456789abc123"
    assert (prior["keypoint_prior_source"], prior["method"], prior["mode"]) == ("memory", "ppl", "stills")
    Prior.model_validate(prior)


async def test_version_of_the_first_release_is_served(http, dog, data_root):
    folder = data_root / "categories" / "dog" / "versions" / NEW
    documents = {name: json.loads((folder / name).read_text()) for name in ("version.json", "prior.json")}
    del documents["prior.json"]["keypoint_prior_source"], documents["version.json"]["settings"]["method"]
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    prior = (await http.get("/priors/dog")).json()
    assert (prior["keypoint_prior_source"], prior["method"], prior["mode"]) == ("memory", "ppl", "stills")


QUALITY = {
    "verdict": "doubtful",
    "advice": "send more",
    "score": 0.15,
    "consistency": 0.2,
    "movement_percent": 3.5,
    "explained": 0.02,
    "idle_keypoints": [1, 2],
    "mean_score": 0.6,
    "pictures": 40,
}


async def test_exported_prior_is_one_to_start_from(http, dog):
    prior = (await http.get("/priors/dog")).json()
    assert check_prior(prior).keypoint_prior == [tuple(point) for point in prior["keypoint_prior"]]


async def test_evaluation_is_shown_with_the_prior(http, dog, data_root):
    assert (await http.get("/priors/dog")).json()["evaluation"] is None
    path = data_root / "categories" / "dog" / "versions" / NEW / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": {"heldout_images": 7}}))
    assert (await http.get("/priors/dog")).json()["evaluation"] == {"heldout_images": 7}


async def test_quality_is_shown_with_the_prior_and_travels(http, dog, data_root):
    assert (await http.get("/priors/dog")).json()["quality"] is None, "a version of an older release"
    path = data_root / "categories" / "dog" / "versions" / NEW / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quality": QUALITY}))
    assert (await http.get("/priors/dog")).json()["quality"] == QUALITY, "without an agreement, as of an older release"


async def test_history_has_the_documented_shape(http, dog):
    history = (await http.get("/priors/dog/history")).json()
    assert (history["category"], history["version"]) == ("dog", NEW)
    assert [snapshot["step"] for snapshot in history["snapshots"]] == [0, 10]
    assert np.shape(history["snapshots"][1]["keypoint_prior"]) == (5, 2)
    assert len(history["snapshots"][1]["link_weights"]) == 10
    History.model_validate(history)


async def test_version_without_a_history_says_so(http, dog, problem, data_root):
    (data_root / "categories" / "dog" / "versions" / NEW / "history.json").unlink()
    problem(await http.get("/priors/dog/history"), 404, "no_history")
    assert (await http.get(f"/priors/dog/history?version={OLD}")).status_code == 200


async def test_version_of_autolink_has_no_memory_and_no_prior_on_the_way(http, publish):
    publish("owl", method="autolink")
    for query in ("", "?include=vectors"):
        memory = (await http.get(f"/priors/owl/memory{query}")).json()
        assert (memory["num_banks"], memory["prototypes"]) == (0, [])
        assert memory.get("vectors", []) == []
        Memory.model_validate(memory)
    prior = (await http.get("/priors/owl")).json()
    assert (prior["method"], prior["keypoint_prior_source"]) == ("autolink", "mean_pose")
    history = (await http.get("/priors/owl/history")).json()
    assert [snapshot["keypoint_prior"] for snapshot in history["snapshots"]] == [None, None]
    History.model_validate(history)


async def test_version_is_the_active_one_unless_given(http, dog):
    for path in ("", "/memory", "/history"):
        assert (await http.get(f"/priors/dog{path}")).json()["version"] == NEW
        assert (await http.get(f"/priors/dog{path}?version={OLD}")).json()["version"] == OLD
    assert (await http.get(f"/priors/dog/link-map?version={OLD}")).status_code == 200


async def test_versions_are_listed_from_the_newest(http, dog):
    first = (await http.get("/priors/dog/versions?limit=1")).json()
    assert [(item["version"], item["active"]) for item in first["items"]] == [(NEW, True)]
    rest = (await http.get("/priors/dog/versions", params={"cursor": first["next_cursor"]})).json()
    assert [(item["version"], item["active"]) for item in rest["items"]] == [(OLD, False)]
    assert rest["next_cursor"] is None
    VersionPage.model_validate(first)


@pytest.mark.parametrize("size", [None, 64, 300])
async def test_link_map_is_a_square_png(http, dog, size):
    response = await http.get("/priors/dog/link-map", params={"size": size} if size else {})
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (size or 512,) * 2
    pixels = np.asarray(image).astype(int).sum(axis=2)
    centre = image.width // 2
    # the strongest link runs from the centre to the right; the corner is far from all
    assert pixels[centre, centre + image.width // 8] > 500
    assert pixels[2, 2] < 120


async def test_link_map_is_drawn_once_for_a_version_and_size(http, dog, monkeypatch):
    drawn = []

    def draw(prior, side):
        drawn.append((prior["version"], side))
        return prior_picture(prior, side)

    monkeypatch.setattr("service.gateway.gateway.prior_picture", draw)
    paths = [f"?size={size}&version={version}" for size in (64, 65) for version in (OLD, NEW)] * 3
    bodies = await asyncio.gather(*(http.get(f"/priors/dog/link-map{path}") for path in [*paths, "?size=64"]))
    assert sorted(drawn) == [(OLD, 64), (OLD, 65), (NEW, 64), (NEW, 65)]
    assert bodies[1].content == bodies[-1].content  # the active version's
    assert bodies[0].content == bodies[4].content


async def test_link_map_does_not_wait_for_pictures_to_be_decoded(http, dog):
    leave = threading.Event()
    for _ in range(http.gateway.settings.decode_threads):
        http.gateway.threads.decode.submit(leave.wait, 10)
    try:
        assert (await asyncio.wait_for(http.get("/priors/dog/link-map"), 5)).status_code == 200
    finally:
        leave.set()


async def test_link_map_that_was_drawn_does_not_wait_for_others_to_be_drawn(http, dog):
    before = (await http.get("/priors/dog/link-map")).content
    leave = threading.Event()
    http.gateway.threads.draw.submit(leave.wait, 10)
    try:
        assert (await asyncio.wait_for(http.get("/priors/dog/link-map"), 5)).content == before
    finally:
        leave.set()


async def test_kept_link_maps_are_bounded_in_bytes(http, dog, monkeypatch):
    sizes = [len((await http.get(f"/priors/dog/link-map?size={size}")).content) for size in (64, 65, 66)]
    monkeypatch.setattr("service.gateway.gateway._PRIOR_PICTURE_BYTES", sum(sizes) + 1)
    last = (await http.get("/priors/dog/link-map?size=67")).content
    kept = http.gateway._prior_pictures
    assert 1 < len(kept) < 4
    assert sum(map(len, kept.values())) <= sum(sizes) + 1
    assert list(kept.values())[-1] == last
    assert (await http.get("/priors/dog/link-map?size=2048")).status_code == 200
    assert len(kept) == 1


async def test_link_map_of_a_version_that_was_created_again_is_drawn_again(http, publish, data_root):
    publish("dog", OLD)
    before = (await http.get("/priors/dog/link-map")).content
    prior = data_root / "categories" / "dog" / "versions" / OLD / "prior.json"
    document = json.loads(prior.read_text())
    folder = prior.parent
    moved = folder.rename(folder.with_name("x"))
    shutil.copytree(moved, folder)
    prior.write_text(json.dumps({**document, "keypoint_prior": [[y, x] for x, y in document["keypoint_prior"]]}))
    assert (await http.get("/priors/dog/link-map")).content != before


async def test_memory_has_the_documented_shape(http, dog):
    memory = (await http.get("/priors/dog/memory")).json()
    assert set(memory) == {
        "category",
        "version",
        "num_banks",
        "bank_size",
        "token_dim",
        "use_counts",
        "prototypes",
    }
    assert set(memory["prototypes"][0]) == {"keypoints", "codes", "count"}
    Memory.model_validate(memory)


async def test_memory_gives_its_vectors_where_asked_for(http, dog):
    memory = (await http.get("/priors/dog/memory?include=vectors")).json()
    expected = np.arange(48).reshape(3, 2, 8) / 7
    assert np.allclose(memory["vectors"], expected, atol=1e-5)
    Memory.model_validate(memory)


async def test_bank_is_varied_in_the_keypoint_prior_and_in_a_prototype(http, dog, data_root):
    from safetensors.numpy import load_file

    tensors = load_file(VersionStore(data_root).weights_path("dog", NEW))
    expected = {"": vary_bank(tensors, 1), "&prototype=0": vary_bank(tensors, 1, [0, 1, 0])}
    for query, poses in expected.items():
        memory = (await http.get(f"/priors/dog/memory?bank=1{query}")).json()
        assert memory["variation"]["bank"] == 1
        assert np.shape(memory["variation"]["keypoints"]) == (2, 5, 2)
        assert np.allclose(memory["variation"]["keypoints"], poses, atol=1e-5)
        Memory.model_validate(memory)
    assert not np.allclose(*expected.values())


async def test_bank_and_prototype_that_do_not_exist_are_refused(http, dog, publish, problem):
    publish("owl", method="autolink")
    for query, words in (
        ("bank=3", "has banks 0 to 2"),
        ("bank=0&prototype=1", "has prototypes 0 to 0"),
        ("prototype=0", "send bank too"),
    ):
        assert words in problem(await http.get(f"/priors/dog/memory?{query}"), 422, "bad_request")["detail"]
    assert "leave bank out" in problem(await http.get("/priors/owl/memory?bank=0"), 422, "no_memory")["detail"]


@pytest.mark.parametrize("path", ["", "/link-map", "/memory", "/history", "/versions"])
async def test_unknown_category(http, dog, problem, path):
    problem(await http.get(f"/priors/cat{path}"), 404, "unknown_category")
    problem(await http.get(f"/priors/Cat!{path}"), 400, "bad_category_name")


@pytest.mark.parametrize("path", ["", "/link-map", "/memory", "/history"])
async def test_unknown_version(http, dog, problem, path):
    problem(await http.get(f"/priors/dog{path}?version=20200101T000000-cccccc"), 404, "unknown_version")
    problem(await http.get(f"/priors/dog{path}?version=../active"), 400, "bad_version_name")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/priors?limit=0", 422, "bad_request"),
        ("/priors/dog/link-map?size=10", 422, "bad_request"),
        ("/priors/dog/link-map?size=100000", 422, "bad_request"),
        ("/priors/dog/memory?include=everything", 422, "bad_request"),
        ("/priors/dog/versions?cursor=no%2Fname", 400, "bad_cursor"),
        ("/priors?cursor=no%2Fname", 400, "bad_cursor"),
    ],
)
async def test_bad_queries_are_refused(http, dog, problem, path, status, code):
    problem(await http.get(path), status, code)


async def test_priors_need_neither_redis_nor_a_worker(serve, dog):
    http = await serve(redis_url="redis://127.0.0.1:1/0")
    for path in ("", "/link-map", "/memory", "/versions"):
        assert (await http.get(f"/priors/dog{path}")).status_code == 200
    assert (await http.get("/priors")).status_code == 200


@pytest.mark.parametrize("name", ["prior.json", "version.json"])
async def test_damaged_version_is_said_without_a_path(http, publish, problem, data_root, name):
    file = data_root / "categories" / "owl" / "versions" / publish("owl") / name
    file.write_text("{")
    assert str(data_root) not in problem(await http.get("/priors/owl"), 500, "store_corrupt")["detail"]
    file.unlink()
    assert str(data_root) not in problem(await http.get("/priors/owl"), 500, "store_corrupt")["detail"]


async def test_damaged_version_does_not_hide_the_others_of_its_category(http, dog, problem, data_root):
    (data_root / "categories" / "dog" / "versions" / OLD / "version.json").write_text("{")
    page = (await http.get("/priors/dog/versions")).json()
    VersionPage.model_validate(page)
    assert [(item["version"], item["created_at"] is None) for item in page["items"]] == [(NEW, False), (OLD, True)]
    problem(await http.get(f"/priors/dog?version={OLD}"), 500, "store_corrupt")


async def test_damaged_version_does_not_hide_the_other_categories(http, publish, data_root):
    publish("dog")
    (data_root / "categories" / "owl" / "versions" / publish("owl") / "prior.json").write_text("{")
    items = (await http.get("/priors")).json()["items"]
    assert [(item["category"], item["num_keypoints"]) for item in items] == [("dog", 5), ("owl", None)]


async def test_new_active_version_is_served_at_once(http, consumer, publish, make_picture):
    for version in ("20260101T000000-aaaaaa", "20260102T000000-bbbbbb", "20260103T000000-cccccc"):
        publish("dog", version)
        files = {"images": ("a.png", make_picture())}
        answer = await http.post("/estimate", data={"category": "dog"}, files=files)
        assert answer.json()["version"] == version


async def test_damaged_weights_are_said(http, publish, problem, data_root):
    version = publish("owl")
    (data_root / "categories" / "owl" / "versions" / version / "weights.safetensors").write_bytes(b"junk")
    for query in ("include=vectors", "bank=0"):
        problem(await http.get(f"/priors/owl/memory?{query}"), 500, "store_corrupt")
    assert (await http.get("/priors/owl/memory")).status_code == 200

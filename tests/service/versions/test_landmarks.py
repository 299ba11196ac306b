"""Landmarks over HTTP: labelled pictures in, a map to the user's own points, and these points in estimates."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from service.contract.durable_files import write_json
from service.contract.media.fitting import Frame
from service.estimates.pictures import describe_landmarks
from service.estimates.schemas import Estimate
from service.versions.landmarks import MAX_FIT_LABELS_BYTES, LandmarkMaps
from service.versions.schemas import FittedLandmarks, Landmarks, LandmarksPage

OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"
SIZES = [(96, 64), (60, 100), (64, 64)]


@pytest.fixture
def dog(publish):
    publish("dog", OLD)
    return publish("dog", NEW)


def truth(width: int, height: int, where: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Two landmarks that move with the disc: its centre, and a place beside it in proportion to the picture."""
    x, y, longer = where[0] * width, where[1] * height, max(width, height)
    return {"nose": (x, y), "left, paw": (x + 0.1 * longer, y - 0.05 * longer)}


@pytest.fixture
def labelled(make_picture):
    """labelled(count): pictures of several sizes by name, where the disc is in each, and their labels as CSV."""

    def make(count: int = 12, seed: int = 0):
        rng = np.random.default_rng(seed)
        pictures, places, rows = {}, {}, ["image,keypoint,x,y,visible"]
        for number in range(count):
            (width, height), where = SIZES[number % 3], tuple(rng.uniform(0.3, 0.7, 2))
            name = f"{number:03}.png"
            pictures[name] = make_picture(width, height, where)
            places[name] = (width, height, where)
            for mark, (x, y) in truth(width, height, where).items():
                rows.append(f'{name},"{mark}",{x},{y},1')
        return pictures, places, "\n".join(rows).encode()

    return make


async def fit(http, pictures, labels, name="anatomy", **fields):
    files = [("images", (picture, data)) for picture, data in pictures.items()]
    if labels is not None:
        files.append(("labels", ("labels.csv", labels)))
    return await http.post("/priors/dog/landmarks", data={"name": name, **fields}, files=files)


async def test_landmarks_are_fitted_and_returned_for_new_pictures(http, dog, consumer, labelled, make_picture):
    pictures, _, labels = labelled()
    answer = await fit(http, pictures, labels)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    FittedLandmarks.model_validate(found)
    assert answer.headers["location"] == f"/priors/dog/landmarks/anatomy?version={NEW}"
    assert (found["version"], found["landmarks"], found["images"]) == (NEW, ["nose", "left, paw"], 12)
    assert np.shape(found["maps"]) == (2, 11, 2)
    checked = found["cross_validation"]
    assert checked["folds"] == 12
    assert checked["error_percent"] < 1 < checked["mean_place_percent"]
    assert checked["error_px"] == pytest.approx(checked["error_percent"] * 83 / 100, rel=0.3)
    assert [one["name"] for one in checked["per_landmark"]] == ["nose", "left, paw"]
    for size, where in zip([(200, 150), (90, 300)], [(0.4, 0.6), (0.6, 0.35)], strict=True):
        files = [("images", ("new.png", make_picture(*size, where)))]
        estimate = await http.post("/estimate", data={"category": "dog", "landmarks": "anatomy"}, files=files)
        Estimate.model_validate(estimate.json())
        assert all(0 <= point["score"] <= 1 for point in estimate.json()["images"][0]["landmarks"])
        got = {point["name"]: (point["x"], point["y"]) for point in estimate.json()["images"][0]["landmarks"]}
        for name, place in truth(*size, where).items():
            assert got[name] == pytest.approx(place, abs=0.02 * max(size))
    plain = await http.post("/estimate", data={"category": "dog"}, files=files)
    assert "landmarks" not in plain.json()["images"][0]


def test_score_of_a_landmark_is_that_of_the_keypoints_that_move_it():
    maps = np.zeros((3, 5, 2))
    maps[0, 2] = 3, -1  # x of the second keypoint
    maps[1, :4] = [[1, 0], [0, 1], [3, 0], [0, 3]]  # the second three times as much as the first
    found = LandmarkMaps(("one", "both", "still"), maps).score(np.array([0.2, 0.6], np.float32))
    assert found.tolist() == pytest.approx([0.6, (0.2 + 3 * 0.6) / 4, 0.4])


@pytest.mark.parametrize(("present", "count"), [(None, 1), (0.5, 1), (0.49, 0)])
def test_where_the_thing_is_not_there_are_no_landmarks(present, count):
    answer = {} if present is None else {"present": present}
    maps = LandmarkMaps(("nose",), np.zeros((1, 5, 2)))
    pose = SimpleNamespace(keypoints=np.zeros((2, 2), np.float32), scores=np.ones(2, np.float32))
    assert len(describe_landmarks(maps, pose, Frame(0, 0, 64), answer)) == count


async def test_boxes_put_the_landmarks_where_they_belong(http, dog, consumer, labelled, make_picture):
    pictures, places, labels = labelled()
    rng = np.random.default_rng(1)
    boxes = []  # around the disc, but never in its middle, and of another shape than the picture
    for width, height, where in places.values():
        x, y = np.array(where) * (width, height) + rng.uniform(-12, 12, 2)
        boxes.append([x - 30, y - 25, 60, 50])
    done = await fit(http, pictures, labels, boxes=json.dumps(boxes))
    assert done.status_code == 201, done.text
    width, height, where = 120, 80, (0.3, 0.5)
    files = [("images", ("new.png", make_picture(width, height, where)))]
    data = {"category": "dog", "landmarks": "anatomy", "boxes": json.dumps([[10, 10, 60, 60]])}
    (image,) = (await http.post("/estimate", data=data, files=files)).json()["images"]
    nose = next(point for point in image["landmarks"] if point["name"] == "nose")
    assert (nose["x"], nose["y"]) == pytest.approx((where[0] * width, where[1] * height), abs=2)


async def test_boxes_with_angles_turn_the_pictures_that_landmarks_are_fitted_on(
    http, dog, consumer, labelled, make_picture, data_root
):
    config = data_root / "categories" / "dog" / "versions" / NEW / "config.json"
    write_json(config, {**json.loads(config.read_text()), "align": "heading"})
    pictures, places, labels = labelled()
    upright = [[w * x - 30, h * y - 25, 60, 50] for w, h, (x, y) in places.values()]
    rng = np.random.default_rng(1)
    boxes = [[*(np.array(box[:2]) + rng.uniform(-9, 9, 2)), 60, 50, rng.uniform(0, 360)] for box in upright]
    done = await fit(http, pictures, labels, boxes=json.dumps(boxes))
    assert done.status_code == 201, done.text
    files = [("images", ("new.png", make_picture(120, 80, (0.3, 0.5))))]
    data = {"category": "dog", "landmarks": "anatomy", "boxes": json.dumps([[10, 10, 60, 60, 200]])}
    (image,) = (await http.post("/estimate", data=data, files=files)).json()["images"]
    nose = next(point for point in image["landmarks"] if point["name"] == "nose")
    assert (nose["x"], nose["y"]) == pytest.approx((0.3 * 120, 0.5 * 80), abs=2)


async def test_set_is_listed_shown_and_deleted(http, dog, consumer, labelled, problem):
    pictures, _, labels = labelled()
    await fit(http, pictures, labels)
    await fit(http, pictures, labels, "other", version=OLD)
    page = (await http.get("/priors/dog/landmarks")).json()
    LandmarksPage.model_validate(page)
    assert [(item["version"], item["name"], item["images"]) for item in page["items"]] == [(NEW, "anatomy", 12)]
    shown = (await http.get("/priors/dog/landmarks/anatomy")).json()
    Landmarks.model_validate(shown)
    problem(await http.get(f"/priors/dog/landmarks/anatomy?version={OLD}"), 404, "unknown_landmarks")
    assert (await http.get(f"/priors/dog/landmarks/other?version={OLD}")).status_code == 200
    assert (await http.delete("/priors/dog/landmarks/anatomy")).status_code == 204
    problem(await http.delete("/priors/dog/landmarks/anatomy"), 404, "unknown_landmarks")
    assert (await http.get("/priors/dog/landmarks")).json()["items"] == []


async def test_estimate_with_landmarks_that_there_are_not_is_refused(http, dog, consumer, labelled, problem):
    pictures, _, labels = labelled()
    await fit(http, pictures, labels)

    async def estimate(**data):
        files = [("images", ("a.png", pictures["000.png"]))]
        return await http.post("/estimate", data={"category": "dog", **data}, files=files)

    assert (await estimate(landmarks="anatomy")).status_code == 200
    document = problem(await estimate(landmarks="anatom"), 404, "unknown_landmarks")
    assert "anatomy" in document["detail"]
    problem(await estimate(landmarks="anatomy", version=OLD), 404, "unknown_landmarks")
    problem(await estimate(landmarks="../anatomy"), 422, "bad_landmarks")
    await http.delete("/priors/dog/landmarks/anatomy")
    problem(await estimate(landmarks="anatomy"), 404, "unknown_landmarks")


async def test_name_that_is_taken_is_refused_before_the_work(http, dog, consumer, labelled, problem):
    pictures, _, labels = labelled()
    await fit(http, pictures, labels)
    batches = len(consumer.batches)
    problem(await fit(http, pictures, labels), 409, "name_taken")
    assert len(consumer.batches) == batches


async def test_of_two_gateways_that_fit_one_name_one_wins(serve, dog, consumer, labelled):
    pictures, _, labels = labelled(6)
    gateways = [await serve(), await serve()]
    answers = await asyncio.gather(*(fit(http, pictures, labels) for http in gateways))
    assert sorted(answer.status_code for answer in answers) == [201, 409]


async def test_coco_and_hidden_labels_are_taken(http, dog, consumer, labelled):
    pictures, places, _ = labelled(8)
    images, annotations = [], []
    for number, (name, (width, height, where)) in enumerate(places.items()):
        images.append({"id": number, "file_name": f"some/folder/{name}", "width": width, "height": height})
        (x, y), (u, v) = truth(width, height, where).values()
        seen = 2 if number % 2 else 0
        annotations.append({"id": number, "image_id": number, "keypoints": [x, y, 2, u * (seen > 0), v, seen]})
    category = {"id": 1, "name": "dog", "keypoints": ["nose", "paw"]}
    coco = {"images": images, "annotations": annotations, "categories": [category]}
    answer = await fit(http, pictures, json.dumps(coco).encode())
    assert answer.status_code == 201, answer.text
    assert [one["visible"] for one in answer.json()["cross_validation"]["per_landmark"]] == [8, 4]
    assert answer.json()["cross_validation"]["error_percent"] < 2


async def test_pictures_without_labels_and_labels_without_pictures_are_counted(http, dog, consumer, labelled):
    pictures, _, labels = labelled(12)
    last = pictures.popitem()[1]
    found = (await fit(http, {**pictures, "extra.png": last}, labels)).json()
    assert (found["images"], found["unlabelled_images"], found["labels_without_image"]) == (11, 1, 1)


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"count": 4}, 422, "bad_landmarks", "at least 5"),
        ({"labels": b"image,keypoint\n"}, 422, "bad_labels", "header"),
        ({"labels": b"image,keypoint,x,y\nother.png,nose,3,4\n"}, 422, "bad_labels", "other.png"),
        ({"labels": None}, 422, "bad_labels", "labels"),
        ({"name": "No/pe"}, 422, "bad_landmarks", "No/pe"),
        ({"name": ""}, 422, "bad_request", "name"),
        ({"version": "nosuch"}, 404, "unknown_version", "nosuch"),
        ({"colour": "red"}, 422, "bad_request", "colour"),
        ({"rare": True}, 422, "bad_landmarks", "'tail' is visible in 2"),
        ({"far": True}, 422, "bad_labels", "far outside"),
        ({"labels": "surrogate"}, 422, "bad_landmarks", "printable"),
        ({"junk": True}, 415, "not_an_image", "images[3] (003.png)"),
        ({"pictures": {}}, 422, "no_images", "no picture"),
    ],
)
async def test_what_can_not_be_fitted_is_refused(
    http, dog, consumer, labelled, problem, no_trace, change, status, code, said
):
    pictures, _, labels = labelled(change.pop("count", 8))
    pictures, labels = change.pop("pictures", pictures), change.pop("labels", labels)
    if labels == "surrogate":
        sizes = [dict(zip(("width", "height"), SIZES[number % 3], strict=True)) for number in range(len(pictures))]
        labels = json.dumps(
            {
                "images": [{"id": name, "file_name": name, **size} for name, size in zip(pictures, sizes, strict=True)],
                "annotations": [{"image_id": name, "keypoints": [3, 4, 2]} for name in pictures],
                "categories": [{"keypoints": ["\ud800"]}],
            }
        ).encode()
    if change.pop("rare", False):
        labels += b"\n000.png,tail,3,4,1\n001.png,tail,5,6,1"
    if change.pop("far", False):
        labels += b"".join(b"\n%03d.png,tail,900,4,1" % number for number in range(3))
    if change.pop("junk", False):
        pictures["003.png"] = b"junk"
    document = problem(await fit(http, pictures, labels, **change), status, code)
    assert said in document["detail"]
    if not consumer.batches:  # the queue leaves keys of its own
        no_trace()


async def test_labels_of_another_size_of_the_pictures_are_refused(http, dog, consumer, labelled, problem):
    """Made on thumbnails, say; a map would take the scale up without a word."""
    pictures, places, _ = labelled()
    for scale, turned, status in ((0.5, False, 422), (1, True, 422), (1, False, 201)):
        rows = ["image,keypoint,x,y,width,height"]
        for name, (width, height, where) in places.items():
            x, y = truth(width, height, where)["nose"]
            size = [int(side * scale) for side in (width, height)]
            size = size[::-1] if turned and name == "000.png" else size  # as stored, before its EXIF orientation
            rows.append(f"{name},nose,{x * scale},{y * scale},{size[0]},{size[1]}")
        answer = await fit(http, pictures, "\n".join(rows).encode())
        assert answer.status_code == status, answer.text
        if status == 422:
            said = "has 64 x 96 pixels" if turned else "has 48 x 32 pixels"
            expected = f"'000.png' {said}, and the picture that came has 96 x 64"
            assert expected in problem(answer, 422, "bad_labels")["detail"]


async def test_two_boxes_of_a_labelled_picture_are_refused(http, dog, consumer, labelled, problem):
    pictures, _, labels = labelled()
    text = "image,x,y,width,height\n" + "".join(f"{name},1,2,30,30\n" for name in pictures)
    for more in ("003.png,9,9,30,30\n", ""):
        answer = await fit(http, pictures, labels, boxes=text + more)
        if more:
            assert "boxes[3] has 2 boxes; labels are for one" in problem(answer, 422, "bad_boxes")["detail"]
    assert answer.status_code == 201, answer.text


async def test_labels_of_another_size_are_scaled_on_request(http, dog, consumer, labelled, problem):
    pictures, places, labels = labelled()
    found = {}
    for scale, how in ((1, "exact"), (0.5, "scale")):
        rows = ["image,keypoint,x,y,width,height"]
        for name, (width, height, where) in places.items():
            x, y = (np.array(truth(width, height, where)["nose"]) + 0.5) * scale - 0.5
            rows.append(f"{name},nose,{x},{y},{int(width * scale)},{int(height * scale)}")
        answer = await fit(http, pictures, "\n".join(rows).encode(), how, labels_fit=how)
        assert answer.status_code == 201, answer.text
        found[how] = answer.json()
    assert found["scale"]["cross_validation"]["error_px"] == pytest.approx(
        found["exact"]["cross_validation"]["error_px"], abs=1e-3
    )
    refused = await fit(http, pictures, labels, "third", labels_fit="stretch")
    assert "labels_fit is 'stretch'; expected exact or scale" in problem(refused, 422, "bad_request")["detail"]
    refused = await fit(http, pictures, labels, "third", labels_fit="scale")
    assert "state no size" in problem(refused, 422, "bad_labels")["detail"]


async def test_limits_on_pictures_and_bytes(serve, dog, consumer, labelled, problem):
    pictures, _, labels = labelled(8)
    http = await serve(landmarks_max_images=7)
    problem(await fit(http, pictures, labels), 413, "too_many_images")
    http = await serve(landmarks_max_bytes=2000)
    problem(await fit(http, pictures, labels), 413, "body_too_large")
    http = await serve()
    too_long = labels + b" " * MAX_FIT_LABELS_BYTES
    assert "'labels' has more than" in problem(await fit(http, pictures, too_long), 413, "body_too_large")["detail"]


async def test_more_pictures_than_a_batch_go_in_parts(serve, dog, consumer, labelled):
    http = await serve(batch_limit=4)
    pictures, _, labels = labelled(10)
    assert (await fit(http, pictures, labels)).status_code == 201
    assert [batch.count for batch in consumer.batches] == [4, 4, 2]


async def test_without_a_worker_the_answer_says_so(serve, dog, labelled, problem):
    http = await serve(estimate_timeout_s=0.3)
    pictures, _, labels = labelled(6)
    problem(await fit(http, pictures, labels), 503, "worker_unavailable")


async def test_stored_landmarks_that_are_damaged_are_a_fault_of_the_server(
    http, dog, consumer, labelled, problem, data_root
):
    pictures, _, labels = labelled(6)
    await fit(http, pictures, labels)
    (path,) = (data_root / "categories" / "dog" / "additions" / NEW / "landmarks").glob("*.json")
    document = json.loads(path.read_text())
    document["maps"][0].pop()
    path.write_text(json.dumps(document))
    problem(await http.get("/priors/dog/landmarks/anatomy"), 500, "store_corrupt")

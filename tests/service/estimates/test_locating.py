"""Estimates of the part of a picture or frame in which the thing is: found by motion, or sent in a file of boxes."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from model.version.palette import BOX_RGB
from service.client import png_bytes
from service.contract.durable_files import write_json
from service.contract.media.fitting import fit_square
from service.contract.media.motion import MotionLocator
from service.contract.media.pictures import PictureLimits, open_picture
from service.contract.messages import BatchReply
from service.estimates.batching import Batcher
from service.estimates.boxes import PictureBoxes
from service.estimates.pictures import Upload
from service.runtime.settings import Settings
from tests.service.conftest import RESPOND_ASYNC
from tests.support.arena import BODY, arena_frame, encode_film, walk, walk_angles, walker_frame

from .test_background import ended

COUNT, EMPTY = 12, 7
PLACES = walk(COUNT)


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def film_of(places, scale: int = 1) -> bytes:
    return encode_film((arena_frame(place, number) for number, place in enumerate(places)), scale)


def train_with(data_root, version: str, **settings: str) -> None:
    """Change the settings that a published version was trained with."""
    config = data_root / "categories" / "dog" / "versions" / version / "config.json"
    write_json(config, {**json.loads(config.read_text()), **settings})


@pytest.fixture(scope="module")
def film() -> dict[str, tuple[str, bytes]]:
    """A walk through an arena, which is empty in one frame."""
    places = [None if n == EMPTY else (x, y) for n, (x, y) in enumerate(PLACES)]
    return {"video": ("walk.mkv", film_of(places))}


def centre(region) -> np.ndarray:
    return np.array([region["x"] + region["width"] / 2, region["y"] + region["height"] / 2])


async def test_frames_of_a_video_are_cut_out_around_what_moves(send, publish, consumer, film):
    publish("dog")
    found = (await send(film, headers={})).json()
    assert [image["frame"] for image in found["images"]] == [n for n in range(COUNT) if n != EMPTY]
    (error,) = found["errors"]
    assert (error["code"], error["frame"]) == ("nothing_found", EMPTY)
    assert "walk.mkv#000007" in error["detail"]
    sides = set()
    for image in found["images"]:
        region = image["region"]
        assert np.linalg.norm(centre(region) - PLACES[image["frame"]]) < 0.1 * BODY
        assert 0.5 < region["confidence"] <= 1
        sides.add((region["width"], region["height"]))
        corner, side = np.array([region["x"], region["y"]]), region["width"]
        points = np.array([(point["x"], point["y"]) for point in image["keypoints"]])
        assert (np.abs(points - corner - side / 2) < side).all(), "coordinates stay in the whole frame"
    assert len(sides) == 1
    squares = np.concatenate(consumer.pixels)
    assert len(squares) == COUNT - 1
    assert (squares[:, 28:36, 28:36].mean(axis=(1, 2, 3)) < 80).all(), "the thing is in the middle"


async def test_motion_is_looked_for_in_small_frames_and_poses_in_full_ones(send, publish, consumer, monkeypatch):
    publish("dog")
    sizes, add = [], MotionLocator.add

    def note(self, image, size):
        sizes.append((image.size, size))
        add(self, image, size)

    monkeypatch.setattr(MotionLocator, "add", note)
    film = {"video": ("walk.mkv", film_of(((x, y) for x, y in PLACES), scale=2))}
    found = (await send(film, headers={})).json()["images"]
    assert sizes == COUNT * [((320, 240), (640, 480))]
    assert {(image["width"], image["height"]) for image in found} == {(640, 480)}
    for image, place in zip(found, PLACES, strict=True):
        assert np.linalg.norm(centre(image["region"]) - 2 * place) < 0.2 * BODY


async def test_whole_frames_on_request_and_of_a_version_trained_on_them(send, publish, consumer, film, data_root):
    version = publish("dog")
    whole = (await send(film, headers={}, locate="off")).json()
    assert len(whole["images"]) == COUNT
    assert not any("region" in image for image in whole["images"])
    train_with(data_root, version, locate="off")
    assert len((await send(film, headers={}, every="6")).json()["images"]) == 2


async def test_boxes_are_given_as_csv_edited_and_sent_back(http, send, publish, consumer, film):
    publish("dog")
    text = (await send(film, headers={}, format="boxes")).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == [f"walk.mkv#{n:06}" for n in range(COUNT)]
    assert rows[EMPTY]["x"] == ""
    lines = text.splitlines()
    lines[1 + EMPTY] = f"walk.mkv#{EMPTY:06},10,20,60,60,"
    boxes = "\n".join(lines[:-1])  # and the last frame is left out
    sent = {**film, "boxes": ("boxes.csv", boxes.encode())}
    found = (await send(sent, headers={}, locate="off")).json()
    assert [image["frame"] for image in found["images"]] == list(range(COUNT - 1))
    edited = found["images"][EMPTY]["region"]
    assert edited == {"x": 10, "y": 20, "width": 60, "height": 60, "confidence": None}
    assert found["images"][0]["region"]["x"] == float(rows[0]["x"])
    assert [error["frame"] for error in found["errors"]] == [COUNT - 1]
    accepted = await send(sent, headers=RESPOND_ASYNC, format="coco", locate="off")
    coco = (await http.get(f"/estimates/{(await ended(http, accepted.json()['id']))['id']}/result")).json()
    assert coco["annotations"][EMPTY]["bbox"] == [10, 20, 60, 60]


async def test_boxes_of_some_frames_hold_there_and_motion_for_the_others(http, send, publish, consumer, film):
    publish("dog")
    alone = (await send(film, headers={})).json()["images"]
    boxes = (
        f"image,x,y,width,height\nwalk.mkv#000002,10,20,60,60\nwalk.mkv#{EMPTY:06},30,40,50,50\nwalk.mkv#000009,,,,\n"
    )
    sent = {**film, "boxes": ("boxes.csv", boxes.encode())}
    answers = [(await send(sent, headers={})).json(), (await send(sent, headers={}, locate="motion")).json()]
    accepted = await send(sent, headers=RESPOND_ASYNC)
    answers.append((await ended(http, accepted.json()["id"]))["result"])
    kept = {image["frame"]: {**image["region"], "by": "motion"} for image in alone if image["frame"] not in (2, 9)}
    own = {2: (10, 20, 60, 60), EMPTY: (30, 40, 50, 50)}
    for found in answers:
        regions = {image["frame"]: image["region"] for image in found["images"]}
        assert {frame: region for frame, region in regions.items() if frame not in own} == kept
        for frame, box in own.items():
            assert tuple(regions[frame][name] for name in ("x", "y", "width", "height")) == box
            assert regions[frame]["by"] == "boxes"
        assert [(error["frame"], error["code"]) for error in found["errors"]] == [(9, "nothing_found")]
    assert sorted(regions) == [n for n in range(COUNT) if n != 9]


async def test_a_file_that_only_says_where_nothing_is_leaves_these_frames_out(send, publish, consumer, film, problem):
    publish("dog")
    sent = {**film, "boxes": ("boxes.csv", b"image,x,y,width,height\nwalk.mkv#000009,,,,\nwalk.mkv#000002,,,,\n")}
    found = (await send(sent, headers={})).json()
    assert [image["frame"] for image in found["images"]] == [n for n in range(COUNT) if n not in (2, EMPTY, 9)]
    assert {image["region"]["by"] for image in found["images"]} == {"motion"}
    detail = problem(await send(sent, headers={}, locate="off"), 422, "bad_boxes")["detail"]
    assert "name 2 pictures or frames in which nothing is, and have no box" in detail
    empty = {**film, "boxes": ("boxes.csv", b"image,x,y,width,height\n,,,,\n")}
    detail = problem(await send(empty, headers={}), 422, "bad_boxes")["detail"]
    assert "the boxes have a header and no row" in detail


async def test_where_motion_is_not_sure_only_frames_with_a_box_have_a_pose(send, publish, consumer):
    publish("dog")
    film = encode_film(arena_frame((x, y), n, shift=25 * n) for n, (x, y) in enumerate(PLACES))
    boxes = b"image,x,y,width,height\nwalk.mkv#000003,10,20,60,60\n"
    found = (await send({"video": ("walk.mkv", film), "boxes": ("boxes.csv", boxes)}, headers={})).json()
    assert [image["frame"] for image in found["images"]] == [3]
    assert found["images"][0]["region"] == {"x": 10, "y": 20, "width": 60, "height": 60, "confidence": None}
    assert len(found["errors"]) == COUNT - 1


async def test_files_that_name_all_frames_with_a_thing_are_filled_on_request_alone(
    send, publish, consumer, film, problem
):
    """And not at all by motion if they number animals, of which it finds but one."""
    publish("dog")
    detection = {"category": "1", "conf": 0.9, "bbox": [0.25, 0.25, 0.5, 0.5], "frame_number": 4}
    document = {
        "detection_categories": {"1": "animal"},
        "images": [{"file": "walk.mkv", "frame_rate": 25, "detections": [detection]}],
    }
    numbered = b"image,x,y,width,height,animal\nwalk.mkv#000004,80,60,160,120,1\n"
    for boxes in (json.dumps(document).encode(), numbered):
        sent = {**film, "boxes": ("boxes", boxes)}
        for asked in ({}, {"locate": "auto"}, {"locate": "off"}):
            assert [image["frame"] for image in (await send(sent, headers={}, **asked)).json()["images"]] == [4]
        answer = await send(sent, headers={}, locate="motion")
        if boxes == numbered:
            assert "the boxes number animals" in problem(answer, 422, "bad_boxes")["detail"]
        else:
            by = {image["frame"]: image["region"]["by"] for image in answer.json()["images"]}
            assert by == {n: "boxes" if n == 4 else "motion" for n in range(COUNT) if n != EMPTY}


async def test_pictures_of_one_camera_are_located_together(http, send, publish, consumer):
    publish("dog")
    files = []
    for number, (x, y) in enumerate(PLACES):
        data = io.BytesIO()
        arena_frame((x, y), number).save(data, "JPEG", quality=95)
        files.append(("images", (f"{number}.jpg", data.getvalue())))
    answers = [(await send(files, headers={}, locate="motion")).json()]
    accepted = await send(files, headers=RESPOND_ASYNC, locate="motion")
    answers.append((await ended(http, accepted.json()["id"]))["result"])
    for found in answers:
        for image, place in zip(found["images"], PLACES, strict=True):
            assert np.linalg.norm(centre(image["region"]) - place) < 0.1 * BODY


async def test_boxes_of_some_pictures_of_one_camera_hold_there_and_motion_for_the_others(http, send, publish, consumer):
    publish("dog")
    files = [("images", (f"{n}.png", png(arena_frame((x, y), n)))) for n, (x, y) in enumerate(PLACES)]
    boxes = ("boxes.csv", b"image,x,y,width,height\n3.png,10,20,60,60\n5.png,,,,\n")
    alone = (await send(files, headers={}, locate="motion")).json()["images"]
    regions = {image["index"]: {**image["region"], "by": "motion"} for image in alone if image["index"] != 5}
    regions[3] = {"x": 10, "y": 20, "width": 60, "height": 60, "confidence": None, "by": "boxes"}
    accepted = await send([*files, ("boxes", boxes)], headers=RESPOND_ASYNC, locate="motion")
    found = (await ended(http, accepted.json()["id"]))["result"]
    assert {image["index"]: image["region"] for image in found["images"]} == regions
    assert [(error["index"], error["code"]) for error in found["errors"]] == [(5, "nothing_found")]


async def test_megadetectors_boxes_of_pictures(send, publish, consumer, make_picture, problem):
    publish("dog")
    animals = [{"category": "1", "conf": conf, "bbox": [0.25, 0, 0.5, 1]} for conf in (0.9, 0.8)]
    document = {
        "detection_categories": {"1": "animal"},
        "images": [
            {"file": "cam/one.png", "detections": animals[:1]},
            {"file": "cam/two.png", "detections": animals},
            {"file": "cam/none.png", "detections": []},
        ],
    }
    boxes = ("md.json", json.dumps(document).encode("utf-16"))
    one, two, none = (("images", (f"{name}.png", make_picture())) for name in ("one", "two", "none"))
    found = (await send([one, two, ("boxes", boxes)], headers={})).json()
    assert [(image["index"], image.get("box")) for image in found["images"]] == [(0, None), (1, 0), (1, 1)]
    region = found["images"][0]["region"]  # with a margin of a tenth of its longer side
    expected = {"x": 24 - 6.4, "y": -6.4, "width": 48 + 12.8, "height": 64 + 12.8, "confidence": 0.9}
    assert region == pytest.approx(expected)
    detail = problem(await send([none, ("boxes", boxes)], headers={}), 422, "nothing_found")["detail"]
    assert "none.png" in detail


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"locate": "here"}, "bad_request"),
        ({"locate": "auto"}, "bad_request"),
        ({"align": "left"}, "bad_request"),
        ({"boxes": "[[0, 0, 30, 30, 361], null, null]"}, "bad_boxes"),
        ({"boxes": "[[0, 0, 30, 30, 1, 1], null, null]"}, "bad_boxes"),
        ({"locate": "motion", "boxes": "[null, null, null]"}, "bad_request"),
        ({"boxes": "image,x,y\n"}, "bad_boxes"),
        ({"boxes": "image,x,y,width,height\n"}, "bad_boxes"),
        ({"boxes": "image,x,y,width,height\n0.png,,,,\n"}, "bad_boxes"),
    ],
)
async def test_fields_that_do_not_fit_are_refused(send, publish, consumer, problem, fields, code):
    publish("dog")
    problem(await send(headers={}, **fields), 422, code)


def drawn_in(data_url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png_bytes(data_url))))


async def test_what_is_found_in_a_turned_box_is_turned_back(send, publish, consumer, make_picture):
    publish("dog")
    disc = np.array((0.4 * 96, 0.6 * 64))
    picture = [("images", ("a.png", make_picture(where=(0.4, 0.6))))]
    x, y, side, angle = 20.0, 10.0, 50.0, 30.0
    boxes = json.dumps([[x, y, side, side, angle]])
    asked = {"align": "heading", "include": "overlay,link_map"}
    (found,) = (await send(picture, headers={}, boxes=boxes, **asked)).json()["images"]
    region = found["region"]
    assert [region[name] for name in ("x", "y", "width", "height", "angle")] == [x, y, side, side, angle]
    points = np.array([(point["x"], point["y"]) for point in found["keypoints"]])
    np.testing.assert_allclose(points[0], disc, atol=0.2)
    # the model finds the others to the right of it, below, to the left and above, at a fifth of half the square
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    right, below = np.array((cos, sin)) * side / 10, np.array((-sin, cos)) * side / 10
    np.testing.assert_allclose(points[1:] - points[0], [right, below, -right, -below], atol=0.002)
    links = drawn_in(found["link_map"]).astype(float)
    rows, columns = np.indices(links.shape)
    np.testing.assert_allclose([(links * at).sum() / links.sum() for at in (columns, rows)], disc, atol=0.3)
    # the box is drawn turned, with a mark ahead
    overlay, middle = drawn_in(found["overlay"]).astype(int), np.array((x, y)) + side / 2 - 0.5
    for way in (np.array((cos, sin)), np.array((-sin, cos)), -np.array((cos, sin)), 1.1 * np.array((sin, -cos))):
        column, row = np.rint(middle + way * side / 2).astype(int)
        near = overlay[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(-1, 3)
        assert (np.abs(near - BOX_RGB).max(axis=1) < 60).any(), way
    (upright,) = (await send(picture, headers={}, boxes=boxes)).json()["images"]
    assert "angle" not in upright["region"], "the version was trained on upright pictures"
    points = np.array([(point["x"], point["y"]) for point in upright["keypoints"]])
    np.testing.assert_allclose(points[:2] - disc, [(0, 0), (side / 10, 0)], atol=0.2)


async def test_a_version_of_turned_pictures_gets_them_turned(http, send, publish, consumer, data_root):
    train_with(data_root, publish("dog"), align="heading")
    count = 24
    places, angles = walk(count), walk_angles(count)
    frames = (walker_frame((x, y), angle, n) for n, ((x, y), angle) in enumerate(zip(places, angles, strict=True)))
    film = {"video": ("walk.mkv", encode_film(frames))}
    answer = (await send(film, headers={})).json()
    assert answer["errors"] == []
    found = answer["images"]
    turned = np.array([image["region"]["angle"] for image in found])
    assert np.abs((turned - angles + 180) % 360 - 180).max() < 6
    assert min(image["region"]["angle_confidence"] for image in found) > 0.5
    squares = np.concatenate(consumer.pixels)
    dark = squares[..., 0] < 90
    assert dark[:, 14, 28:36].any(1).all(), "the head is ahead in every square"
    assert not dark[:, 26:38, :14].any(), "and nothing is beside it"
    text = (await http.post("/estimate", data={"category": "dog", "format": "boxes"}, files=film)).text
    assert text.splitlines()[0] == "image,x,y,width,height,confidence,angle,angle_confidence"
    again = (await send({**film, "boxes": ("boxes.csv", text.encode())}, headers={})).json()["images"]
    assert [image["region"] for image in again] == [image["region"] for image in found]
    assert [image["keypoints"] for image in again] == [image["keypoints"] for image in found]
    coco = (await send({**film, "boxes": ("boxes.csv", text.encode())}, headers={}, format="coco")).json()
    assert [each["angle"] for each in coco["annotations"]] == turned.tolist()
    upright = (await send({**film, "boxes": ("boxes.csv", text.encode())}, headers={}, align="off")).json()["images"]
    assert len(upright) == count
    assert not any("angle" in image["region"] for image in upright)


def see_it_above(reply: BatchReply) -> None:
    """Set a high presence for squares with the disc in their upper half."""
    reply.presences[:] = 1 / (1 + np.exp(12 * reply.keypoints[:, 0, 1]))


async def test_heading_of_a_picture_without_an_angle_is_found_by_trying(
    send, publish, make_consumer, make_picture, data_root
):
    version = publish("dog")
    train_with(data_root, version, align="heading")
    consumer = await make_consumer(see_it_above)
    # the disc is at (48, 32): left of the middle of the first box, right of and below that of the second, and above
    # that of the whole picture
    pictures = [
        ("images", ("a.png", make_picture())),
        ("images", ("b.png", make_picture(where=(0.5, 0.25)))),
    ]
    boxes = json.dumps([[[40, 12, 40, 40], [22, 6, 40, 40]], None])
    found = (await send(pictures, headers={}, boxes=boxes, refine_steps="2")).json()["images"]
    assert [image["region"]["angle"] for image in found] == [270, 135, 0]
    assert [image["region"]["width"] for image in found] == [40, 40, 96]
    chances = [1 / (1 + np.exp(12 * y)) for y in (-12 / 20, -np.hypot(6, 6) / 20, -16 / 48)]
    for image, chance, disc in zip(found, chances, ((48, 32), (48, 32), (48, 16)), strict=True):
        lead = np.log(chance / (1 - chance)) * (1 - np.cos(np.radians(75)))
        assert image["region"]["angle_confidence"] == pytest.approx(np.tanh(lead / 2), abs=0.1)
        nose = image["keypoints"][0]
        assert (nose["x"], nose["y"]) == pytest.approx(disc, abs=0.3)
        assert image["present"] == pytest.approx(chance, abs=0.05)
    # 24 directions each without refinement, then the three chosen ones
    assert sorted(len(pixels) for pixels in consumer.pixels)[-1] <= 32
    assert sum(len(pixels) for pixels in consumer.pixels) == 3 * 24 + 3
    # known angles are not tried, and a version of upright pictures is not rotated
    consumer.pixels.clear()
    await send(pictures[:1], headers={}, boxes="[[40, 12, 40, 40, 270]]")
    await send(pictures[:1], headers={}, boxes="[[40, 12, 40, 40]]", align="off")
    assert sum(len(pixels) for pixels in consumer.pixels) == 2


async def test_directions_are_cut_out_a_box_at_a_time(make_picture):
    data, boxes = make_picture(), ((40.0, 12.0, 40.0, 40.0), (22.0, 6.0, 40.0, 40.0), None)
    upload, limits = Upload(3, "a.png", lambda: data, PictureBoxes(boxes, numbered=True)), PictureLimits.of(Settings())
    fitted = upload.fit(64, limits, aligned=True)
    assert [(each.square.shape, each.is_undirected) for each in fitted] == 3 * [((64, 64, 3), True)]
    picture = open_picture(data, limits)
    for number, (box, whole) in enumerate(zip(fitted, (*boxes[:2], (0, 0, 96, 64)), strict=True)):
        for step, each in enumerate(upload.fit_directions(box, 64, limits)):
            square, frame = fit_square(picture, 64, whole, 15 * step)
            np.testing.assert_array_equal(each.square, square)
            assert (each.frame, each.region.box, each.region.angle) == (frame, whole, 15 * step)
            assert (each.index, each.number, each.is_undirected) == (3, number, False)
        assert step == 23


async def test_heading_is_found_where_fewer_pictures_may_wait_than_directions(
    send, serve, publish, make_consumer, make_picture, data_root
):
    train_with(data_root, publish("dog"), align="heading")
    consumer = await make_consumer(see_it_above)
    http = await serve(max_images=2, queue_limit=5)
    picture = {"images": ("a.png", make_picture())}
    fields = {"category": "dog", "boxes": "[[40, 12, 40, 40]]"}
    found = (await http.post("/estimate", data=fields, files=picture)).json()
    assert found["images"][0]["region"]["angle"] == 270
    assert sum(map(len, consumer.pixels)) == 24 + 1
    # the model's time in all of these batches, 3 ms each
    assert found["timing_ms"]["model"] == 3 * len(consumer.batches) == 3 * (5 + 1)


async def test_pictures_of_a_stream_leave_room_in_the_queue_while_their_heading_is_found(
    serve, publish, make_consumer, make_picture, data_root, monkeypatch
):
    train_with(data_root, publish("dog"), align="heading")
    consumer = await make_consumer(see_it_above)
    consumer.gate.clear()
    counts, check_room = [], Batcher.check_room

    def note(self, count):
        counts.append(self.pending + count)
        if len(counts) == 2:
            consumer.gate.set()
        check_room(self, count)

    monkeypatch.setattr(Batcher, "check_room", note)
    http = await serve()
    pictures = [("images", (f"{n}.png", make_picture())) for n in range(12)]
    fields = {"category": "dog", "boxes": json.dumps([[40, 12, 40, 40]] * 12)}
    headers = {"Accept": "application/jsonl"}
    *lines, summary = (await http.post("/estimate", data=fields, files=pictures, headers=headers)).text.splitlines()
    found = {line["index"]: line["region"]["angle"] for line in map(json.loads, lines)}
    assert found == dict.fromkeys(range(12), 270), summary
    assert 48 <= max(counts) <= 2 * 24 + 12
    assert sum(map(len, consumer.pixels)) == 12 * 25


async def test_each_animal_of_a_picture_has_a_pose_with_or_without_an_angle(
    send, publish, make_consumer, make_picture, data_root
):
    train_with(data_root, publish("dog"), align="heading")
    await make_consumer(see_it_above)
    boxes = b"image,x,y,width,height,angle,animal\na.png,40,12,40,40,,1\na.png,22,6,40,40,90,2\n"
    sent = {"images": ("a.png", make_picture()), "boxes": ("boxes.csv", boxes)}
    found = (await send(sent, headers={})).json()["images"]
    assert [(image["box"], image["region"]["angle"]) for image in found] == [(1, 270), (2, 90)]


@pytest.mark.parametrize("count", [23, 24])
async def test_boxes_of_all_frames_without_angles_get_the_headings_of_motion(send, publish, consumer, data_root, count):
    """As those of some frames do."""
    train_with(data_root, publish("dog"), align="heading")
    places, angles = walk(24), walk_angles(24)
    film = {"video": ("walk.mkv", encode_film(map(walker_frame, map(tuple, places), angles, range(24))))}
    rows = [f"walk.mkv#{n:06},{x - 33:.1f},{y - 30:.1f},66,60" for n, (x, y) in enumerate(places[:count])]
    boxes = ("boxes.csv", "\n".join(["image,x,y,width,height", *rows]).encode())
    answer = (await send({**film, "boxes": boxes}, headers={})).json()
    assert answer["errors"] == []
    turned = np.array([image["region"]["angle"] for image in answer["images"]])
    assert np.abs((turned - angles + 180) % 360 - 180).max() < 6
    assert [image["region"]["width"] for image in answer["images"][:count]] == [66] * count
    alone = (await send({**film, "boxes": boxes}, headers={}, locate="off")).json()
    assert (alone["images"], alone["errors"][0]["code"]) == ([], "no_heading")


async def test_nothing_is_turned_where_the_way_it_looks_is_not_known(send, publish, consumer, film, data_root, problem):
    train_with(data_root, publish("dog"), align="heading")
    assert len((await send(headers={}, align="off")).json()["images"]) == 3
    boxes = ("b.csv", b"image,x,y,width,height,angle\nw.mkv#0,9,9,60,60,0\nw.mkv#1,9,9,60,60,\n")
    found = (await send({**film, "boxes": boxes}, headers={}, locate="off")).json()
    assert [image["frame"] for image in found["images"]] == [0]
    assert [error["code"] for error in found["errors"]] == ["no_heading"] + ["nothing_found"] * (COUNT - 2)

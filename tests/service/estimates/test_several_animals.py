"""Several animals in a video: a box and a pose each, with a number that it keeps, in every format."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from tests.service.conftest import RESPOND_ASYNC
from tests.support.arena import BODY, encode_film, pair_frame, pass_by

from .test_background import ended
from .test_locating import centre

COUNT = 40
AWAY = range(3, 6)  # frames without the second animal
PLACES = pass_by(COUNT, 0.45 * BODY)


@pytest.fixture(scope="module")
def film() -> dict[str, tuple[str, bytes]]:
    """Two that meet in the middle and go on; one is away for some frames before."""
    frames = []
    for number, (one, other) in enumerate(PLACES):
        frames.append(pair_frame([tuple(one), None if number in AWAY else tuple(other)], number))
    return {"video": ("pair.mkv", encode_film(frames))}


def numbers_of(images: list[dict]) -> dict[int, int]:
    """Return the number of each animal, by where it is in the first frame."""
    first = [image for image in images if image["frame"] == 0]
    return {
        animal: min(first, key=lambda image: np.linalg.norm(centre(image["region"]) - PLACES[0, animal]))["box"]
        for animal in (0, 1)
    }


async def test_each_has_a_pose_in_every_frame_in_which_it_is(send, publish, consumer, film):
    publish("dog")
    found = (await send(film, headers={}, max_animals="3")).json()
    assert found["errors"] == []
    numbers = numbers_of(found["images"])
    assert sorted(numbers.values()) == [0, 1]
    sizes = set()
    for frame in range(COUNT):
        images = {image["box"]: image for image in found["images"] if image["frame"] == frame}
        assert set(images) == ({numbers[0]} if frame in AWAY else {0, 1}), "no pose is invented"
        for animal, number in numbers.items():
            if number in images:
                region = images[number]["region"]
                assert np.linalg.norm(centre(region) - PLACES[frame, animal]) < 0.25 * BODY
                assert 0 < region["confidence"] <= 1
                sizes.add((region["width"], region["height"]))
    assert len(sizes) == 1
    assert len(np.concatenate(consumer.pixels)) == 2 * COUNT - len(AWAY)


async def test_tables_and_datasets_have_each_animal(http, send, publish, consumer, film, tmp_path):
    publish("dog")
    native = (await send(film, headers={}, max_animals="2")).json()["images"]
    numbers = numbers_of(native)
    poses = {(image["frame"], image["box"]): image for image in native}

    table = list(csv.reader(io.StringIO((await send(film, headers={}, max_animals="2", format="csv")).text)))
    individuals = table[1][1:]
    assert set(individuals) == {"box0", "box1"}
    for frame in (0, AWAY[0], COUNT - 1):
        row = table[4 + frame][1:]
        for animal, number in numbers.items():
            first = individuals.index(f"box{number}")
            if frame in AWAY and animal == 1:
                assert set(row[first : first + 3]) == {"NaN"}
            else:
                point = poses[frame, number]["keypoints"][0]
                assert [float(cell) for cell in row[first : first + 2]] == [point["x"], point["y"]]

    coco = (await send(film, headers={}, max_animals="2", format="coco")).json()
    assert len(coco["annotations"]) == len(native)
    for annotation, image in zip(coco["annotations"], native, strict=True):
        assert annotation["track_id"] == image["box"]
        assert annotation["bbox"] == [image["region"][name] for name in ("x", "y", "width", "height")]

    sio = pytest.importorskip("sleap_io")
    (tmp_path / "pair.slp").write_bytes((await send(film, headers={}, max_animals="2", format="slp")).content)
    labels = sio.load_slp(str(tmp_path / "pair.slp"), open_videos=False)
    assert {track.name for track in labels.tracks} == {"box0", "box1"}
    for labelled in labels:
        expected = {f"box{number}" for frame, number in poses if frame == labelled.frame_idx}
        assert {instance.track.name for instance in labelled.instances} == expected
        for instance in labelled.instances:
            pose = poses[labelled.frame_idx, int(instance.track.name.removeprefix("box"))]
            first = pose["keypoints"][0]
            np.testing.assert_allclose(instance.numpy()[0], (first["x"], first["y"]), atol=1e-3)


async def test_boxes_go_back_with_their_numbers(http, send, publish, consumer, film):
    publish("dog")
    text = (await send(film, headers={}, max_animals="2", format="boxes")).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert set(rows[0]) >= {"animal", "confidence"}
    away = [row for row in rows if row["image"].endswith(f"{AWAY[0]:06}")]
    assert len(away) == 1
    sent = {**film, "boxes": ("boxes.csv", text.encode())}
    again = (await send(sent, headers={})).json()["images"]
    first = (await send(film, headers={}, max_animals="2")).json()["images"]
    assert {(image["frame"], image["box"]): image["region"] for image in again} == {
        (image["frame"], image["box"]): image["region"] for image in first
    }


async def test_smoothed_datasets_have_a_box_of_what_was_filled(http, send, publish, consumer, film):
    publish("dog")
    fields = {"max_animals": "2", "smooth": "savgol", "format": "coco"}
    annotations = (await send(film, headers={}, **fields)).json()["annotations"]
    assert len(annotations) == 2 * COUNT
    assert all(annotation["bbox"][2] > 0 for annotation in annotations)


async def test_smoothing_fills_the_gap_of_one_animal(http, send, publish, consumer, film):
    publish("dog")
    fields = {"max_animals": "2", "smooth": "savgol"}
    accepted = await send(film, headers=RESPOND_ASYNC, **fields)
    record = await ended(http, accepted.json()["id"])
    images = (await http.get(f"/estimates/{record['id']}")).json()["result"]["images"]
    filled = [image for image in images if image["frame"] in AWAY]
    assert len(filled) == 2 * len(AWAY)
    assert [bool(image["keypoints"]) for image in filled].count(False) == len(AWAY)
    assert all(image["smoothed"][0] for image in filled)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"max_animals": "0"}, "must be from 1 to 16"),
        ({"max_animals": "17"}, "must be from 1 to 16"),
        ({"max_animals": "two"}, "must be from 1 to 16"),
        ({"max_animals": "2", "locate": "off"}, "locate is off"),
        ({"max_animals": "2", "boxes": "[[1, 2, 30, 30]]"}, "boxes were sent"),
    ],
)
async def test_what_does_not_go_with_several_is_refused(send, publish, consumer, film, problem, fields, detail):
    publish("dog")
    assert detail in problem(await send(film, headers={}, **fields), 422, "bad_request")["detail"]


async def test_pictures_have_no_animals_to_follow(send, publish, consumer, problem):
    publish("dog")
    answer = problem(await send(headers={}, max_animals="2"), 422, "bad_request")
    assert "pictures were sent" in answer["detail"]


async def test_one_animal_is_answered_as_without_the_field(send, publish, consumer, film):
    publish("dog")
    one, none = [(await send(film, headers={}, **fields)).json() for fields in ({"max_animals": "1"}, {})]
    assert json.dumps(one["images"]) == json.dumps(none["images"])

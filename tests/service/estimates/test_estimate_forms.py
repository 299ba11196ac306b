"""POST /estimate: JSON lines, several boxes a picture, COCO's and DeepLabCut's files; client and command."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sleap_io as sio

from service.client import APIError, Client, InputError
from service.client.types import FailedPicture, PoseLine
from service.estimates.boxes import PictureBoxes
from service.estimates.formats.coco import render_coco
from service.estimates.formats.deeplabcut import render_deeplabcut, render_frames
from service.estimates.results import Outcome, Results
from tests.service.conftest import RESPOND_ASYNC
from tests.support.live_gateway import live_gateway

from .test_background import ended
from .test_estimate import images

LINES = {"Accept": "application/jsonl"}
TWO_BOXES = [[[0, 0, 40, 40], [50, 10, 40, 40]], None]


@pytest.fixture
def dog(publish):
    return publish("dog")


def lines_in(text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of pictures, and the summary."""
    *found, last = [json.loads(line) for line in text.splitlines()]
    assert all("summary" not in line for line in found)
    return found, last["summary"]


# lines


@pytest.mark.parametrize("kind", ["application/jsonl", "application/x-ndjson"])
async def test_lines_hold_the_same_poses_as_the_document(http, consumer, dog, make_picture, kind):
    files = images(make_picture(), make_picture(50, 80))
    whole = (await http.post("/estimate", data={"category": "dog"}, files=files)).json()
    response = await http.post("/estimate", data={"category": "dog"}, files=files, headers={"Accept": kind})
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    found, summary = lines_in(response.text)
    expected = [{name: value for name, value in image.items() if name != "links"} for image in whole["images"]]
    assert sorted(found, key=lambda line: line["index"]) == expected
    counts = {name: summary[name] for name in ("pictures", "poses", "failed", "version")}
    assert counts == {"pictures": 2, "poses": 2, "failed": 0, "version": dog}
    assert summary["links"] == whole["images"][0]["links"]


async def test_broken_picture_does_not_hinder_the_others(http, consumer, dog, make_picture):
    files = images(make_picture(), b"no picture", make_picture(50, 80))
    response = await http.post("/estimate", data={"category": "dog"}, files=files, headers=LINES)
    found, summary = lines_in(response.text)
    by_index = {line["index"]: line for line in found}
    assert set(by_index) == {0, 1, 2}
    assert by_index[1]["error"]["code"] == "not_an_image"
    assert "images[1] (1.png)" in by_index[1]["error"]["detail"]
    assert (summary["poses"], summary["failed"]) == (2, 1)


async def test_lines_may_have_more_pictures_than_a_document(serve, consumer, dog, make_picture, problem):
    http = await serve(max_images=2, max_streamed_images=5, batch_limit=2)
    files = images(*[make_picture()] * 5)
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 413, "too_many_images")
    found, _ = lines_in((await http.post("/estimate", data={"category": "dog"}, files=files, headers=LINES)).text)
    assert sorted(line["index"] for line in found) == [0, 1, 2, 3, 4]
    files = images(*[make_picture()] * 6)
    problem(await http.post("/estimate", data={"category": "dog"}, files=files, headers=LINES), 413, "too_many_images")


async def test_what_is_wrong_with_a_whole_request_is_a_problem(http, consumer, dog, make_picture, problem):
    files = images(make_picture())
    problem(await http.post("/estimate", data={"category": "cat"}, files=files, headers=LINES), 404, "unknown_category")
    data = {"category": "dog", "format": "csv"}
    found = problem(await http.post("/estimate", data=data, files=files, headers=LINES), 422, "bad_request")
    assert found["field"] == "format"


async def test_lines_wait_for_room_in_the_queue(serve, consumer, dog, make_picture):
    http = await serve(max_images=2, queue_limit=2, max_streamed_images=20, batch_limit=2)
    files = images(*[make_picture()] * 12)
    found, summary = lines_in((await http.post("/estimate", data={"category": "dog"}, files=files, headers=LINES)).text)
    assert summary["failed"] == 0, found
    assert len(found) == 12


async def test_without_a_worker_each_picture_says_so(serve, dog, make_picture):
    http = await serve(estimate_timeout_s=1.0)
    files = images(make_picture(), make_picture())
    found, summary = lines_in((await http.post("/estimate", data={"category": "dog"}, files=files, headers=LINES)).text)
    assert [line["error"]["code"] for line in found] == ["worker_unavailable"] * 2
    assert summary["failed"] == 2


# boxes


async def test_each_box_of_a_picture_has_a_pose(http, consumer, dog, make_picture):
    data = {"category": "dog", "boxes": json.dumps(TWO_BOXES)}
    files = images(make_picture(), make_picture())
    found = (await http.post("/estimate", data=data, files=files)).json()["images"]
    assert [(pose["index"], pose.get("box")) for pose in found] == [(0, 0), (0, 1), (1, None)]
    alone = {"category": "dog", "boxes": "[[50, 10, 40, 40], null]"}
    expected = (await http.post("/estimate", data=alone, files=files)).json()["images"]
    assert found[1]["keypoints"] == expected[0]["keypoints"]
    assert found[2]["keypoints"] == expected[1]["keypoints"]


@pytest.mark.parametrize(
    "boxes", ["[[]]", "[[[1,2,3,4],[1,2]]]", "[[[1,2,3,4], null]]", '["all"]', "[[[[1,2,3,4]]]]", "[[[0,0,0,5]]]"]
)
async def test_bad_boxes(http, consumer, dog, make_picture, problem, boxes):
    data = {"category": "dog", "boxes": boxes}
    problem(await http.post("/estimate", data=data, files=images(make_picture())), 422, "bad_boxes")


async def test_boxes_count_as_pictures(serve, consumer, dog, make_picture, problem):
    http = await serve(max_images=3, queue_limit=3)
    data = {"category": "dog", "boxes": json.dumps([[[0, 0, 9, 9]] * 2, [[0, 0, 9, 9]] * 2])}
    problem(await http.post("/estimate", data=data, files=images(*[make_picture()] * 2)), 413, "too_many_images")


# formats


async def test_coco(http, consumer, dog, make_picture):
    data = {"category": "dog", "format": "coco", "boxes": json.dumps(TWO_BOXES)}
    response = await http.post("/estimate", data=data, files=images(make_picture(), make_picture(50, 80)))
    found = response.json()
    assert [(image["id"], image["file_name"]) for image in found["images"]] == [(0, "0.png"), (1, "1.png")]
    assert (found["images"][1]["width"], found["images"][1]["height"]) == (50, 80)
    assert [(one["id"], one["image_id"]) for one in found["annotations"]] == [(1, 0), (2, 0), (3, 1)]
    assert found["annotations"][0]["bbox"] == [0, 0, 40, 40]
    (category,) = found["categories"]
    assert category["keypoints"] == [f"keypoint_{number}" for number in range(5)]
    assert all(1 <= end <= 5 for link in category["skeleton"] for end in link)
    del data["format"]
    native = (await http.post("/estimate", data=data, files=images(make_picture(), make_picture(50, 80)))).json()
    for one, pose in zip(found["annotations"], native["images"], strict=True):
        points = pose["keypoints"]
        assert one["keypoints"][0::3] == [point["x"] for point in points]
        assert one["keypoints"][1::3] == [point["y"] for point in points]
        assert one["keypoints"][2::3] == [2 if point["score"] >= 0.5 else 1 for point in points]


async def test_table_has_the_header_of_deeplabcut(http, consumer, dog, make_picture):
    files = images(make_picture(), make_picture(50, 80))
    response = await http.post("/estimate", data={"category": "dog", "format": "csv"}, files=files)
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(response.text)))
    assert [row[0] for row in rows] == ["scorer", "bodyparts", "coords", "0.png", "1.png"]
    assert rows[1][1:7] == ["keypoint_0"] * 3 + ["keypoint_1"] * 3
    assert rows[2][1:4] == ["x", "y", "likelihood"]
    native = (await http.post("/estimate", data={"category": "dog"}, files=files)).json()["images"]
    point = native[1]["keypoints"][1]
    assert [float(cell) for cell in rows[4][4:7]] == [point["x"], point["y"], point["score"]]


async def test_table_of_several_boxes_has_individuals(http, consumer, dog, make_picture):
    data = {"category": "dog", "format": "csv", "boxes": json.dumps(TWO_BOXES)}
    response = await http.post("/estimate", data=data, files=images(make_picture(), make_picture()))
    rows = list(csv.reader(io.StringIO(response.text)))
    assert [row[0] for row in rows] == ["scorer", "individuals", "bodyparts", "coords", "0.png", "1.png"]
    assert rows[1][1] == "box0"
    assert rows[1][16] == "box1"
    assert rows[5][16:] == ["NaN"] * 15  # the second picture has one pose


async def fit_landmarks(http, make_picture):
    """Fit a set of two landmarks: one with the name of a keypoint."""
    rng, pictures, rows = np.random.default_rng(0), [], ["image,keypoint,x,y"]
    for number in range(8):
        where = tuple(rng.uniform(0.3, 0.7, 2))
        pictures.append(make_picture(64, 64, where))
        rows += [f"{number}.png,{name},{where[0] * 64},{where[1] * 64}" for name in ("nose", "keypoint_0")]
    files = [*images(*pictures), ("labels", ("l.csv", "\n".join(rows).encode()))]
    answer = await http.post("/priors/dog/landmarks", data={"name": "anatomy"}, files=files)
    assert answer.status_code == 201, answer.text


async def test_landmarks_stand_in_tables_and_data_sets_beside_the_keypoints(http, consumer, dog, make_picture):
    await fit_landmarks(http, make_picture)
    files = images(make_picture(), make_picture(50, 80))

    async def estimate(**fields):
        return await http.post("/estimate", data={"category": "dog", "landmarks": "anatomy", **fields}, files=files)

    marks = [image["landmarks"] for image in (await estimate()).json()["images"]]
    assert [mark["name"] for mark in marks[0]] == ["nose", "keypoint_0"]
    rows = list(csv.reader(io.StringIO((await estimate(format="csv")).text)))
    assert rows[1][16:] == ["nose"] * 3 + ["keypoint_0_landmark"] * 3
    for row, found in zip(rows[3:], marks, strict=True):
        expected = [mark[name] for mark in found for name in ("x", "y", "score")]
        assert [float(cell) for cell in row[16:]] == expected
    coco = (await estimate(format="coco")).json()
    assert coco["categories"][0]["keypoints"][5:] == ["nose", "keypoint_0_landmark"]
    for one, found in zip(coco["annotations"], marks, strict=True):
        assert one["keypoints"][15:17] == [found[0]["x"], found[0]["y"]]
        assert one["num_keypoints"] == 7


def test_landmarks_that_are_not_there_are_empty_cells_and_not_labelled():
    points = [{"x": 1.0, "y": 2.0, "score": 0.9}, {"x": 5.0, "y": 7.0, "score": 0.3}]
    pose = {"index": 0, "width": 9, "height": 9, "keypoints": points, "surprise": None, "present": 0.1, "landmarks": []}
    version = SimpleNamespace(
        category="dog", name="v", keypoint_names=("a", "b"), skeleton=[{"i": 0, "j": 1, "weight": 1.0}]
    )
    results = Results(version, ["a.png"], [PictureBoxes()], [Outcome(0, [pose])], {}, landmarks=("nose",))
    assert b"".join(render_deeplabcut(results)).decode().splitlines()[-1] == "a.png,1.0,2.0,0.9,5.0,7.0,0.3,NaN,NaN,NaN"
    (one,) = json.loads(b"".join(render_coco(results)))["annotations"]
    assert one["keypoints"] == [1, 2, 2, 5, 7, 1, 0, 0, 0]
    assert (one["num_keypoints"], one["score"], one["bbox"]) == (2, 0.6, [0.5, 1.5, 5, 6])
    assert b"".join(render_frames(results)).decode() == "image,box,score,surprise,present\na.png,0,0.6,NaN,0.1\n"


async def test_pandas_reads_a_table_whose_first_row_has_no_pose(http, consumer, dog, make_picture):
    data = {"category": "dog", "format": "csv"}
    files = [*images(make_picture(), make_picture()), ("images", ("z.png", b"broken"))][::-1]
    started = await http.post("/estimate", data=data, files=files, headers=RESPOND_ASYNC)
    found = await ended(http, started.json()["id"])
    text = (await http.get(f"/estimates/{found['id']}/result")).text
    table = pd.read_csv(io.StringIO(text), header=[0, 1, 2], index_col=0)
    assert table.index.tolist() == ["z.png", "1.png", "0.png"]
    assert table.iloc[0].isna().all()
    assert not table.iloc[1:].isna().any(axis=None)


@pytest.mark.parametrize("boxes", [None, json.dumps(TWO_BOXES)])
async def test_sleap_io_reads_the_poses_of_pictures(http, consumer, dog, make_picture, tmp_path, boxes):
    data = {"category": "dog", **({"boxes": boxes} if boxes else {})}
    files = images(make_picture(), make_picture(50, 80))
    answer = await http.post("/estimate", data={**data, "format": "slp"}, files=files)
    assert answer.headers["content-type"] == "application/x-hdf5"
    poses = (await http.post("/estimate", data=data, files=files)).json()["images"]
    (tmp_path / "poses.slp").write_bytes(answer.content)
    labels = sio.load_slp(str(tmp_path / "poses.slp"), open_videos=False)
    assert labels.skeleton.node_names == [f"keypoint_{number}" for number in range(5)]
    assert labels.skeleton.edge_inds
    assert labels.video.filename == ["0.png", "1.png"]
    assert labels.video.backend_metadata["shape"][0] == 2
    found = [instance for frame in labels for instance in frame.predicted_instances]
    assert [frame.frame_idx for frame in labels] == [0, 1]
    assert len(found) == len(poses)
    for instance, pose in zip(found, poses, strict=True):
        assert instance.numpy() == pytest.approx(np.array([(point["x"], point["y"]) for point in pose["keypoints"]]))
        assert instance.points["score"] == pytest.approx([point["score"] for point in pose["keypoints"]])
        assert (instance.track.name if instance.track else None) == (f"box{pose['box']}" if "box" in pose else None)


@pytest.mark.parametrize(
    "field",
    [{"include": "overlay"}, {"include": "codes", "format": "slp"}, {"landmarks": "anatomy", "format": "frames"}],
)
async def test_format_without_a_place_for_what_is_asked(http, consumer, dog, make_picture, problem, field):
    data = {"category": "dog", "format": "csv", **field}
    found = problem(await http.post("/estimate", data=data, files=images(make_picture())), 422, "bad_request")
    assert found["field"] == next(iter(field))


async def test_unknown_format(http, consumer, dog, make_picture, problem):
    data = {"category": "dog", "format": "xml"}
    found = problem(await http.post("/estimate", data=data, files=images(make_picture())), 422, "bad_request")
    assert "native, coco, csv, frames, slp" in found["detail"]


# client and command


@pytest.fixture
def url(make_settings, dog):
    with live_gateway(make_settings()) as url:
        yield url


def test_client_gets_lines_from_several_requests(url, make_picture, monkeypatch):
    monkeypatch.setattr("service.client.batches.POSES_A_REQUEST", 2)
    pictures = [make_picture(), b"no picture", make_picture(50, 80), make_picture()]
    with Client(url) as client:
        found = {line.index: line for line in client.estimate_lines("dog", pictures)}
    assert {index: type(line) for index, line in found.items()} == {
        0: PoseLine,
        1: FailedPicture,
        2: PoseLine,
        3: PoseLine,
    }
    assert found[1].error.code == "not_an_image"
    assert (found[2].width, found[2].height) == (50, 80)


@pytest.mark.parametrize("chosen", ["csv", "coco"])
def test_client_joins_files_of_several_requests(url, make_picture, monkeypatch, chosen):
    pictures = [make_picture(), make_picture(50, 80), make_picture(70, 70)]
    with Client(url) as client:
        whole = client.estimate_as(chosen, "dog", pictures)
        monkeypatch.setattr("service.client.batches.POSES_A_REQUEST", 1)
        parts = client.estimate_as(chosen, "dog", pictures)
    if chosen == "coco":  # pictures sent as bytes are called by their place in their request
        found, expected = json.loads(parts), json.loads(whole)
        assert found["annotations"] == expected["annotations"]
        assert [image["id"] for image in found["images"]] == [0, 1, 2]
    else:
        assert [row.split(",", 1)[1] for row in parts.splitlines()] == [
            row.split(",", 1)[1] for row in whole.splitlines()
        ]


def test_client_numbers_pictures_not_poses(url, make_picture, monkeypatch):
    monkeypatch.setattr("service.client.batches.POSES_A_REQUEST", 2)
    with Client(url) as client:
        found = client.estimate(
            "dog", [make_picture()] * 3, boxes=[[(0, 0, 20, 20), (20, 0, 20, 20)], (0, 0, 9, 9), None]
        )
    assert [(pose.index, pose.box) for pose in found.images] == [(0, 0), (0, 1), (1, None), (2, None)]


def test_client_says_what_is_wrong(url, make_picture):
    with Client(url) as client:
        with pytest.raises(InputError, match="xml"):
            client.estimate_as("xml", "dog", [make_picture()])
        with pytest.raises(APIError, match="cat"):
            list(client.estimate_lines("cat", [make_picture()]))


def test_commands(url, make_picture, tmp_path: Path, command_line):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(make_picture())
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def ppl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line.run("estimate", "dog", *arguments, cwd=tmp_path, PPL_URL=url)

    table = ppl("a.png", "b.png", "--format", "csv").stdout.splitlines()
    assert [row.split(",")[0] for row in table] == ["scorer", "bodyparts", "coords", "a.png", "b.png"]
    assert len(json.loads(ppl("a.png", "--format", "coco").stdout)["annotations"]) == 1
    done = ppl("a.png", "broken.png", "b.png", "--format", "jsonl")
    found = {line["image"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"a.png", "b.png", "broken.png"}
    assert found["broken.png"]["error"]["code"] == "not_an_image"
    assert done.returncode == 1
    refused = ppl("a.png", "--format", "csv", "--overlay", "pose.png")
    assert refused.returncode != 0
    assert "no place" in refused.stderr


# fields in the address


async def test_fields_may_stand_in_the_address(http, consumer, dog, make_picture, problem):
    files = {"images": ("a.png", make_picture())}
    asked = {"format": "csv", "refine_steps": "2"}
    found = await http.post("/estimate", params=asked, data={"category": "dog"}, files=files)
    assert found.text.startswith("scorer,")
    assert consumer.batches[-1].refine_steps == 2
    again = await http.post("/estimate", params=asked, data={"category": "dog", **asked}, files=files)
    assert again.text == found.text
    whole = await http.post("/estimate", params={"category": "dog"}, files=files)
    assert whole.status_code == 200


@pytest.mark.parametrize(
    ("params", "field", "detail"),
    [
        ({"landmark": "anatomy"}, "landmark", "unknown field 'landmark'"),
        ({"version": "v9"}, "version", "was sent twice, as 'v1' and as 'v9'"),
        ([("include", "codes"), ("include", "overlay")], "include", "was sent twice, as 'codes' and as 'overlay'"),
    ],
)
async def test_what_the_address_can_not_say(http, consumer, dog, make_picture, problem, params, field, detail):
    files, data = {"images": ("a.png", make_picture())}, {"category": "dog", "version": "v1"}
    found = problem(await http.post("/estimate", params=params, data=data, files=files), 422, "bad_request")
    assert found["field"] == field
    assert detail in found["detail"]


async def test_unknown_landmarks_in_the_address_are_refused(http, consumer, dog, make_picture, problem):
    files = {"images": ("a.png", make_picture())}
    answer = await http.post("/estimate?landmarks=unknown", data={"category": "dog"}, files=files)
    problem(answer, 404, "unknown_landmarks")

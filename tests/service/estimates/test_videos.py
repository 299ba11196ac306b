"""Poses of the frames of videos."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import subprocess
import threading

import av
import numpy as np
import pytest
import sleap_io as sio

from service.contract.media.videos import iter_frames
from service.estimates.background.runner import AT_ONCE
from service.estimates.estimator import Estimator
from tests.service.conftest import RESPOND_ASYNC
from tests.support.browser import CHROMIUM, play
from tests.support.media import zero_payload
from tests.support.tiffs import tiff_of

from .test_background import ended


@pytest.fixture
def film(video):
    """24 frames at 25 a second; a red square in the corner is the brightest spot of the first ones."""
    return {"video": ("walk.mp4", video(24))}


async def test_poses_of_a_videos_frames(http, send, publish, consumer, film):
    version = publish("dog")
    answer = await send(film, headers={}, every="5")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["version"] == version
    assert [image["frame"] for image in found["images"]] == [0, 5, 10, 15, 20]
    assert [image["index"] for image in found["images"]] == [0, 1, 2, 3, 4]
    assert [image["time_s"] for image in found["images"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert {(image["width"], image["height"]) for image in found["images"]} == {(48, 32)}
    assert found["errors"] == []
    assert len((await send(film, headers={})).json()["images"]) == 24


async def test_pages_of_a_stack_are_frames(http, send, publish, consumer, problem):
    publish("dog")
    pages = [np.zeros((32, 48), np.uint16) for _ in range(3)]
    for number, page in enumerate(pages):
        page[4:8, 10 * number + 4 : 10 * number + 8] = 4000
    stack = tiff_of(*pages)
    found = (await send({"video": ("stack.tif", stack)}, headers={})).json()
    assert [image["frame"] for image in found["images"]] == [0, 1, 2]
    assert [image["keypoints"][0]["x"] for image in found["images"]] == pytest.approx([5.5, 15.5, 25.5], abs=0.1)
    refused = problem(await send({"images": ("stack.tif", stack)}, headers={}), 422, "animated_image")
    assert "send it as a video" in refused["detail"]


async def test_frames_come_line_by_line(http, send, publish, consumer, film):
    publish("dog")
    answer = await send(film, headers={"Accept": "application/jsonl"}, every="6")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["frame"] for line in lines[:-1]) == [0, 6, 12, 18]
    assert lines[-1]["summary"]["pictures"] == 4


async def test_table_numbers_the_frames_and_coco_names_them(http, send, publish, consumer, film):
    publish("dog")
    rows = (await send(film, headers={}, every="10", format="csv")).text.splitlines()
    assert [row.split(",")[0] for row in rows[-3:]] == ["0", "10", "20"]
    coco = (await send(film, headers={}, every="10", format="coco")).json()
    assert [image["file_name"] for image in coco["images"]] == [f"walk.mp4#0000{n}" for n in ("00", "10", "20")]


async def test_times_and_sleaps_file_of_a_video(http, send, publish, consumer, film, tmp_path):
    publish("dog")
    rows = (await send(film, headers={}, every="10", format="frames")).text.splitlines()
    assert rows[0] == "frame,time_s,box,score,surprise,present"
    assert [row.split(",")[:3] for row in rows[1:]] == [["0", "0.0", "0"], ["10", "0.4", "0"], ["20", "0.8", "0"]]
    (tmp_path / "walk.slp").write_bytes((await send(film, headers={}, every="10", format="slp")).content)
    labels = sio.load_slp(str(tmp_path / "walk.slp"), open_videos=False)
    assert labels.video.filename == "walk.mp4"
    assert labels.video.backend_metadata["shape"][1:] == [32, 48, 3]
    assert [frame.frame_idx for frame in labels] == [0, 10, 20]
    native = (await send(film, headers={}, every="10")).json()["images"]
    for frame, pose in zip(labels, native, strict=True):
        expected = np.array([(point["x"], point["y"]) for point in pose["keypoints"]])
        assert frame.predicted_instances[0].numpy() == pytest.approx(expected)


async def test_a_box_holds_for_every_frame(http, send, publish, consumer, film):
    publish("dog")
    found = (await send(film, headers={}, every="12", boxes="[[[0, 0, 20, 20], [10, 5, 20, 20]]]")).json()
    assert [(image["frame"], image["box"]) for image in found["images"]] == [(0, 0), (0, 1), (12, 0), (12, 1)]
    outside = (await send(film, headers={}, every="12", boxes="[[400, 0, 20, 20]]")).json()
    assert [error["code"] for error in outside["errors"]] == ["bad_boxes"] * 2
    assert "walk.mp4#000012" in outside["errors"][1]["detail"]


async def test_damaged_rest_is_reported_after_the_frames_before_it(http, send, publish, consumer, video):
    publish("dog")
    whole = video(60, kind="mkv")
    cut = whole[: len(whole) * 2 // 3]
    found = (await send({"video": ("cut.mkv", cut)}, headers={}, every="10")).json()
    assert found["images"]
    (error,) = found["errors"]
    assert error["code"] == "bad_video"
    assert error["index"] == len(found["images"])
    assert "frame" not in error


async def test_damaged_rest_is_the_last_line_before_the_summary(http, send, publish, consumer, video, monkeypatch):
    publish("dog")
    find_poses = Estimator.find_poses

    async def find_late(estimator, sources, retry_s):
        if isinstance(sources[0].fitted, list):  # a frame, whose poses take longer than to read the rest
            await asyncio.sleep(1)
        return await find_poses(estimator, sources, retry_s)

    monkeypatch.setattr(Estimator, "find_poses", find_late)
    whole = video(60, kind="mkv")
    files = {"video": ("cut.mkv", whole[: len(whole) * 2 // 3])}
    sent = await send(files, headers={"Accept": "application/jsonl"}, every="10")
    *poses, error, summary = [json.loads(line) for line in sent.text.splitlines()]
    assert sorted(pose["index"] for pose in poses) == list(range(len(poses)))
    assert all("keypoints" in pose for pose in poses)
    assert error["index"] == len(poses) > 1
    assert error["error"]["code"] == "bad_video"
    assert summary["summary"]["failed"] == 1


@pytest.mark.parametrize("background", [False, True])
async def test_other_formats_of_a_damaged_video_have_its_frames_only_and_tell_the_rest(
    http, send, publish, consumer, video, background
):
    publish("dog")
    whole = video(60, kind="mkv")
    files = {"video": ("cut.mkv", whole[: len(whole) * 2 // 3])}
    answers, errors = {}, {}
    for form in ("native", "coco", "csv"):
        sent = await send(files, headers=RESPOND_ASYNC if background else {}, every="10", format=form)
        assert sent.status_code == (202 if background else 200), sent.text
        if background:
            found = await ended(http, sent.json()["id"])
            assert found["status"] == "succeeded"
            errors[form] = found["result"]["errors"] if form == "native" else found["errors"]
            answers[form] = await http.get(f"/estimates/{found['id']}/result")
        else:
            answers[form] = sent
            summary = json.loads(sent.headers["ppl-errors"])
            assert summary["count"] == 1
            errors[form] = [summary["first"]]
    assert [error["code"] for part in errors.values() for error in part] == ["bad_video"] * 3
    assert all("ends early" in error["detail"] for part in errors.values() for error in part)
    frames = [f"cut.mkv#{image['frame']:06d}" for image in answers["native"].json()["images"]]
    assert len(frames) > 1
    coco = answers["coco"].json()
    assert [image["file_name"] for image in coco["images"]] == frames
    assert [error["code"] for error in coco["errors"]] == ["bad_video"]
    rows = [row.split(",")[0] for row in answers["csv"].text.splitlines()[3:]]
    assert [f"cut.mkv#{int(row):06d}" for row in rows] == frames


async def test_frame_without_a_pose_is_named_in_its_row_and_its_error(http, send, publish, consumer, film):
    publish("dog")
    asked = {"every": "12", "boxes": "[[400, 0, 20, 20]]"}
    rows = (await send(film, headers={}, format="csv", **asked)).text.splitlines()[3:]
    assert [row.split(",") for row in rows] == [["0", *["NaN"] * 15], ["12", *["NaN"] * 15]]
    found = (await send(film, headers={}, **asked)).json()
    assert [(error["index"], error["frame"]) for error in found["errors"]] == [(0, 0), (1, 12)]
    assert found["errors"][1]["time_s"] > 0


@pytest.mark.parametrize("accept", [{}, {"Accept": "application/jsonl"}])
async def test_what_is_no_video_is_refused(http, send, publish, consumer, problem, accept, data_root):
    publish("dog")
    problem(await send({"video": ("a.mp4", b"junk" * 100)}, headers=accept), 422, "bad_video")
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []


@pytest.mark.parametrize("form", ["native", "coco", "csv", "lines"])
async def test_video_without_one_decodable_frame_is_refused_in_every_format(
    http, send, publish, consumer, problem, video, form
):
    publish("dog")
    files = {"video": ("dark.mp4", zero_payload(video(24)))}
    fields = {} if form == "lines" else {"format": form}
    headers = {"Accept": "application/jsonl"} if form == "lines" else {}
    detail = problem(await send(files, headers=headers, **fields), 422, "bad_video")["detail"]
    assert detail == "dark.mp4: not one of its 24 frames can be decoded; they are damaged"
    if form != "lines":
        found = await ended(http, (await send(files, **fields)).json()["id"])
        assert (found["status"], found["error"]["detail"]) == ("failed", detail)


@pytest.mark.parametrize("headers", [{}, RESPOND_ASYNC])
async def test_full_disk_gets_507_and_leaves_nothing(send, publish, problem, film, headers, data_root, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    publish("dog")
    monkeypatch.setattr("service.estimates.request.UploadedFiles._append", fail)
    response = await send(film, headers=headers)
    assert "no room" in problem(response, 507, "disk_full")["detail"]
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []


@pytest.fixture
def tiny_disk(http, data_root):
    """Put the estimates on a file system of 64 KiB."""
    folder = data_root / "estimates"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("headers", [{}, RESPOND_ASYNC])
async def test_a_really_full_disk_gets_507_too(send, publish, problem, video, headers, tiny_disk):
    publish("dog")
    response = await send({"video": ("walk.mp4", video(24) + bytes(100_000))}, headers=headers)
    assert "no room" in problem(response, 507, "disk_full")["detail"]
    assert list(tiny_disk.glob("[0-9a-f]*")) == []


async def test_poses_that_fill_the_disk_fail_their_estimate(http, send, publish, consumer, video, tiny_disk):
    publish("dog")
    answer = await send({"video": ("walk.mp4", video(120))}, headers=RESPOND_ASYNC)
    assert answer.status_code == 202, answer.text
    found = await ended(http, answer.json()["id"])
    assert (found["status"], found["error"]["code"]) == ("failed", "disk_full")


async def test_too_many_frames_are_refused_with_what_to_do(serve, send, publish, consumer, problem, film):
    publish("dog")
    http = await serve(max_streamed_images=10)
    document = problem(await send(film, client=http, headers={}), 413, "too_many_images")
    assert (
        "24 of its 24 frames are asked for; at most 10 are read; send it for an estimate in the background"
        in (document["detail"])
    )
    assert (await send(film, client=http, headers={}, every="3")).status_code == 200


async def test_each_box_of_each_frame_counts(serve, http, send, publish, consumer, problem, film):
    """Else a short video with many boxes would have an answer of gigabytes."""
    publish("dog")
    small = await serve(max_streamed_images=40)
    boxes = {"boxes": "[[[0, 0, 20, 20], [10, 5, 20, 20]]]"}
    refused = await send(film, client=small, headers={}, **boxes)
    assert "at most 20" in problem(refused, 413, "too_many_images")["detail"]
    assert len((await send(film, client=small, headers={}, every="2", **boxes)).json()["images"]) == 24


async def test_each_box_of_each_frame_counts_in_the_background(http, send, publish, consumer, film):
    publish("dog")
    http.gateway.background._settings = http.gateway.settings.model_copy(update={"background_max_frames": 40})
    found = await ended(http, (await send(film, boxes="[[[0, 0, 20, 20], [10, 5, 20, 20]]]")).json()["id"])
    assert found["error"]["code"] == "too_many_images"
    assert "at most 20" in found["error"]["detail"]


async def test_without_a_worker_a_video_gets_503(serve, send, publish, problem, film):
    publish("dog")
    http = await serve(estimate_timeout_s=0.3)
    problem(await send(film, client=http, headers={}), 503, "worker_unavailable")


@pytest.mark.parametrize(
    "fields",
    [
        {"include": "overlay"},
        {"include": "link_map"},
        {"smooth": "kalman"},
        {"max_gap": "2"},
        {"every": "0"},
        {"every": "x"},
        {"boxes": "[null, null]"},
    ],
)
async def test_what_a_video_can_not_have_is_refused(send, publish, problem, film, fields):
    publish("dog")
    response = await send(film, headers={}, **fields)
    assert response.status_code == 422, response.text
    problem(response, 422, response.json()["code"])


async def test_pictures_and_a_video_are_refused_together(send, publish, problem, film, make_picture):
    publish("dog")
    files = [("images", ("a.png", make_picture())), *film.items()]
    assert "either" in problem(await send(files, headers={}), 422, "bad_request")["detail"]


async def test_poses_are_drawn_on_a_video_that_browsers_play(http, send, publish, consumer, video, tmp_path):
    publish("dog")
    files = {"video": ("walk.mkv", video(24, kind="mkv", codec="mpeg4", size=(99, 65), sound=True))}
    found = await ended(http, (await send(files, include="overlay", smooth="savgol")).json()["id"])
    assert found["status"] == "succeeded", found
    answer = await http.get(found["overlay_url"], headers={"Range": "bytes=0-99"})
    assert (answer.status_code, answer.headers["content-type"], len(answer.content)) == (206, "video/mp4", 100)
    path = tmp_path / "drawn.mp4"
    path.write_bytes((await http.get(found["overlay_url"])).content)
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    with av.open(str(path)) as container:
        drawn, sound = container.streams.video[0], container.streams.audio[0]
        assert (drawn.codec_context.name, drawn.pix_fmt, sound.codec_context.name) == ("h264", "yuv420p", "aac")
        assert (drawn.width % 2, drawn.height % 2) == (0, 0)
        assert float(container.duration) / 1e6 == pytest.approx(24 / 25, abs=0.1)
    frames = list(iter_frames(path, 100, every=1))
    assert [round(frame.time_s * 25) for frame in frames] == list(range(24))
    # the double's keypoints lie around the middle of the picture
    point = found["result"]["images"][0]["keypoints"][0]
    colours = np.asarray(frames[12].image)[round(point["y"]), round(point["x"])].astype(int)
    assert np.ptp(colours) > 60, "a keypoint has a colour, the picture is grey"
    grey = np.asarray(frames[12].image)[60, 90].astype(int)
    assert np.ptp(grey) < 12


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)")
async def test_a_drawn_video_plays_in_a_browser(http, send, publish, consumer, video, tmp_path):
    publish("dog")
    files = {"video": ("walk.mkv", video(24, kind="mkv", codec="mpeg4", size=(99, 65), sound=True))}
    found = await ended(http, (await send(files, include="overlay")).json()["id"])
    path = tmp_path / "drawn.mp4"
    path.write_bytes((await http.get(found["overlay_url"])).content)
    played = await asyncio.to_thread(play, path, tmp_path / "profile")
    assert (played["error"], played["width"], played["height"]) == (None, 100, 64)
    assert played["time_s"] == pytest.approx(24 / 25, abs=0.1)
    assert played["duration_s"] == pytest.approx(24 / 25, abs=0.1)


async def test_video_is_drawn_in_the_background_alone(http, send, publish, consumer, problem, film):
    publish("dog")
    assert "respond-async" in problem(await send(film, headers={}, include="overlay"), 422, "bad_request")["detail"]
    found = await ended(http, (await send(film, every="6")).json()["id"])
    problem(await http.get(f"/estimates/{found['id']}/overlay"), 409, "conflict")


@pytest.mark.parametrize("background", [False, True])
async def test_smoothed_keypoints_stand_beside_the_raw_ones(http, send, publish, consumer, film, background):
    publish("dog")
    if background:
        found = (await ended(http, (await send(film, smooth="median:5")).json()["id"]))["result"]
    else:
        found = (await send(film, headers={}, smooth="median:5")).json()
    assert found["outliers"] == []
    for image in found["images"]:
        raw = [(point["x"], point["y"]) for point in image["keypoints"]]
        np.testing.assert_allclose([(point["x"], point["y"]) for point in image["smoothed"]], raw, atol=2)


async def test_smoothed_table_has_the_raw_one_beside_it(http, send, publish, consumer, film):
    publish("dog")
    found = await ended(http, (await send(film, smooth="savgol", format="csv")).json()["id"])
    assert (found["errors"], found["outliers"]) == ([], [])
    smoothed, raw = [(await http.get(found[name])).text.splitlines() for name in ("result_url", "raw_url")]
    assert len(smoothed) == len(raw) == 3 + 24


async def test_json_lines_of_the_background(http, send, publish, consumer, film):
    publish("dog")
    found = await ended(http, (await send(film, every="6", format="jsonl")).json()["id"])
    lines = [json.loads(line) for line in (await http.get(found["result_url"])).text.splitlines()]
    assert [line["frame"] for line in lines[:-1]] == [0, 6, 12, 18]
    assert lines[-1]["summary"]["pictures"] == 4


async def test_a_video_in_the_background_goes_on_where_it_was(serve, http, send, publish, consumer, film):
    publish("dog")
    begun = (await send(film, every="4")).json()
    assert begun["progress"]["total"] is None
    found = await ended(http, begun["id"])
    assert [image["frame"] for image in found["result"]["images"]] == [0, 4, 8, 12, 16, 20]
    assert found["progress"] == {"done": 6, "failed": 0, "total": 6}


async def test_a_client_that_leaves_ends_the_decoding(http, send, publish, consumer, video, data_root):
    publish("dog")
    consumer.gate.clear()
    work = asyncio.create_task(send({"video": ("a.mp4", video(200))}, headers={}))
    while not consumer.batches:
        await asyncio.sleep(0.02)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    for _ in range(200):
        if not list((data_root / "estimates").glob("[0-9a-f]*")):
            break
        await asyncio.sleep(0.05)
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []
    consumer.gate.set()


async def test_so_many_videos_are_decoded_at_once(serve, send, publish, consumer, problem, film, video, make_picture):
    publish("dog")
    http = await serve(max_videos=2)
    consumer.gate.clear()
    slow = [
        asyncio.create_task(send({"video": ("a.mp4", video(200))}, client=http, headers=headers))
        for headers in ({}, {"Accept": "application/jsonl"})
    ]
    while http.gateway.video_slots.held < 2:
        await asyncio.sleep(0.02)
    refused = await send(film, client=http, headers={})
    assert "2 videos" in problem(refused, 429, "queue_full")["detail"]
    assert refused.headers["retry-after"]
    begun = (await send(film, client=http, every="12")).json()  # has a place of its own
    consumer.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
    assert (await ended(http, begun["id"]))["status"] == "succeeded"
    assert http.gateway.video_slots.held == 0
    assert (await send(film, client=http, headers={}, every="12")).status_code == 200


async def test_videos_that_are_slow_to_decode_do_not_hold_up_uploads(http, send, publish, consumer, video, monkeypatch):
    """Of a long video of which each 100,000th frame is wanted, the decoder says nothing for minutes."""
    held = threading.Event()

    def slow(*arguments):
        held.wait(30)
        yield from iter_frames(*arguments)

    publish("dog")
    monkeypatch.setattr("service.estimates.video_frames.iter_frames", slow)
    begun = [(await send({"video": ("a.mp4", video(8))}, client=http)).json()["id"] for _ in range(AT_ONCE)]
    try:
        while len(http.gateway.background._running) < AT_ONCE:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert (await asyncio.wait_for(send(client=http), 5)).status_code == 202
    finally:
        held.set()
    for estimate_id in begun:
        assert (await ended(http, estimate_id))["status"] == "succeeded"

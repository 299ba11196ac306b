"""Client and commands on background estimates and videos, against a real gateway."""

from __future__ import annotations

import json
from unittest.mock import MagicMock

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.client import APIError, Client, InputError
from service.client.types import EstimateStatus
from service.contract.media.videos import iter_frames
from tests.support.arena import encode_film, pair_frame
from tests.support.live_gateway import live_gateway
from tests.support.media import zero_payload


@pytest.fixture
def url(make_settings, publish):
    publish("dog")
    with live_gateway(make_settings()) as url:
        yield url


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture
def clip(tmp_path, video):
    path = tmp_path / "walk.mp4"
    path.write_bytes(video(12))
    return path


def test_pictures_in_the_background(client, make_picture):
    begun = client.estimate_async("dog", [make_picture(), make_picture()])
    seen = []
    found = client.wait_estimate(begun.id, lambda item: seen.append(item.status), poll_s=0.05)
    assert found.status is EstimateStatus.SUCCEEDED
    assert seen[-1] is EstimateStatus.SUCCEEDED
    assert [image.index for image in found.result.images] == [0, 1]
    assert found.result.errors == []
    assert [item.id for item in client.estimates()] == [begun.id]
    client.delete_estimate(begun.id)
    with pytest.raises(APIError, match="no estimate"):
        client.estimate_job(begun.id)


def test_video_in_the_background_as_a_table(client, clip):
    begun = client.estimate_async("dog", video=clip, every=4, format="csv", boxes=[[0, 0, 30, 30]])
    client.wait_estimate(begun.id, poll_s=0.05)
    rows = client.estimate_result(begun.id).decode().splitlines()
    assert [row.split(",")[0] for row in rows[-3:]] == ["0", "4", "8"]


def test_frames_as_they_are_found(client, clip):
    found = list(client.estimate_video("dog", clip, every=6))
    assert sorted(pose.frame for pose in found) == [0, 6]
    assert sorted(pose.time_s for pose in found) == pytest.approx([0, 0.24])


def test_pictures_and_video_exclude_each_other(client, clip, make_picture):
    for given in ({}, {"images": [make_picture()], "video": clip}):
        with pytest.raises(InputError, match="either pictures or a video"):
            client.estimate_async("dog", **given)


def ppl(url: str, *words: str):
    return CliRunner().invoke(app, [*words, "--url", url])


def test_command_shows_frames(url, clip):
    shown = ppl(url, "estimate", "dog", str(clip), "--every", "5")
    assert shown.exit_code == 0, shown.output
    assert "frame 10 at 0.400 s" in shown.stdout
    lines = ppl(url, "estimate", "dog", str(clip), "--every", "5", "--json").stdout.splitlines()
    assert sorted(json.loads(line)["frame"] for line in lines) == [0, 5, 10]
    table = ppl(url, "estimate", "dog", str(clip), "--every", "5", "--format", "csv")
    assert [row.split(",")[0] for row in table.stdout.splitlines()[3:]] == ["0", "5", "10"]


def test_several_animals_in_a_video(url, client, tmp_path, make_picture):
    film = tmp_path / "pair.mkv"
    film.write_bytes(encode_film(pair_frame([(60 + 4 * n, 80), (260 - 4 * n, 180)], n) for n in range(20)))
    found = list(client.estimate_video("dog", film, max_animals=2))
    assert sorted((pose.frame, pose.box) for pose in found) == [(n, box) for n in range(20) for box in (0, 1)]
    whole = client.estimate_video("dog", film, every=10, locate="off")
    assert sorted((pose.frame, pose.region) for pose in whole) == [(0, None), (10, None)]
    drawn = tmp_path / "drawn.mp4"
    arguments = ("estimate", "dog", str(film), "--max-animals", "2", "--format", "csv", "--overlay", str(drawn))
    done = ppl(url, *arguments)
    assert done.exit_code == 0, done.output
    assert {*done.stdout.splitlines()[1].split(",")} == {"individuals", "box0", "box1"}
    frames = [np.asarray(frame.image.convert("RGB"), int) for frame in iter_frames(drawn, 100, every=1)]
    assert len(frames) == 20
    for pose in found:
        region = pose.region
        top = frames[pose.frame][round(region.y), round(region.x) + 4 : round(region.x + region.width) - 4]
        assert (top[:, 2] - top[:, 0]).mean() * (1 if pose.box else -1) > 10, "each has a colour: yellow and blue"
    with pytest.raises(InputError, match="max_animals is for a video"):
        client.estimate_async("dog", [make_picture()], max_animals=2)
    (tmp_path / "one.png").write_bytes(make_picture())
    refused = ppl(url, "estimate", "dog", str(tmp_path / "one.png"), "--max-animals", "2")
    assert refused.exit_code != 0
    assert "are for a video" in refused.stderr


def test_command_draws_a_video(url, clip, tmp_path):
    drawn = tmp_path / "drawn.mp4"
    done = ppl(url, "estimate", "dog", str(clip), "--overlay", str(drawn), "--smooth", "savgol")
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert [frame.number for frame in iter_frames(drawn, 100, every=1)] == list(range(12))


def test_command_takes_the_background_for_a_long_video(url, clip, monkeypatch):
    fault = APIError({"code": "too_many_images", "detail": "12 of its 12 frames"}, 413)
    monkeypatch.setattr(Client, "estimate_video", MagicMock(side_effect=fault))
    done = ppl(url, "estimate", "dog", str(clip), "--format", "jsonl")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == list(range(12))
    assert "in the background" in done.stderr


def test_video_that_cannot_be_read_leaves_stdout_empty(url, tmp_path, video):
    dark = tmp_path / "dark.mp4"
    dark.write_bytes(zero_payload(video(12)))
    for form in ("csv", "coco", "jsonl"):
        done = ppl(url, "estimate", "dog", str(dark), "--format", form)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "not one of its 12 frames can be decoded" in " ".join(done.stderr.split())


@pytest.mark.parametrize("form", ["csv", "coco", "json"])
def test_command_reports_failed_pictures(url, tmp_path, make_picture, video, form):
    whole = video(60, kind="mkv")
    cut, bad = tmp_path / "cut.mkv", tmp_path / "bad.png"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    bad.write_bytes(b"no picture")
    wanted = ("--json",) if form == "json" else ("--format", form)
    done = ppl(url, "estimate", "dog", str(cut), "--every", "10", *wanted)
    assert done.exit_code == 1
    assert "ends early" in done.output
    if form != "json":
        assert "ends early" in done.stderr
        assert ("cut.mkv#" if form == "coco" else "\n10,") in done.stdout
    begun = json.loads(
        ppl(url, "estimate", "dog", str(bad), "--background", "--json", *(wanted if form != "json" else ())).stdout
    )
    done = ppl(url, "estimates", "show", begun["id"], "--follow")
    assert done.exit_code == 1
    assert "bad.png" in done.stderr
    done = ppl(url, "estimates", "show", begun["id"], "--follow", "--json")
    assert [json.loads(line)["code"] for line in done.stderr.splitlines()] == ["not_an_image"]


def test_pictures_of_the_same_name_get_different_names(url, tmp_path, make_picture):
    for folder in ("one", "two"):
        (tmp_path / "clips" / folder).mkdir(parents=True)
        (tmp_path / "clips" / folder / "a.png").write_bytes(make_picture())
    (tmp_path / "clips/walk.mp4").write_bytes(b"")
    done = ppl(url, "estimate", "dog", str(tmp_path / "clips"), "--format", "csv")
    assert [line.partition(",")[0] for line in done.stdout.splitlines()[3:]] == ["one/a.png", "two/a.png"]
    assert "skipped, as a video" in done.stderr
    assert "walk.mp4" in done.stderr
    begun = ppl(url, "estimate", "dog", str(tmp_path / "clips"), "--format", "coco", "--background", "--json")
    poses = json.loads(ppl(url, "estimates", "show", json.loads(begun.stdout)["id"], "--follow").stdout)
    assert [image["file_name"] for image in poses["images"]] == ["one/a.png", "two/a.png"]


def test_command_in_the_background(url, tmp_path, make_picture):
    path = tmp_path / "a.png"
    path.write_bytes(make_picture())
    begun = json.loads(ppl(url, "estimate", "dog", str(path), "--background", "--json").stdout)
    out = tmp_path / "poses.json"
    assert ppl(url, "estimates", "show", begun["id"], "--out", str(out)).exit_code == 0
    assert len(json.loads(out.read_text())["images"]) == 1
    assert json.loads(ppl(url, "estimates", "show", begun["id"], "--follow").stdout)["errors"] == []
    assert "1 of 1 pictures" in ppl(url, "estimates", "show", begun["id"]).stdout
    assert begun["id"] in ppl(url, "estimates", "list").stdout
    assert ppl(url, "estimates", "cancel", begun["id"]).exit_code == 1  # it has ended
    assert ppl(url, "estimates", "delete", begun["id"]).exit_code == 0

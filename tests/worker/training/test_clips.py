"""Videos and folders of frames become clips: squares in order, each with the number of its clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import natural_key
from service.contract.jobs.store import Job, JobSource, JobStatus, NewJob, new_job_id
from service.contract.media import videos
from service.contract.media.fitting import Frame, fit_square
from service.contract.media.pictures import open_picture
from service.contract.media.videos import iter_frames
from worker.uploads.media_reader import TrainingSet

Video = Callable[..., bytes]


def prepared(desk: SimpleNamespace, job: Job) -> tuple[Job, dict[str, Any], np.ndarray, np.ndarray | None]:
    """The job after preparing, pictures.json, the squares, and the clips' numbers if there are any."""
    desk.caretaker.prepare(job.id)
    job = desk.jobs.get(job.id)
    assert job.status is JobStatus.QUEUED, job.error
    info = json.loads(desk.files.pictures_info(job.id).read_text())
    squares = np.load(desk.files.pictures(job.id), allow_pickle=False)
    assert len(squares) == info["count"] == len(info["names"]) == job.metrics["images"]
    path = desk.files.clips(job.id)
    clips = np.load(path, allow_pickle=False) if path.exists() else None
    assert (clips is None) == (info["mode"] == "stills")
    return job, info, squares, clips


def failed(desk: SimpleNamespace, job: Job) -> Job:
    desk.caretaker.prepare(job.id)
    job = desk.jobs.get(job.id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert desk.files.ids() == []
    return job


def bare(desk: SimpleNamespace, data: bytes, name: str | None) -> Job:
    job_id = new_job_id()
    desk.files.create(job_id)
    desk.files.archive(job_id).write_bytes(data)
    settings = {"preset": "compact", **desk.tiny(frames_per_clip=10).to_dict()}
    return desk.jobs.create(NewJob("dog", settings, 6, JobSource(name=name), job_id=job_id))


def test_videos_are_clips_in_natural_order_by_themselves(desk: SimpleNamespace, video: Video, tmp_path) -> None:
    films = {"walk_10.mp4": video(9), "walk_2.avi": video(6, kind="avi", first=30), "notes.txt": b"ignored"}
    job, info, squares, clips = prepared(desk, desk.upload(films))
    assert job.metrics == {"images": 15, "skipped": 0, "skipped_files": [], "mode": "clips", "clips": 2}
    assert (info["mode"], info["clips"]) == ("clips", 2)
    assert clips is not None
    assert clips.dtype == np.int64
    assert clips.tolist() == [0] * 6 + [1] * 9
    assert info["names"] == [f"walk_2.avi#{n:06d}" for n in range(6)] + [f"walk_10.mp4#{n:06d}" for n in range(9)]
    (tmp_path / "walk_10.mp4").write_bytes(films["walk_10.mp4"])
    expected = [fit_square(image, 32)[0] for _, _, image, _ in iter_frames(tmp_path / "walk_10.mp4", 99)]
    np.testing.assert_array_equal(squares[6:], np.stack(expected))
    assert sorted(path.name for path in desk.files.folder(job.id).iterdir()) == [
        "clips.npy",
        "pictures.json",
        "pictures.npy",
    ]


def test_as_many_frames_are_taken_of_each_video_as_the_setting_says(desk: SimpleNamespace, video: Video) -> None:
    films = {"long.mp4": video(40), "short.mp4": video(4)}
    _, info, _, clips = prepared(desk, desk.upload(films, desk.tiny(frames_per_clip=5)))
    assert clips is not None
    assert clips.tolist() == [0] * 5 + [1] * 4
    assert info["names"][:5] == [f"long.mp4#{n:06d}" for n in (4, 12, 20, 28, 36)]


def test_folders_are_clips_where_the_job_says_so_and_their_frames_in_natural_order(desk: SimpleNamespace) -> None:
    order = ["b/frame_9.jpg", "b/frame_10.jpg", "b/frame_100.jpg", "clip 2/1.jpg", "clip 2/02.jpg", "clip 2/3.jpg"]
    order += ["clip 10/1.jpg", "clip 10/2.jpg"]
    members = {name: desk.picture(seed) for seed, name in enumerate(order)}
    shuffled = {name: members[name] for name in sorted(members, key=lambda name: name[::-1])}
    assert list(shuffled) != order
    job, info, squares, clips = prepared(desk, desk.upload(shuffled, desk.tiny(mode="clips")))
    assert info["names"] == order
    assert clips is not None
    assert clips.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (job.metrics["mode"], job.metrics["clips"]) == ("clips", 3)
    expected = [fit_square(open_picture(members[name]), 32)[0] for name in order]
    np.testing.assert_array_equal(squares, np.stack(expected))


def test_folders_of_pictures_are_stills_unless_the_job_says_otherwise(desk: SimpleNamespace) -> None:
    members = {f"clip{n % 2}/{n}.jpg": desk.picture(n) for n in range(9)}
    job, info, _, clips = prepared(desk, desk.upload(members))
    assert clips is None
    assert (job.metrics["mode"], job.metrics["clips"]) == ("stills", 0)
    assert info["names"] == list(members)


def test_clips_of_a_single_frame_are_left_out_and_named(desk: SimpleNamespace, video: Video) -> None:
    members = {f"good/{n}.jpg": desk.picture(n) for n in range(8)}
    members |= {"lonely/1.jpg": desk.picture(1), "lonely/2.jpg": b"broken", "still.mp4": video(1)}
    job, info, _, clips = prepared(desk, desk.upload(members, desk.tiny(mode="clips")))
    assert clips is not None
    assert clips.tolist() == [0] * 8
    assert all(name.startswith("good/") for name in info["names"])
    reasons = {item["name"]: item["reason"] for item in job.metrics["skipped_files"]}
    assert set(reasons) == {"lonely/2.jpg", "lonely", "still.mp4"}
    assert "at least 2 are needed" in reasons["lonely"]
    assert job.metrics["skipped"] == 3


def test_pictures_and_videos_together_fail_unless_the_mode_is_said(desk: SimpleNamespace, video: Video) -> None:
    members = {f"a/{n}.jpg": desk.picture(n) for n in range(9)} | {"walk.mp4": video(9)}
    job = failed(desk, desk.upload(members))
    assert job.error is not None
    assert job.error.code == "bad_setting"
    assert "set mode to clips" in job.error.detail
    _, _, _, clips = prepared(desk, desk.upload(members, desk.tiny(mode="clips")))
    assert clips is not None
    assert clips.tolist() == [0] * 9 + [1] * 9
    job, _, squares, clips = prepared(desk, desk.upload(members, desk.tiny(mode="stills")))
    assert clips is None
    assert len(squares) == 18
    assert job.metrics["mode"] == "stills"


@pytest.mark.parametrize(("name", "shown"), [("walk.mov", "walk.mov"), (None, "video")])
def test_video_sent_by_itself_is_one_clip(desk: SimpleNamespace, video: Video, name: str, shown: str) -> None:
    job, info, _, clips = prepared(desk, bare(desk, video(20, kind="mov"), name))
    assert clips is not None
    assert clips.tolist() == [0] * 10
    assert info["names"][0] == f"{shown}#000001"
    assert not desk.files.archive(job.id).exists()


def test_videos_in_a_folder_on_the_server_stay_where_they_are(desk: SimpleNamespace, video: Video) -> None:
    folder = desk.settings.data_root / "imports"
    folder.mkdir()
    (folder / "walk.mp4").write_bytes(video(9))
    job, _, _, _ = prepared(desk, desk.from_folder("imports"))
    assert job.metrics["mode"] == "clips"
    assert [path.name for path in folder.iterdir()] == ["walk.mp4"]


def test_of_a_damaged_video_the_frames_before_the_damage_are_kept(desk: SimpleNamespace, video: Video) -> None:
    film = video(60, kind="avi")
    members = {"cut.avi": film[: len(film) * 3 // 4], "none.mp4": b"no video at all", "whole.mp4": video(4)}
    job, info, _, clips = prepared(desk, desk.upload(members))
    kept = sum(name.startswith("cut.avi#") for name in info["names"])
    assert kept > 10
    assert clips is not None
    assert clips.tolist() == [0] * kept + [1] * 4
    reasons = {item["name"]: item["reason"] for item in job.metrics["skipped_files"]}
    assert set(reasons) == {"cut.avi", "none.mp4"}
    assert f"{kept} frames from before are kept" in reasons["cut.avi"]
    assert job.metrics["skipped"] == 2


def test_video_that_its_archive_damaged_is_named_and_the_rest_is_read(desk: SimpleNamespace, video: Video) -> None:
    film = video(30)
    job = desk.upload({"bad.mp4": film, "good.avi": video(9, kind="avi")})
    archive = desk.files.archive(job.id)
    data = archive.read_bytes()
    assert film in data, "stored as it is"
    archive.write_bytes(data.replace(film, bytes([film[0] ^ 1]) + film[1:]))
    job, info, _, _ = prepared(desk, job)
    assert [item["name"] for item in job.metrics["skipped_files"]] == ["bad.mp4"]
    assert "damaged in the archive" in job.metrics["skipped_files"][0]["reason"]
    assert len(info["names"]) == 9


def test_upload_of_broken_videos_fails_and_says_why(desk: SimpleNamespace) -> None:
    job = failed(desk, desk.upload({"a.mp4": b"nothing", "b.mp4": b"nothing"}))
    assert job.error is not None
    assert job.error.code == "too_few_pictures"
    assert "0 frames of 0 clips" in job.error.detail
    assert "a.mp4: it is not a video" in job.error.detail


def test_worker_without_pyav_fails_the_job_and_names_the_extra(
    desk: SimpleNamespace, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: None)
    job = failed(desk, desk.upload({"a.mp4": video(4)}))
    assert job.error is not None
    assert "pose-prior-learner[video]" in job.error.detail


def test_stop_in_the_middle_of_a_video_leaves_the_job_to_the_next_worker(
    desk: SimpleNamespace, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = desk.upload({"a.mp4": video(30)})
    real = videos._read

    def read_then_stop(*arguments: Any) -> bytes:
        data = real(*arguments)
        desk.stop.request()
        return data

    monkeypatch.setattr(videos, "_read", read_then_stop)
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.VALIDATING
    assert not desk.files.pictures_info(job.id).exists()
    monkeypatch.undo()
    desk.stop.requested = False
    job, _, _, _ = prepared(desk, job)
    assert job.metrics["images"] == 30


def test_worker_killed_after_preparing_still_knows_the_mode(desk: SimpleNamespace, video: Video) -> None:
    job, _, _, _ = prepared(desk, desk.upload({"a.mp4": video(9)}))
    desk.jobs._redis.delete(f"ppl:job:{job.id}")
    desk.jobs.create(NewJob("dog", job.settings, 6, job_id=job.id))  # as it was before: validating
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).metrics == job.metrics


def test_clips_of_videos_are_trained_to_a_version(desk: SimpleNamespace, video: Video) -> None:
    job, _, _, _ = prepared(desk, desk.upload({"a.mp4": video(6), "b.mp4": video(6, first=20)}, desk.tiny(steps=2)))
    desk.runner.run(job.id)
    job = desk.jobs.get(job.id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert (job.metrics["mode"], job.metrics["clips"]) == ("clips", 2)


def test_natural_order() -> None:
    names = ["frame_2", "frame_10", "frame_010", "frame_9a", "Frame", "", "10", "9", "a" * 9 + "1" * 5000]
    assert sorted(["frame_10", "frame_2", "frame_1"], key=natural_key) == ["frame_1", "frame_2", "frame_10"]
    assert len({natural_key(name) for name in names}) == len(names)


@given(st.integers(0, 10**30), st.integers(0, 10**30), st.integers(0, 3))
def test_numbers_in_names_go_by_their_value(low: int, high: int, zeros: int) -> None:
    low, high = sorted((low, high))
    if low != high:
        assert natural_key(f"a{low}b") < natural_key(f"a{'0' * zeros}{high}b")


def test_set_that_comes_in_order_is_not_written_again(tmp_path) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    with TrainingSet(tmp_path / "p.npy", tmp_path / "c.npy", 16) as training_set:
        for number, square in enumerate(squares):
            training_set.append(square, f"a/{number}", "a", (16, 16), Frame(0, 0, 16))
    inode = (tmp_path / "p.npy").stat().st_ino
    assert training_set.arrange_clips() == (1, {})
    assert (tmp_path / "p.npy").stat().st_ino == inode
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), squares)


def test_set_without_a_clip_of_two_frames_is_empty(tmp_path) -> None:
    with TrainingSet(tmp_path / "p.npy", tmp_path / "c.npy", 16) as training_set:
        training_set.append(np.zeros((16, 16, 3), dtype=np.uint8), "a/1", "a", (16, 16), Frame(0, 0, 16))
    assert training_set.arrange_clips() == (0, {"a": 1})
    assert np.load(tmp_path / "p.npy").shape == (0, 16, 16, 3)
    assert np.load(tmp_path / "c.npy").shape == (0,)

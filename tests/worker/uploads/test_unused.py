"""Boxes and labels of frames that a training does not take are not dropped silently."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from service.contract.jobs.store import Job, JobStatus
from service.contract.media.video_request import space_evenly
from tests.support.arena import arena_frame, encode_film, walk
from worker.uploads.preparer import match_job_labels

COUNT, TAKEN = 36, 12
FRAMES = space_evenly(TAKEN, COUNT)  # 1, 4, 7, …


@pytest.fixture(scope="module")
def film() -> dict[str, bytes]:
    return {"cam.mkv": encode_film(arena_frame((x, y), n) for n, (x, y) in enumerate(walk(COUNT)))}


def prepare(desk: SimpleNamespace, files: dict[str, bytes], boxes: str = "", labels: str = "", **settings) -> Job:
    job = desk.upload(files, desk.tiny(frames_per_clip=TAKEN, **settings))
    if boxes:
        desk.files.boxes(job.id).write_text("image,x,y,width,height\n" + boxes)
    if labels:
        desk.files.labels(job.id).write_text("image,keypoint,x,y,split\n" + labels)
    desk.caretaker.prepare(job.id)
    return desk.jobs.get(job.id)


def box_rows(frames) -> str:
    return "".join(f"cam.mkv#{n:06},{n},20,60,60\n" for n in frames)


def label_rows(frames) -> str:
    return "".join(f"cam.mkv#{n:06},nose,100,{60 + n},{'test' if n % 4 == 3 else 'train'}\n" for n in frames)


def test_corrections_of_frames_that_are_not_taken_are_counted_and_named(desk, film) -> None:
    empty = "cam.mkv#000003,,,,\n"  # nothing is lost by it
    job = prepare(desk, film, box_rows([1, 2, 3, 5, 7, 9]).replace("cam.mkv#000003,3,20,60,60\n", empty))
    assert job.status is JobStatus.QUEUED, job.error
    (warning,) = job.warnings
    assert warning.code == "unused_boxes"
    assert warning.detail == (
        "the boxes name 3 pictures or frames that the training does not take ('cam.mkv#000002', 'cam.mkv#000005', "
        "'cam.mkv#000009'). Of a video, 12 evenly spaced frames are taken: see which boxes the job used, correct "
        "those, or raise frames_per_clip"
    )


@pytest.mark.parametrize("frames", [FRAMES[:3], range(COUNT)])
def test_boxes_of_frames_that_are_taken_or_of_all_frames_are_not_warned_of(desk, film, frames) -> None:
    job = prepare(desk, film, box_rows(frames))
    assert (job.status, job.warnings) == (JobStatus.QUEUED, [])


def test_labels_of_frames_that_are_not_taken_are_counted_and_named(desk, film) -> None:
    taken, others = FRAMES[:10], [0, 2, 3, 5, 6]
    job = prepare(desk, film, labels=label_rows(sorted([*taken, *others])), locate="off", mode="stills")
    assert job.status is JobStatus.QUEUED, job.error
    (warning,) = job.warnings
    assert warning.code == "unused_labels"
    found = "the training does not take 5 of 15 labelled pictures or frames ("
    assert warning.detail.startswith(found + "'cam.mkv#000000', 'cam.mkv#000002', 'cam.mkv#000003', …)")
    assert match_job_labels(desk.files, job.id).without_picture == 5
    again = prepare(desk, film, labels=label_rows(taken), locate="off", mode="stills")
    assert (again.status, again.warnings) == (JobStatus.QUEUED, [])


def test_pictures_that_did_not_come_are_named_without_a_word_of_videos(desk) -> None:
    files = {f"{n:02}.png": desk.picture(n, kind="PNG") for n in range(14)}
    boxes = "".join(f"{n:02}.png,1,2,20,20\n" for n in range(2, 16))
    job = prepare(desk, files, boxes)
    (warning,) = job.warnings
    assert warning.detail == (
        "the boxes name 2 pictures or frames that the training does not take ('14.png', '15.png')"
    )


def test_where_no_frame_of_the_file_is_taken_that_is_said(desk, film) -> None:
    for what, code in (({"boxes": box_rows([2, 3])}, "bad_boxes"), ({"labels": label_rows([2, 3])}, "bad_labels")):
        job = prepare(desk, film, **what)
        assert job.error is not None
        assert job.error.code == code
        assert "'cam.mkv#000002', 'cam.mkv#000003'" in job.error.detail
        assert "of a video, some frames are taken (frames_per_clip)" in job.error.detail

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from PIL import Image

from model.scoring.label_files import parse_labels
from model.scoring.labels import LabelsError
from service.contract import routing
from service.contract.jobs.record import MAX_CRASHES_WITHOUT_PROGRESS
from service.contract.jobs.store import JobStatus, NewJob
from service.contract.media.fitting import Frame, fit_square
from service.contract.media.pictures import open_picture
from service.contract.media.zip_names import HINT
from service.contract.versions.store import STAGING
from tests.support.clocks import set_clock
from tests.support.media import zero_payload
from tests.support.tiffs import PREVIEW, tiff_of
from worker.uploads.media_reader import TrainingSet
from worker.uploads.preparer import match_labels


def test_upload_becomes_squares_and_the_job_is_queued(desk: SimpleNamespace) -> None:
    members = {f"folder/{n}.jpg": desk.picture(n) for n in range(9)}
    job = desk.upload(members)
    desk.caretaker.prepare(job.id)
    queued = desk.jobs.get(job.id)
    assert queued.status is JobStatus.QUEUED
    assert queued.metrics == {
        "images": 9,
        "skipped": 0,
        "skipped_files": [],
        "mode": "stills",
        "clips": 0,
    }
    assert desk.sent == [job.id]
    assert not desk.jobs.is_leased(job.id)
    assert not desk.files.archive(job.id).exists(), "the upload is of no more use"
    squares = np.load(desk.files.pictures(job.id), allow_pickle=False)
    # held to the same pixels as the gateway, which fits with the same two functions
    expected = [fit_square(open_picture(data), 32)[0] for data in members.values()]
    np.testing.assert_array_equal(squares, np.stack(expected))


def test_pictures_that_cannot_be_read_are_counted_and_named(desk: SimpleNamespace) -> None:
    good = {f"{n}.png": desk.picture(n, kind="PNG") for n in range(8)}
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "PNG", save_all=True, append_images=frames[1:])
    bad = {
        "not.jpg": b"hello",
        "short.jpg": desk.picture(1)[:200],
        "dot.png": desk.picture(1, 1, 1, kind="PNG"),
        "film.png": animated.getvalue(),
    }
    job = desk.upload({**bad, **good, "notes.txt": b"ignored"})
    desk.caretaker.prepare(job.id)
    queued = desk.jobs.get(job.id)
    assert queued.status is JobStatus.QUEUED
    assert (queued.metrics["images"], queued.metrics["skipped"]) == (8, 4)
    assert [item["name"] for item in queued.metrics["skipped_files"]] == list(bad)
    assert all(item["reason"] for item in queued.metrics["skipped_files"])
    assert 'ppl_preparation_pictures_total{outcome="skipped"} 4.0' in desk.metrics.text()


def test_video_without_one_decodable_frame_is_named(desk: SimpleNamespace, video) -> None:
    job = desk.upload({"walk.mp4": video(12), "dark.mp4": zero_payload(video(24)), "run.mp4": video(12)})
    desk.caretaker.prepare(job.id)
    metrics = desk.jobs.get(job.id).metrics
    assert (metrics["images"], metrics["clips"], metrics["skipped"]) == (24, 2, 1)
    reason = "not one of its 24 frames can be decoded; they are damaged"
    assert metrics["skipped_files"] == [{"name": "dark.mp4", "reason": reason}]


def test_only_the_first_bad_pictures_are_named_but_all_counted(desk: SimpleNamespace) -> None:
    members = {f"bad{n}.jpg": b"x" for n in range(50)} | {f"{n}.jpg": desk.picture(n) for n in range(8)}
    job = desk.upload(members)
    desk.caretaker.prepare(job.id)
    metrics = desk.jobs.get(job.id).metrics
    assert metrics["skipped"] == 50
    assert len(metrics["skipped_files"]) == 20


def test_too_few_readable_pictures_fail_the_job_and_say_why(desk: SimpleNamespace) -> None:
    job = desk.upload({f"{n}.jpg": desk.picture(n) for n in range(5)} | {"bad.jpg": b"x"})
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "too_few_pictures"
    assert "5 of 6 pictures" in failed.error.detail
    assert "bad.jpg" in failed.error.detail
    assert (failed.metrics["images"], failed.metrics["skipped"]) == (5, 1)
    assert [item["name"] for item in failed.metrics["skipped_files"]] == ["bad.jpg"]
    assert desk.sent == []
    assert desk.files.ids() == []


@pytest.mark.parametrize("data", [b"", b"no archive at all", b"PK\x03\x04 but then nonsense"])
def test_file_that_is_not_an_archive_fails_the_job(desk: SimpleNamespace, data: bytes) -> None:
    job = desk.upload()
    desk.files.archive(job.id).write_bytes(data)
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "bad_archive"


def test_upload_that_is_gone_fails_the_job(desk: SimpleNamespace) -> None:
    job = desk.upload()
    desk.files.archive(job.id).unlink()
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert "send the job again" in failed.error.detail


def test_folder_below_the_data_root_is_read_in_place(desk: SimpleNamespace) -> None:
    folder = desk.settings.data_root / "imports" / "dogs"
    folder.mkdir(parents=True)
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(desk.picture(n))
    job = desk.from_folder("imports/dogs")
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).metrics["images"] == 8
    assert len(list(folder.iterdir())) == 8


@pytest.mark.parametrize("folder", ["imports/none", "../outside", "jobs"])
def test_folder_that_moved_away_since_it_was_checked_fails_the_job(desk: SimpleNamespace, folder: str) -> None:
    job = desk.from_folder(folder)
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "bad_folder"


def test_name_with_invalid_bytes_is_shown_with_replacements(desk: SimpleNamespace) -> None:
    folder = desk.settings.data_root / "imports"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(desk.picture(n))
    (folder / b"\xff\xfe.jpg".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    job = desk.from_folder("imports")
    desk.caretaker.prepare(job.id)
    assert [item["name"] for item in desk.jobs.get(job.id).metrics["skipped_files"]] == ["??.jpg"]


def test_cancel_while_validating_ends_the_job(desk: SimpleNamespace) -> None:
    job = desk.upload()
    desk.jobs._redis.set(f"ppl:job:{job.id}:cancel", "1")  # as the gateway does for a job in a worker's hands
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.CANCELLED
    assert desk.files.ids() == []


def test_stop_while_validating_leaves_the_job_to_the_next_worker(desk: SimpleNamespace) -> None:
    job = desk.upload()
    desk.stop.request()
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.VALIDATING
    assert desk.jobs.record(job.id).starts == 0
    desk.stop.requested = False
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.QUEUED


def test_worker_killed_after_preparing_does_not_prepare_again(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.jobs._redis.delete(f"ppl:job:{job.id}")
    desk.jobs.create(NewJob("dog", job.settings, 6, job_id=job.id))  # as it was before: validating
    written = desk.files.pictures(job.id).stat().st_mtime_ns
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).metrics["images"] == 9
    assert desk.files.pictures(job.id).stat().st_mtime_ns == written


def test_upload_that_kills_its_worker_every_time_fails(desk: SimpleNamespace) -> None:
    job = desk.upload()

    def died(record) -> None:
        record.starts = MAX_CRASHES_WITHOUT_PROGRESS + 1

    desk.jobs.update(job.id, died)
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "abandoned"
    assert desk.files.ids() == []


def test_round_prepares_every_upload_and_revives_what_was_lost(desk: SimpleNamespace) -> None:
    first, second = desk.upload(), desk.upload()
    lost = desk.prepared()
    desk.sent.clear()
    desk.caretaker.run_once()
    assert desk.sent[:2] == [first.id, second.id]
    assert lost.id in desk.sent[2:]


def test_sweep_removes_what_ended_and_keeps_what_may_come(desk: SimpleNamespace) -> None:
    ended, waiting = desk.prepared(), desk.prepared()
    desk.jobs.cancel(ended.id)
    desk.files.create("00000000000000000000aa")  # an upload under way: no record yet
    desk.caretaker.sweep()
    assert desk.files.ids() == sorted([waiting.id, "00000000000000000000aa"])


def test_upload_under_way_outlives_a_clock_that_jumps(desk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.files.create("00000000000000000000aa")
    draft = desk.store.root / "dog" / "versions" / f"{STAGING}20260101T000000-abcdef"
    draft.mkdir(parents=True)
    set_clock(monkeypatch, 86_400.0)
    desk.caretaker.sweep()
    assert desk.files.ids() == ["00000000000000000000aa"]
    assert draft.exists()
    monkeypatch.setattr("service.contract.clocks.WAIT_S", 0.0)  # it stays there: it is taken for right
    desk.caretaker.sweep()
    assert desk.files.ids() == []
    assert not draft.exists()


def test_job_whose_record_a_later_release_wrote_stays_and_holds_up_no_other(
    desk: SimpleNamespace, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    odd, plain = desk.prepared(), desk.upload()
    key = routing.job_key(odd.id)
    record = json.loads(redis_client.hget(key, "record"))
    record["job"]["status"] = "shared"
    redis_client.hset(key, "record", json.dumps(record))
    desk.caretaker.run_once()
    assert desk.jobs.get(plain.id).status is JobStatus.QUEUED
    desk.caretaker.sweep()
    desk.runner.run(odd.id)  # its message came before the release went back
    assert f"UnreadableJob: the record of job {odd.id}" in caplog.text
    assert desk.files.ids() == sorted([odd.id, plain.id])
    assert json.loads(redis_client.hget(key, "record")) == record
    assert not desk.jobs.is_leased(odd.id)


def test_job_that_another_process_prepares_is_left_alone(desk: SimpleNamespace) -> None:
    job = desk.upload()
    assert desk.jobs.acquire(job.id, "other") is not None
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.VALIDATING


def test_square_file_is_what_numpy_reads(tmp_path) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (1234, 16, 16, 3), dtype=np.uint8)
    with TrainingSet(tmp_path / "x.npy", tmp_path / "clips.npy", 16) as file:
        for square in squares:
            file.append(square, "x", ".", (16, 16), Frame(0, 0, 16))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="c", allow_pickle=False), squares)


def deep(highest: int) -> np.ndarray:
    """A picture of 16 bits that a camera of fewer filled, the same but for its brightness."""
    return np.rint(np.linspace(0, highest, 32 * 32)).reshape(32, 32).astype(np.uint16)


def test_pictures_of_more_than_8_bits_are_scaled_alike(desk: SimpleNamespace) -> None:
    members = {f"{n}.tif": tiff_of(deep(500 * n + 500)) for n in range(8)}
    job = desk.upload(members)
    desk.caretaker.prepare(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.QUEUED
    squares = np.load(desk.files.pictures(job.id), allow_pickle=False)
    expected = [round((500 * n + 500) * 255 / 4095) for n in range(8)]
    np.testing.assert_allclose(squares.max(axis=(1, 2, 3)), expected, atol=1)


@pytest.mark.parametrize("as_folder", [False, True])
def test_stacks_are_clips_and_their_previews_no_frames(desk: SimpleNamespace, as_folder: bool) -> None:
    preview = (np.zeros((8, 8), np.uint8), PREVIEW)
    stacks = {f"{name}.tif": tiff_of(*[deep(highest)] * 5, preview) for name, highest in (("a", 4000), ("b", 60_000))}
    if as_folder:
        folder = desk.settings.data_root / "stacks"
        folder.mkdir()
        for name, data in stacks.items():
            (folder / name).write_bytes(data)
        job = desk.from_folder("stacks")
    else:
        job = desk.upload(stacks)
    desk.caretaker.prepare(job.id)
    queued = desk.jobs.get(job.id)
    assert queued.metrics == {"images": 10, "skipped": 0, "skipped_files": [], "mode": "clips", "clips": 2}
    info = json.loads(desk.files.pictures_info(job.id).read_text())
    assert info["names"] == [f"{name}.tif#{number:06d}" for name in "ab" for number in range(5)]
    squares = np.load(desk.files.pictures(job.id), allow_pickle=False)
    assert squares[:5].max() == round(4000 * 255 / 4095)
    assert squares[5:].max() == round(60_000 * 255 / 65535)


def test_labels_that_match_nothing_say_how_names_in_a_zip_are_read() -> None:
    labels = parse_labels("image,keypoint,x,y\nHündin.jpg,nose,1,1\n".encode())
    with pytest.raises(LabelsError, match="code page 437"):
        match_labels(labels, ["HĂ…ndin.jpg"], [(9, 9)], hint=HINT)
    with pytest.raises(LabelsError) as caught:
        match_labels(labels, ["dog.jpg"], [(9, 9)], hint=HINT)
    assert "code page" not in str(caught.value)

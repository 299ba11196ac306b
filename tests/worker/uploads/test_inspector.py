"""What a worker finds in datasets, also when it stops or crashes, or the dataset is deleted meanwhile."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from service.contract.datasets.dataset import Dataset, DatasetStatus, Findings
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import StoreCorrupt, UnknownDataset
from service.contract.jobs.record import MAX_CRASHES_WITHOUT_PROGRESS
from tests.support.tiffs import tiff_of
from tests.worker.conftest import picture
from worker.jobs import Stop
from worker.settings import WorkerSettings
from worker.uploads import inspection
from worker.uploads.inspection import Inspector


def plain(colour: tuple[int, int, int], width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def sheet_of(lab: SimpleNamespace, dataset: Dataset) -> Image.Image:
    image = Image.open(io.BytesIO(lab.files.sheet(dataset.id).read_bytes()))
    assert image.format == "JPEG"
    return image


# what is found


def test_pictures_are_counted_and_measured(lab: SimpleNamespace) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100)).save(turned, "JPEG", exif=exif)
    members = {"a.png": plain((1, 2, 3), 20, 30), "b.jpg": picture(1, 64, 65), "c.jpg": turned.getvalue()}
    dataset = lab.found({**members, "d.webp": plain((9, 9, 9), 63, 500, "WEBP")})

    assert (dataset.status, dataset.mode, dataset.error) == (DatasetStatus.READY, "stills", None)
    found = dataset.found
    assert (found.pictures, found.videos, found.clips, found.skipped, found.duplicates) == (4, 0, 0, 0, 0)
    assert found.formats == {"JPEG": 2, "PNG": 1, "WEBP": 1}
    assert found.sizes is not None
    assert (found.sizes.smallest, found.sizes.median, found.sizes.largest) == ((20, 30), (100, 300), (63, 500))
    assert [(s.from_px, s.below_px, s.count) for s in found.sizes.by_shorter_side] == [
        (16, 32, 1),
        (32, 64, 1),
        (64, 128, 2),
    ]
    assert dataset.contact_sheet == f"/datasets/{dataset.id}/contact-sheet"
    sheet_of(lab, dataset)


def test_files_left_out_are_named_with_their_reason(lab: SimpleNamespace) -> None:
    bad = {
        "broken.jpg": picture(0)[:300],
        "text.png": b"not a picture",
        "dot.png": plain((0, 0, 0), 2, 2),
        "notes.txt": b"hello",
        "empty.png": b"",
    }
    dataset = lab.found({"a.png": plain((1, 1, 1)), ".hidden": b"x", "__MACOSX/._a.png": b"x", **bad})

    assert dataset.status is DatasetStatus.READY
    assert (dataset.found.pictures, dataset.found.skipped) == (1, 5)
    reasons = {item.name: item.reason for item in dataset.found.skipped_files}
    assert list(reasons) == list(bad)
    assert "not named as a picture" in reasons["notes.txt"]
    assert "2 x 2" in reasons["dot.png"]


def test_list_of_files_left_out_is_short_and_all_are_counted(lab: SimpleNamespace) -> None:
    dataset = lab.found({"a.png": plain((1, 1, 1)), **{f"bad{n}.jpg": b"x" for n in range(50)}})
    assert dataset.found.skipped == 50
    assert len(dataset.found.skipped_files) == 20


def test_duplicate_pictures_are_listed(lab: SimpleNamespace) -> None:
    one = picture(1)
    dataset = lab.found({"a.jpg": one, "b.jpg": picture(2), "sub/c.jpg": one, "d.jpg": one})
    assert dataset.found.duplicates == 2
    assert [(twin.name, twin.same_as) for twin in dataset.found.duplicate_files] == [
        ("sub/c.jpg", "a.jpg"),
        ("d.jpg", "a.jpg"),
    ]
    assert dataset.found.pictures == 4, "training reads them all"


def test_nothing_readable_fails_with_the_reasons(lab: SimpleNamespace) -> None:
    dataset = lab.found({"a.jpg": b"x", "b.png": b"y"})
    assert dataset.status is DatasetStatus.FAILED
    assert dataset.error is not None
    assert dataset.error.code == "too_few_pictures"
    assert "a.jpg" in dataset.error.detail
    assert dataset.found.skipped == 2
    assert dataset.contact_sheet is None


def test_truncated_archive_fails_with_what_was_found(lab: SimpleNamespace) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(3):
            data = picture(number)
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    whole = buffer.getvalue()
    dataset = lab.put(whole)
    path = lab.files.archive(dataset)
    path.write_bytes(whole[: 512 + len(picture(0))] + b"\xff" * 4096)
    lab.inspector.run_once()
    shown = lab.files.get(dataset)
    assert shown.error is not None
    assert (shown.status, shown.error.code, shown.found.pictures) == (DatasetStatus.FAILED, "bad_archive", 1)


# clips


def test_folders_are_clips_each_with_a_row(lab: SimpleNamespace) -> None:
    colours = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
    members = {f"{name}/{n}.png": plain(colour) for name, colour in colours.items() for n in range(12)}
    dataset = lab.found({**members, "lone/0.png": plain((9, 9, 9))}, mode="clips")

    assert (dataset.found.pictures, dataset.found.clips) == (37, 3)
    assert [item.name for item in dataset.found.skipped_files] == ["lone"]
    sheet = sheet_of(lab, dataset)
    assert sheet.size == (8 * 132 + 4, 3 * 132 + 4)
    for row, name in enumerate(sorted(colours)):
        for column in range(8):
            seen = np.array(sheet.getpixel((68 + 132 * column, 68 + 132 * row)), float)
            assert np.abs(seen - colours[name]).max() < 12


def test_videos_are_clips_each_with_a_row(lab: SimpleNamespace, video: Callable[..., bytes]) -> None:
    dataset = lab.found({"a.mp4": video(12), "b.avi": video(30, "avi"), "bad.mp4": b"\0\0\0\x18ftypmp42" + b"x" * 99})
    assert (dataset.mode, dataset.status) == ("clips", DatasetStatus.READY)
    assert (dataset.found.videos, dataset.found.clips, dataset.found.pictures) == (2, 2, 0)
    assert [item.name for item in dataset.found.skipped_files] == ["bad.mp4"]
    assert dataset.found.sizes is not None
    assert [s.count for s in dataset.found.sizes.by_shorter_side] == [2], "one size a video"
    assert sheet_of(lab, dataset).size[1] == 2 * 132 + 4
    assert not list(lab.files.folder(dataset.id).glob("video")), "no copy of a video is left"
    assert dataset.found.frames == [f"a.mp4#{n:06d}" for n in (0, 2, 3, 5, 6, 8, 9, 11)] + [
        f"b.avi#{n:06d}" for n in (1, 5, 9, 13, 16, 20, 24, 28)
    ]


def test_bare_video_has_its_own_name(lab: SimpleNamespace, video: Callable[..., bytes]) -> None:
    dataset = lab.found(video(12))
    assert (dataset.found.videos, dataset.found.clips) == (1, 1)
    assert sheet_of(lab, dataset).size == (8 * 132 + 4, 132 + 4)


def test_frames_and_pictures_are_stills_together(lab: SimpleNamespace, video: Callable[..., bytes]) -> None:
    dataset = lab.found({"a.mp4": video(12), "b.png": plain((1, 1, 1), 100, 100)}, mode="stills")
    assert (dataset.found.videos, dataset.found.pictures, dataset.found.clips) == (1, 1, 0)
    assert sheet_of(lab, dataset).size[0] > 132


# the sheet


def test_sheet_shows_pictures_spread_over_the_whole_set_cut_to_squares(lab: SimpleNamespace) -> None:
    def striped(number: int) -> bytes:  # its middle square says which one it is, its sides are white
        image = Image.new("RGB", (90, 30), "white")
        image.paste((2 * number, 0, 0), (30, 0, 60, 30))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    members = {f"{n:03}.png": striped(n) for n in range(120)}
    members["050.png"] = b"can't be read: another one stands in"
    sheet = sheet_of(lab, lab.found(members))

    assert sheet.size == (8 * 132 + 4, 6 * 132 + 4)
    reds = [sheet.getpixel((68 + 132 * (n % 8), 68 + 132 * (n // 8)))[0] / 2 for n in range(48)]
    corners = [sheet.getpixel((12 + 132 * (n % 8), 12 + 132 * (n // 8)))[1] for n in range(48)]
    np.testing.assert_allclose(reds, np.arange(48) * 2.5, atol=4)
    assert max(corners) < 40, "the sides are cut off"


def test_pictures_that_cannot_be_read_leave_no_hole_in_the_sheet(lab: SimpleNamespace) -> None:
    members = {f"{n}.png": plain((20 * n, 0, 0)) for n in range(10)} | {"3.png": b"x"}
    sheet = sheet_of(lab, lab.found(members))
    assert sheet.size == (8 * 132 + 4, 2 * 132 + 4)
    reds = [sheet.getpixel((68 + 132 * (n % 8), 68 + 132 * (n // 8)))[0] / 20 for n in range(9)]
    np.testing.assert_allclose(reds, [0, 1, 2, 4, 5, 6, 7, 8, 9], atol=0.3)
    assert sheet.getpixel((68 + 132, 68 + 132)) == (255, 255, 255), "none came for the last cells"


def test_stacks_are_clips_each_with_a_row(lab: SimpleNamespace) -> None:
    pages = [np.full((30, 40), value, np.uint16) for value in (1000, 2000, 4000)]
    dataset = lab.found({"a.tif": tiff_of(*pages), "b.tif": tiff_of(*pages[:2])})
    assert (dataset.status, dataset.mode) == (DatasetStatus.READY, "clips")
    found = dataset.found
    assert (found.pictures, found.videos, found.clips, found.skipped) == (0, 2, 2, 0)
    sheet = np.asarray(sheet_of(lab, dataset).convert("L")).astype(int)
    assert (sheet > 200).any(), "the brightest page is drawn"


def test_frame_that_cannot_be_read_leaves_its_place_in_the_row_of_its_clip(lab: SimpleNamespace) -> None:
    members = {f"{clip}/{n}.png": plain((0, 0, 20 * n)) for clip in "ab" for n in range(8)} | {"a/2.png": b"x"}
    sheet = sheet_of(lab, lab.found(members, mode="clips"))
    assert sheet.getpixel((68 + 132 * 2, 68))[0] > 240
    assert abs(sheet.getpixel((68 + 132 * 3, 68))[2] - 60) < 8


def test_sheet_of_few_pictures_is_small(lab: SimpleNamespace) -> None:
    sheet = sheet_of(lab, lab.found({f"{n}.png": plain((n, n, n)) for n in range(3)}))
    assert sheet.size == (3 * 132 + 4, 132 + 4)


# labels


def test_labels_are_matched_before_training(lab: SimpleNamespace) -> None:
    rows = "".join(f"{n}.jpg,nose,3,4\n" for n in (*range(20), 77))
    labels = f"image,keypoint,x,y\n{rows}".encode()
    dataset = lab.found({f"{n}.jpg": picture(n) for n in range(24)}, labels=labels)
    assert dataset.found.labels is not None
    assert (dataset.found.labels.pictures, dataset.found.labels.without_picture) == (20, 1)
    assert 0 < (dataset.found.labels.held_out or 0) < 20
    assert dataset.found.labels.keypoint_names == ["nose"]


def test_labels_of_no_picture_fail(lab: SimpleNamespace) -> None:
    dataset = lab.found({"a.jpg": picture()}, labels=b"image,keypoint,x,y\nother.jpg,nose,3,4\n")
    assert dataset.status is DatasetStatus.FAILED
    assert dataset.error is not None
    assert dataset.error.code == "bad_labels"
    assert dataset.found.pictures == 1, "the findings are kept"


# whatever happens


def test_stop_sets_it_aside_and_it_is_begun_anew(lab: SimpleNamespace) -> None:
    dataset = lab.put({f"{n}.jpg": picture(n) for n in range(9)})
    lab.stop.request()
    lab.inspector.run_once()
    lab.inspector.inspect(dataset)
    assert lab.files.findings(dataset) == Findings(), "an orderly stop is not a crash"
    lab.stop.requested = False
    lab.inspector.run_once()
    assert lab.files.get(dataset).found.pictures == 9


def _die_over(root: Path, dataset: str) -> None:
    inspection.Inspection.run = lambda *_: os._exit(9)  # type: ignore[assignment]
    Inspector(DatasetFiles(root), WorkerSettings(data_root=root), Stop()).inspect(dataset)


def test_dataset_whose_worker_was_killed_is_taken_up_again_but_not_for_ever(
    lab: SimpleNamespace, data_root: Path
) -> None:
    dataset = lab.put({"a.jpg": picture()})
    fork = multiprocessing.get_context("spawn")

    def kill_one() -> None:
        process = fork.Process(target=_die_over, args=(data_root, dataset))
        process.start()
        process.join(250)
        assert process.exitcode == 9

    kill_one()
    assert lab.files.get(dataset).status is DatasetStatus.INSPECTING
    lab.files.write_findings(dataset, Findings(starts=MAX_CRASHES_WITHOUT_PROGRESS + 1))
    lab.inspector.run_once()
    given_up = lab.files.get(dataset)
    assert given_up.error is not None
    assert (given_up.status, given_up.error.code) == (DatasetStatus.FAILED, "abandoned")

    lab.files.write_findings(dataset, Findings(starts=1))
    lab.inspector.run_once()
    assert lab.files.get(dataset).status is DatasetStatus.READY


def test_dataset_is_inspected_by_one_process_at_a_time(lab: SimpleNamespace) -> None:
    dataset = lab.put({"a.jpg": picture()})
    with lab.files.lock_inspection(dataset) as mine:
        assert mine
        lab.inspector.run_once()
        assert lab.files.get(dataset).status is DatasetStatus.INSPECTING
    lab.inspector.run_once()
    assert lab.files.get(dataset).status is DatasetStatus.READY


def test_dataset_may_be_deleted_while_it_is_looked_into(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = lab.put({f"{n}.jpg": picture(n) for n in range(9)})
    other = lab.put({"z.jpg": picture(99)})
    take = inspection.MediaReader.read_picture

    def delete_first(reader: inspection.MediaReader, data: bytes, name: str) -> None:
        if name == "3.jpg":
            lab.files.remove(dataset)
        take(reader, data, name)

    monkeypatch.setattr(inspection.MediaReader, "read_picture", delete_first)
    lab.inspector.run_once()
    with pytest.raises(UnknownDataset):
        lab.files.get(dataset)
    assert not list(lab.files.folder(dataset).parent.glob(f"*{dataset}*")), "nothing is written where it was"
    assert lab.files.get(other).status is DatasetStatus.READY
    assert "inspection failed" not in caplog.text


def test_internal_error_fails_the_dataset_and_is_not_retried(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspection.ContactSheet, "add", fault)
    dataset = lab.found({"a.jpg": picture()})
    assert dataset.error is not None
    assert (dataset.status, dataset.error.code) == (DatasetStatus.FAILED, "training_failed")
    assert lab.files.list_waiting() == []


def test_one_that_failed_is_looked_into_again_once_its_findings_are_gone(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(inspection.ContactSheet, "save", fault)
        dataset = lab.found({"a.jpg": picture()})
    assert dataset.error is not None
    assert dataset.error.code == "disk_full"
    lab.inspector.run_once()
    assert lab.files.get(dataset.id).status is DatasetStatus.FAILED
    (lab.files.folder(dataset.id) / "findings.json").unlink()  # as the gateway does where the same bytes come again
    lab.inspector.run_once()
    assert lab.files.get(dataset.id).status is DatasetStatus.READY


def test_findings_are_written_during_the_inspection(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.uploads.inspection._WRITE_EVERY_S", 0)
    dataset = lab.put({f"{n}.jpg": picture(n) for n in range(6)})
    seen = []
    write = lab.files.write_findings

    def watch(dataset_id: str, findings: Findings) -> None:
        write(dataset_id, findings)
        reported = json.loads((lab.files.folder(dataset) / "findings.json").read_text())
        seen.append((reported["status"], reported["found"]["pictures"]))

    monkeypatch.setattr(lab.files, "write_findings", watch)
    lab.inspector.inspect(dataset)
    assert seen == [("inspecting", n) for n in range(7)] + [("ready", 6)]


def test_thread_inspects_and_stops(lab: SimpleNamespace) -> None:
    before = threading.active_count()
    lab.inspector.start()
    dataset = lab.put({"a.jpg": picture()})
    deadline = time.monotonic() + 30
    while lab.files.get(dataset).status is DatasetStatus.INSPECTING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.inspector.stop()
    assert threading.active_count() == before


def test_damaged_dataset_holds_up_and_hides_no_other(lab: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    damaged = [lab.put({f"{n}.png": plain((n, n, n))}) for n in range(2)]
    (lab.files.folder(damaged[0]) / "findings.json").write_text('{"status": "unheard of"}')
    (lab.files.folder(damaged[1]) / "dataset.json").write_text("{")
    good = lab.put({"good.png": plain((9, 9, 9))})
    for _ in range(3):
        lab.inspector.run_once()
    assert lab.files.get(good).status is DatasetStatus.READY
    assert [item.id for item in lab.files.page(10).items] == [good]
    for dataset in damaged:
        with pytest.raises(StoreCorrupt, match=dataset):
            lab.files.get(dataset)
    assert caplog.text.count("dataset skipped") == 1

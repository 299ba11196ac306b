"""What moves in a dataset's videos and folders, found by its inspection before any training."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.version.palette import BOX_RGB
from service.contract.datasets.dataset import Dataset, DatasetStatus, Findings, MotionFound
from service.contract.media.pictures import Picture
from tests.support.arena import BODY, arena_frame, encode_film, walk, walk_angles, walker_frame
from tests.support.tiffs import tiff_of
from tests.worker.conftest import picture
from worker.uploads import media_reader, motion_search
from worker.uploads.motion_search import MotionSearch

COUNT = 64
PLACES, ANGLES = walk(COUNT), walk_angles(COUNT)


@pytest.fixture(scope="module")
def film() -> bytes:
    """A walker of whom each place is known, of twice the size; it is away from frame 48 on."""
    frames = [walker_frame(tuple(PLACES[n]), ANGLES[n], n) for n in range(48)]
    return encode_film([*frames, *(arena_frame(None, n) for n in range(48, COUNT))], 2)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def motion_of(dataset: Dataset) -> MotionFound:
    assert dataset.status is DatasetStatus.READY, dataset.error
    assert dataset.found.motion is not None
    return dataset.found.motion


def yellow(lab: SimpleNamespace, dataset: Dataset) -> np.ndarray:
    """Return whether each pixel of the sheet has the colour of boxes (H, W)."""
    sheet = Image.open(io.BytesIO(lab.files.sheet(dataset.id).read_bytes()))
    return np.abs(np.asarray(sheet, int) - BOX_RGB).max(2) < 70


def test_boxes_of_a_video_are_at_the_thing_and_drawn_on_the_sheet(lab, film) -> None:
    dataset = lab.found(film)
    motion, shown = motion_of(dataset), [round((2 * n + 1) * COUNT / 16) for n in range(8)]
    assert dataset.found.frames == [f"walk.mp4#{n:06d}" for n in shown]
    assert (motion.sure, motion.clips, motion.frames, motion.found, motion.note) == (True, 1, 40, 30, None)
    assert [box.image for box in motion.boxes] == [f"walk.mp4#{n:06d}" for n in shown[:6]], "it is in no later one"
    for number, box in zip(shown, motion.boxes, strict=False):
        centre = np.array([box.x + box.width / 2, box.y + box.height / 2])
        assert np.hypot(*(centre - 2 * PLACES[number])) < 0.2 * BODY, "a tenth of its length: the film is enlarged"
        assert box.width == box.height == pytest.approx(motion.side_px, abs=0.1)
        assert 2 * BODY <= box.width <= 3.4 * BODY
        assert abs((box.angle - ANGLES[number] + 180) % 360 - 180) < 8
    drawn = yellow(lab, dataset)
    assert drawn.shape == (136, 8 * 132 + 4)
    for column, number in enumerate(shown):
        rows, columns = np.nonzero(drawn[:, 4 + 132 * column : 132 + 132 * column])
        if column >= 6:
            assert not len(rows)
            continue
        scale = 128 / 320  # the whole frame is in the cell, 96 pixels high
        assert abs((columns.min() + columns.max()) / 2 - scale * PLACES[number][0]) < 3
        assert abs((rows.min() + rows.max()) / 2 - 4 - 16 - scale * PLACES[number][1]) < 3


def test_nothing_is_found_where_the_camera_moves(lab) -> None:
    frames = [arena_frame(tuple(place), n, shift=5 * n) for n, place in enumerate(PLACES)]
    dataset = lab.found({"a.mkv": encode_film(frames)})
    motion = motion_of(dataset)
    assert (motion.sure, motion.frames, motion.found, motion.side_px, motion.boxes) == (False, 40, 0, None, [])
    assert motion.note is not None
    assert motion.note.startswith("a.mkv: ")
    assert not yellow(lab, dataset).any()


def test_of_many_videos_the_first_dozen_is_looked_at(lab, monkeypatch) -> None:
    film = encode_film([walker_frame(tuple(PLACES[n]), ANGLES[n], n) for n in range(0, COUNT, 6)])
    read, iter_frames = [], media_reader.iter_frames

    def note(path, count, *arguments, **named):
        read.append((count, named["longer_side"]))
        return iter_frames(path, count, *arguments, **named)

    monkeypatch.setattr(media_reader, "iter_frames", note)
    dataset = lab.found({f"{n:02}.mkv": film for n in range(14)})
    motion = motion_of(dataset)
    assert (dataset.found.videos, len(dataset.found.frames)) == (14, 96)
    assert (motion.sure, motion.clips, motion.frames, motion.found, len(motion.boxes)) == (True, 12, 132, 132, 96)
    assert read == [(40, 320)] * 12 + [(8, None)] * 2


def test_pictures_of_a_folder_are_looked_at_like_frames(lab) -> None:
    frames = {f"cam/{n:02}.png": png(walker_frame(tuple(PLACES[n]), ANGLES[n], n)) for n in range(0, COUNT, 4)}
    dataset = lab.found({**frames, "cam/99.png": b"x"})
    motion = motion_of(dataset)
    assert (motion.sure, motion.clips, motion.frames, motion.found) == (True, 1, 16, 16)
    assert [box.image for box in motion.boxes] == list(frames)
    for number, box in zip(range(0, COUNT, 4), motion.boxes, strict=True):
        assert np.hypot(box.x + box.width / 2 - PLACES[number][0], box.y + box.height / 2 - PLACES[number][1]) < 4


def test_of_many_pictures_some_are_looked_at_and_those_drawn(tmp_path) -> None:
    with (tmp_path / "copies").open("w+b") as file:
        search = MotionSearch(file, 3 * motion_search.MOST_PICTURES)
        for n in range(COUNT):
            image = walker_frame(tuple(PLACES[n]), ANGLES[n], n)
            search.add_picture(Picture.of(image), f"{n:02}.png", ".", is_drawn=n == 1)
        found, _ = search.finish((), lambda: None)
    assert found.frames == found.found == 23
    assert [box.image for box in found.boxes] == ["00.png", "01.png", *(f"{n:02}.png" for n in range(3, COUNT, 3))]


def test_pictures_of_several_cameras_have_no_boxes_and_are_given_up_soon(lab, monkeypatch) -> None:
    seen = []
    keep = motion_search.MotionFinder.keep
    monkeypatch.setattr(motion_search.MotionFinder, "keep", lambda *given: (seen.append(given[2]), keep(*given)))
    dataset = lab.found({f"{n:02}.jpg": picture(n, 40 + n % 3, 30) for n in range(60)})
    motion = motion_of(dataset)
    assert (motion.sure, motion.clips, motion.frames, motion.boxes) == (False, 1, 60, [])
    assert motion.note == ".: not one thing before a fixed camera"
    assert seen == [f"{n:02}.jpg" for n in range(32)]


def test_frames_of_a_stack_are_looked_at_and_not_listed(lab) -> None:
    pages = [np.asarray(arena_frame(tuple(PLACES[n]), n).convert("L")) for n in range(0, COUNT, 4)]
    motion = motion_of(lab.found({"cam.tif": tiff_of(*pages)}))
    assert (motion.sure, motion.clips, motion.frames, motion.found, motion.boxes) == (True, 1, 16, 16, [])


def test_frames_before_the_damage_of_a_video_are_looked_at(lab, film) -> None:
    dataset = lab.found({"a.mkv": film[: len(film) // 2]})
    motion = motion_of(dataset)
    assert motion.sure
    assert 8 < motion.frames < 30
    assert (dataset.found.videos, dataset.found.skipped, len(dataset.found.frames)) == (1, 1, 8)
    assert f"{motion.frames} frames from before are kept" in dataset.found.skipped_files[0].reason


def test_dataset_that_came_with_boxes_is_not_searched(lab, film) -> None:
    dataset = lab.found(film, boxes=True)
    assert dataset.found.motion is None
    assert len(dataset.found.frames) == 8


def test_whole_frames_in_which_it_wanders_give_a_warning_only_where_motion_is_not_sure(lab) -> None:
    frames = {}
    for number, (x, y) in enumerate(np.random.default_rng(0).uniform(30, 210, (COUNT, 2))):
        image = Image.new("RGB", (240, 240), (150, 150, 150))
        ImageDraw.Draw(image).ellipse((x - 15, y - 8, x + 15, y + 8), fill=(40, 40, 40))
        frames[f"{number:02}.png"] = png(image)
    found = lab.found({f"cam/{name}": data for name, data in frames.items()}).found
    assert (found.motion.sure, found.warnings) == (True, [])
    found = lab.found({f"{name}/{name}": data for name, data in frames.items()}).found  # a camera each
    assert (found.motion.sure, [warning.code for warning in found.warnings]) == (False, ["varying_place"])


def test_names_that_are_not_text_can_be_listed(lab, film) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("caf\udce9.mkv")
        info.size = len(film)
        archive.addfile(info, io.BytesIO(film))
    found = lab.found(file.getvalue()).found
    assert found.frames[0] == found.motion.boxes[0].image == "caf?.mkv#000004"


def test_findings_from_before_motion_was_looked_for_are_read() -> None:
    old = '{"status": "ready", "found": {"videos": 1, "frames": ["a.mp4#000003"]}, "error": null, "starts": 1}'
    assert Findings.model_validate_json(old).found.motion is None

"""Warnings, before any training, of pictures in which the thing is not of one size and in one place."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.contract.datasets.dataset import DatasetRecord
from service.contract.datasets.store import DatasetFiles
from service.contract.jobs.job import Job, JobStatus
from service.contract.jobs.warnings import WarningCode
from service.contract.media.archives import check_archive
from tests.support.arena import arena_frame, walk
from tests.worker.conftest import zipped
from worker.jobs import Stop
from worker.uploads.inspection import Inspector
from worker.uploads.placement import (
    FEWEST_PICTURES,
    MOST_PICTURES,
    find_warnings,
    measure_placement,
    measure_wandering,
    shrink,
    spread_rows,
)

SIDE = 96
COUNT = FEWEST_PICTURES


def fish(rng: np.random.Generator, extent: float, centre: tuple[float, float]) -> Image.Image:
    """Draw a fish that faces left, of an extent and at a centre in shares of the side, before a ground of its own."""
    coarse = rng.integers(40, 216, (rng.integers(3, 12), rng.integers(3, 12), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw, size = ImageDraw.Draw(image), extent * SIDE / 2
    x, y = centre[0] * SIDE, centre[1] * SIDE
    body = tuple(int(value) for value in rng.integers(90, 255, 3))
    bend = rng.uniform(-0.3, 0.3) * size
    draw.polygon([(x + 0.5 * size, y), (x + size, y - 0.5 * size + bend), (x + size, y + 0.5 * size + bend)], fill=body)
    draw.ellipse((x - size, y - 0.5 * size, x + 0.6 * size, y + 0.5 * size), fill=body, outline=(20, 20, 20))
    draw.ellipse((x - 0.8 * size, y - 0.3 * size, x - 0.6 * size, y - 0.1 * size), fill=(10, 10, 10))
    return image


def fish_pictures(*, wander: bool, count: int = COUNT) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    pictures = []
    for _ in range(count):
        extent = rng.uniform(0.25, 0.5) if wander else rng.uniform(0.75, 0.85)
        free = (1 - extent) / 2 if wander else 0.05
        pictures.append(fish(rng, extent, (0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free))))
    return pictures


def arena_frames(*, cut: bool) -> list[Image.Image]:
    frames = []
    for number, (x, y) in enumerate(walk(COUNT)):
        frame = arena_frame((x, y), number)
        frames.append(frame.crop((x - 40, y - 40, x + 40, y + 40)) if cut else frame.crop((0, 0, 240, 240)))
    return frames


def copies_of(pictures: list[Image.Image]) -> list[np.ndarray]:
    return [shrink(np.asarray(picture)) for picture in pictures]


def members(pictures: list[Image.Image], folder: str = "") -> dict[str, bytes]:
    found = {}
    for number, picture in enumerate(pictures):
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        found[f"{folder}{number:03}.png"] = file.getvalue()
    return found


def test_a_wandering_thing_is_warned_of_and_one_of_one_size_and_place_is_not() -> None:
    same, wandering = (copies_of(fish_pictures(wander=wander)) for wander in (False, True))
    assert find_warnings(same, ["."] * COUNT, is_located=False) == []
    (warning,) = find_warnings(wandering, ["."] * COUNT, is_located=False)
    assert warning.code is WarningCode.VARYING_PLACE
    assert "MegaDetector" in warning.detail
    assert measure_placement(np.stack(same)) > 0.4 > 0.15 > measure_placement(np.stack(wandering))


def test_what_moves_before_a_still_ground_is_found_in_each_clip() -> None:
    whole, cut = (copies_of(arena_frames(cut=cut)) for cut in (False, True))
    (warning,) = find_warnings(whole, ["cam"] * COUNT, is_located=False)
    assert warning.code is WarningCode.MOVING_THING
    assert "locate=motion" in warning.detail
    assert find_warnings(whole, None, is_located=False) == [], "a still ground predicts every place"
    assert find_warnings(cut, ["cam"] * COUNT, is_located=True) == []
    other = [np.rot90(picture).copy() for picture in whole]
    both = np.stack(whole + other)
    assert measure_wandering(both, ["a"] * COUNT + ["b"] * COUNT) > 3, "each has a background of its own"
    assert measure_wandering(both, [f"{number // 7}" for number in range(2 * COUNT)]) == 0, "clips are too short"


def test_boxes_are_to_be_looked_at_where_they_do_not_help() -> None:
    (warning,) = find_warnings(copies_of(fish_pictures(wander=True)), ["."] * COUNT, is_located=True)
    assert "Look at the boxes" in warning.detail


@pytest.mark.parametrize("colour", [0, 255, None])
def test_pictures_that_are_all_alike_are_measured_too(colour: int | None) -> None:
    one = np.asarray(fish_pictures(wander=False, count=1)[0]) if colour is None else np.full((SIDE, SIDE, 3), colour)
    copies = [shrink(one.astype(np.uint8))] * FEWEST_PICTURES
    codes = [warning.code for warning in find_warnings(copies, ["."] * len(copies), is_located=False)]
    assert codes == ([] if colour is None else [WarningCode.VARYING_PLACE])


def test_few_pictures_are_not_judged_and_many_are_sampled() -> None:
    few = copies_of(fish_pictures(wander=True, count=FEWEST_PICTURES - 1))
    assert find_warnings(few, ["."] * len(few), is_located=False) == []
    assert spread_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = spread_rows(100_000)
    assert (len(rows), rows[0], rows[-1]) == (MOST_PICTURES, 0, 99_999)


def prepare(desk: SimpleNamespace, job: Job) -> Job:
    desk.caretaker.prepare(job.id)
    queued = desk.jobs.get(job.id)
    assert queued.status is JobStatus.QUEUED, queued.error
    return queued


def test_a_job_is_warned_of_before_it_trains(desk: SimpleNamespace) -> None:
    job = prepare(desk, desk.upload(members(fish_pictures(wander=True)), desk.tiny(image_size=64)))
    assert [warning.code for warning in job.warnings] == ["varying_place"]
    assert "warnings" not in job.metrics
    assert prepare(desk, desk.upload(members(fish_pictures(wander=False)), desk.tiny(image_size=64))).warnings == []


def test_a_job_on_whole_frames_is_warned_of_and_one_on_what_moves_is_not(desk: SimpleNamespace) -> None:
    frames = members(arena_frames(cut=False), "cam/")
    whole = prepare(desk, desk.upload(frames, desk.tiny(locate="off", mode="clips")))
    assert [warning.code for warning in whole.warnings] == ["moving_thing"]
    located = prepare(desk, desk.upload(frames, desk.tiny(mode="clips")))
    assert located.metrics["located"]["by"] == "motion"
    assert located.warnings == []


def test_warnings_survive_a_crash_after_the_preparation(desk: SimpleNamespace) -> None:
    job = desk.upload(members(fish_pictures(wander=True)), desk.tiny())
    first = prepare(desk, job)
    desk.jobs.update(job.id, lambda record: setattr(record.job, "status", JobStatus.VALIDATING))
    desk.jobs.update(job.id, lambda record: record.job.warnings.clear())
    assert prepare(desk, job).warnings == first.warnings != []


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("wander", [False, True])
def test_a_dataset_without_boxes_is_warned_of(desk: SimpleNamespace, data_root, wander: bool, boxes: bool) -> None:
    files, staged = DatasetFiles(data_root), data_root / "staged"
    staged.mkdir()
    (staged / "archive").write_bytes(zipped(members(fish_pictures(wander=wander))))
    pictures, now = check_archive(staged / "archive").pictures, datetime.now(UTC)
    facts = {"digest": "sha256:0", "mode": "stills", "size_bytes": 1, "pictures": pictures, "videos": 0}
    record = DatasetRecord(id="0" * 24, created_at=now, boxes=boxes, **facts)
    (staged / "dataset.json").write_text(record.model_dump_json())
    assert files.add(staged, record, 2**40)
    Inspector(files, desk.settings, Stop()).run_once()
    codes = [warning.code for warning in files.get(record.id).found.warnings]
    assert codes == (["varying_place"] if wander and not boxes else [])

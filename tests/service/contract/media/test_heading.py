"""The heading of a thing from above is found by its tail and its movement, and is not known without either."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.contract.media.heading import MIN_CONFIDENCE, find_headings, is_seen_from_above
from service.contract.media.motion import MotionLocator, Track
from tests.support.arena import BODY, walk, walk_angles, walker_frame

COUNT = 80
PLACES, ANGLES = walk(COUNT), walk_angles(COUNT)
Floats = NDArray[np.float64]


def track_of(places: Floats, angles: Floats, tails: Sequence[float | None]) -> Track:
    locator = MotionLocator(io.BytesIO())
    for number, ((x, y), angle, tail) in enumerate(zip(places, angles, tails, strict=True)):
        locator.add(walker_frame((x, y), float(angle), number, tail))
    return locator.locate(headings=True)


def apart(track: Track, angles: Floats) -> Floats:
    """Return how far the angles are from the true ones, in degrees; NaN where there is none."""
    found = np.array([np.nan if angle is None else angle for angle in track.angles])
    return np.abs((found - angles + 180) % 360 - 180)


def test_a_walk_is_followed_by_the_tail_without_one_flip() -> None:
    track = track_of(PLACES, ANGLES, [180.0] * COUNT)
    errors = apart(track, ANGLES)
    assert np.median(errors) < 3
    assert errors.max() < 10
    assert min(track.angle_confidence) > 0.9


def test_boxes_are_the_same_without_headings_which_are_not_looked_for_then() -> None:
    locator = MotionLocator(io.BytesIO())
    for number in range(0, COUNT, 8):
        locator.add(walker_frame(tuple(PLACES[number]), float(ANGLES[number]), number))
    without, asked = locator.locate(), locator.locate(headings=True)
    assert (without.boxes, without.confidence) == (asked.boxes, asked.confidence)
    assert (without.angles, len(asked.angles)) == ((), COUNT // 8)


def test_frames_out_of_order_are_told_by_the_tail_each() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    errors = apart(track_of(PLACES[order], ANGLES[order], [180.0] * COUNT), ANGLES[order])
    assert np.isfinite(errors).mean() > 0.95
    assert np.nanmax(errors) < 10


def test_heading_of_a_thing_without_thin_parts_is_where_it_moves() -> None:
    errors = apart(track_of(PLACES, ANGLES, [None] * COUNT), ANGLES)
    assert np.isfinite(errors).all()
    assert errors.max() < 12


def test_thin_parts_towards_which_it_goes_are_ahead() -> None:
    track = track_of(PLACES, ANGLES, [0.0] * COUNT)
    assert apart(track, ANGLES).max() < 12
    assert min(track.angle_confidence) > 0.9


def test_a_tail_that_is_curled_to_the_front_for_a_while_turns_nothing_round() -> None:
    tails = [20.0 if 35 <= number < 41 else 180.0 for number in range(COUNT)]
    assert apart(track_of(PLACES, ANGLES, tails), ANGLES).max() < 12


def test_without_evidence_there_is_no_angle() -> None:
    """Without a tail, and in no order: the axis alone would have been a coin toss."""
    order = np.random.default_rng(1).permutation(COUNT)
    track = track_of(PLACES[order], ANGLES[order], [None] * COUNT)
    known = [angle for angle in track.angles if angle is not None]
    assert len(known) <= COUNT // 20
    assert all(box is not None for box in track.boxes)
    for angle, confidence in zip(track.angles, track.angle_confidence, strict=True):
        assert (angle is None) == (confidence < MIN_CONFIDENCE)


def test_it_goes_on_looking_the_same_way_while_it_stands() -> None:
    places, angles = (
        np.repeat(PLACES[:40], [1] * 20 + [20] + [1] * 19, 0),
        np.repeat(ANGLES[:40], [1] * 20 + [20] + [1] * 19),
    )
    errors = apart(track_of(places, angles, [None] * len(places)), angles)
    assert errors.max() < 12


@pytest.mark.parametrize("round_one", [0, 5])
def test_a_round_blob_has_no_axis_of_its_own(round_one: int) -> None:
    """Where frames follow each other it takes that of its neighbours."""
    count = 10
    shapes = np.tile([0.3, 0.6, -0.2], (count, 1))
    shapes[round_one] = (1.4, 0.02, 0.2)
    centres = np.linspace((0, 0), (BODY / 10, 0), count)
    angles, _ = find_headings(np.ones(count, bool), shapes, centres, BODY)
    np.testing.assert_allclose(angles, 90 + np.degrees(0.3))
    shapes[:, 0] += 0.8 * np.arange(count)  # turns far from frame to frame
    alone, _ = find_headings(np.ones(count, bool), shapes, 9 * BODY * np.arange(2 * count).reshape(-1, 2), BODY)
    assert np.isnan(alone[round_one])
    assert np.isfinite(np.delete(alone, round_one)).all()


@pytest.mark.parametrize(
    ("angles", "confidence", "expected"),
    [
        (np.arange(0.0, 360, 15), 0.9, True),
        (np.arange(90.0, 270, 7.5), 0.9, True),  # towards one half of the arena only
        (np.arange(0.0, 360, 15), 0.7, False),  # which end is the head is not sure
        (np.arange(0.0, 360, 24), 0.9, False),  # too few to say
        ([90.0, 270] * 20, 0.9, False),  # from the side, to the left and to the right
        ([*range(70, 110), *range(250, 290)], 0.9, False),  # and up and down a slope
        ([None] * 5 + [*range(0, 360, 9)], 0.9, False),  # rolled up too often
        ([None] * 3 + [*range(0, 360, 9)], 0.9, True),
        ([*range(0, 360, 9)], None, True),  # drawn by hand
    ],
)
def test_a_view_from_above_is_one_whose_axis_turns_to_all_sides(
    angles: Sequence[float | None], confidence: float | None, expected: bool
) -> None:
    assert is_seen_from_above(list(angles), [confidence] * len(angles)) is expected


def reared(share: float, count: int = 60) -> tuple[Floats, Floats]:
    """Return headings and places, in body lengths, of a thing that goes to and fro along the ground and rears."""
    steps = np.arange(count)
    way = np.where(steps // 15 % 2 == 0, 1, -1)
    rears = steps % 10 < 10 * share
    tilt = np.where(rears, 50 + 35 * np.sin(steps), 8 * np.sin(steps))
    places = np.stack([np.cumsum(way) * 0.4, np.where(rears, -0.3, 0) + 0.02 * np.sin(steps)], axis=1)
    return (way * (90 - tilt)) % 360, places


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.5, 0.6])
def test_a_thing_that_rears_is_not_seen_from_above(share: float) -> None:
    angles, places = reared(share)
    assert not is_seen_from_above(list(angles), [0.9] * len(angles), places)
    by_axis_alone = is_seen_from_above(list(angles), [0.9] * len(angles))
    assert by_axis_alone is (share >= 0.4)


def test_a_thing_that_also_heads_down_or_goes_up_and_down_is_seen_from_above() -> None:
    angles, places = reared(0.4)
    turned = np.where(np.arange(len(angles)) % 8 == 0, 180 - angles, angles) % 360
    for headings, centres in ((turned, places), (angles, walk(len(angles)) / BODY), (angles, places[:, ::-1])):
        assert is_seen_from_above(list(headings), [0.9] * len(headings), centres)
    assert is_seen_from_above(list(ANGLES), [0.9] * COUNT, PLACES / BODY)

"""What moves before a fixed camera is found in every frame, and nothing is found where it is not."""

from __future__ import annotations

import io
from collections.abc import Iterable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.contract.media.motion import MotionLocator, Track, _find_blob
from tests.support.arena import BODY, arena_frame, walk


def locate(frames: Iterable[Image.Image]) -> Track:
    locator = MotionLocator(io.BytesIO())
    for frame in frames:
        locator.add(frame)
    return locator.locate()


def centres(track: Track) -> np.ndarray:
    return np.array([(box[0] + box[2] / 2, box[1] + box[3] / 2) if box else (np.nan, np.nan) for box in track.boxes])


def test_box_of_one_size_follows_the_body_not_the_tail() -> None:
    places = walk(60)
    track = locate(arena_frame((x, y), number) for number, (x, y) in enumerate(places))
    assert track.sure, track.reason
    assert min(track.confidence) > 0.8
    sides = {box[2:] for box in track.boxes if box}
    assert len(sides) == 1
    ((width, height),) = sides
    assert width == height
    assert BODY <= width <= 1.7 * BODY
    distances = np.linalg.norm(centres(track) - places, axis=1)
    assert distances.max() < 0.1 * BODY


def test_frames_that_do_not_follow_each_other_are_not_smoothed() -> None:
    places = np.random.default_rng(0).permutation(walk(60))
    track = locate(arena_frame((x, y), number) for number, (x, y) in enumerate(places))
    assert track.sure
    assert np.linalg.norm(centres(track) - places, axis=1).max() < 0.1 * BODY


def test_single_wrong_places_are_smoothed_away_in_a_video() -> None:
    places = walk(200)
    seen = places.copy()
    seen[100] += (15, -15)  # as where a shadow joins the body
    track = locate(arena_frame((x, y), number) for number, (x, y) in enumerate(seen))
    assert np.linalg.norm(centres(track)[100] - places[100]) < 5


def test_thing_that_sleeps_in_one_place_for_most_of_the_video_is_found_there_and_elsewhere() -> None:
    places = np.concatenate([np.tile([[60.0, 180.0]], (160, 1)), walk(40)])
    track = locate(arena_frame((x, y), number) for number, (x, y) in enumerate(places))
    assert track.sure, track.reason
    assert all(track.boxes)
    assert np.linalg.norm(centres(track) - places, axis=1).max() < 0.25 * BODY


def test_bright_thing_is_found_as_a_dark_one() -> None:
    places = walk(40)
    track = locate(arena_frame((x, y), number, colour=255) for number, (x, y) in enumerate(places))
    assert track.sure
    assert np.linalg.norm(centres(track) - places, axis=1).max() < 0.15 * BODY


def test_nothing_is_invented_in_frames_without_it_nor_by_changing_light() -> None:
    places: list[tuple[float, float] | None] = [(x, y) for x, y in walk(60)]
    for empty in (*range(10, 20), 45):
        places[empty] = None
    track = locate(arena_frame(place, number, light=number % 7 * 4) for number, place in enumerate(places))
    assert track.sure
    assert [box is None for box in track.boxes] == [place is None for place in places]
    assert [confidence == 0 for confidence in track.confidence] == [place is None for place in places]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([arena_frame((100, 100), n) for n in range(5)], "5 frames"),
        ([arena_frame(None, n) for n in range(20)], "nothing"),
        ([arena_frame((100, 100), n, light=4 * n) for n in range(20)], "nothing"),
        ([arena_frame((160, 120), n, shift=9 * n) for n in range(40)], "moves"),
        ([arena_frame((100, 100 + n), n).resize((320 + n, 240)) for n in range(20)], "different sizes"),
    ],
)
def test_it_is_not_sure_without_one_thing_that_moves_before_a_fixed_camera(
    frames: list[Image.Image], reason: str
) -> None:
    track = locate(frames)
    assert not track.sure
    assert reason in track.reason


def test_pictures_that_differ_altogether_are_no_clip() -> None:
    noise = np.random.default_rng(0)
    frames = [Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((160, 120)) for _ in range(30)]
    assert not locate(frames).sure


def test_boxes_are_in_pixels_of_the_full_picture() -> None:
    places = walk(30)
    locator = MotionLocator(io.BytesIO())
    for number, (x, y) in enumerate(places):
        locator.add(arena_frame((x, y), number), (1280, 960))  # decoded at a quarter of its size
    assert np.linalg.norm(centres(locator.locate()) - 4 * places, axis=1).max() < 0.1 * 4 * BODY


@given(st.integers(0, 10_000), st.floats(0, 900), st.sampled_from([0.001, 0.02, 0.2]))
def test_blobs_are_those_of_the_whole_frame(seed: int, area: float, noise: float) -> None:
    """The search leaves out the background around the foreground, at the frame's edges too."""
    rng = np.random.default_rng(seed)
    difference = (rng.random((60, 80)) < noise).astype(np.uint8) * 50
    for _ in range(rng.integers(0, 4)):
        centre, axes = rng.integers((0, 0), (80, 60)).tolist(), rng.integers(1, 14, 2).tolist()
        cv2.ellipse(difference, centre, axes, float(rng.integers(180)), 0, 360, 50, -1)
    radius = max(1, round(0.3 * area**0.5 / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = cv2.morphologyEx((difference > 20).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel))
    expected = np.zeros(5)
    if len(stats) > 1:
        x, y, width, height, largest = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
        share = largest / stats[1:, cv2.CC_STAT_AREA].sum()
        expected = np.array([largest, share, x + width / 2, y + height / 2, max(width, height)])
    np.testing.assert_array_equal(_find_blob(difference, 20.0, area), expected)

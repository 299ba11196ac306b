"""Several animals are found before a fixed camera, and each keeps its identity where they meet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pytest
from PIL import Image

from service.contract.media.animals import AnimalLocator
from service.contract.media.bodies import Shape, fit_bodies, outline
from service.contract.media.motion import MotionLocator, Track
from tests.support.arena import BODY, arena_frame, pair_frame, pass_by, walk


def locate(frames: Iterable[Image.Image], animals: int = 2, *, headings: bool = False) -> list[Track]:
    locator = AnimalLocator(io.BytesIO())
    for frame in frames:
        locator.add(frame)
    return locator.locate_all(animals, headings=headings)


def centres(track: Track) -> np.ndarray:
    return np.array([(box[0] + box[2] / 2, box[1] + box[3] / 2) if box else (np.nan, np.nan) for box in track.boxes])


def film(places: np.ndarray, colours: Sequence[int] = (40, 40)) -> list[Image.Image]:
    return [pair_frame([tuple(place) for place in both], number, colours) for number, both in enumerate(places)]


def own_track(tracks: Sequence[Track], place: np.ndarray) -> Track:
    """Return the track that is at a place in the first frame."""
    return min(tracks, key=lambda track: float(np.nan_to_num(np.linalg.norm(centres(track)[0] - place), nan=1e9)))


@pytest.mark.parametrize("gap", [0.45 * BODY, 0.2 * BODY])
def test_two_that_pass_keep_their_identities_and_places(gap: float) -> None:
    """In the middle they are one blob, a third or more of which both of them cover."""
    places = pass_by(60, gap)
    tracks = locate(film(places))
    assert [track.reason for track in tracks] == ["", ""]
    sides = {box[2:] for track in tracks for box in track.boxes if box}
    assert len(sides) == 1
    for animal in (0, 1):
        found = centres(own_track(tracks, places[0, animal]))
        apart = np.linalg.norm(found - places[:, animal], axis=1)
        assert apart.max() < 0.25 * BODY
        assert apart[[*range(10), *range(-10, 0)]].max() < 0.1 * BODY


def test_one_that_passes_two_others_in_turn() -> None:
    time = np.arange(60.0)
    places = np.stack(
        [
            np.stack([40 + 4 * time, np.full(60, 120.0)], axis=1),
            np.stack([np.full(60, 120.0), 120 + 2 * (time - 20)], axis=1),
            np.stack([np.full(60, 220.0), 120 + 2 * (45 - time)], axis=1),
        ],
        axis=1,
    )
    tracks = locate(
        (pair_frame([tuple(place) for place in all_of], n, (40, 40, 40)) for n, all_of in enumerate(places)), 3
    )
    for animal in range(3):
        apart = np.linalg.norm(centres(own_track(tracks, places[0, animal])) - places[:, animal], axis=1)
        assert apart.max() < 0.3 * BODY


def test_two_that_meet_and_turn_back_keep_their_identities() -> None:
    ahead = np.concatenate([np.linspace(60, 136, 30), np.linspace(136, 60, 30)])
    places = np.stack([np.stack([ahead, np.full(60, 120.0)], 1), np.stack([320 - ahead, np.full(60, 124.0)], 1)], 1)
    tracks = locate(film(places))
    for animal in (0, 1):
        apart = np.linalg.norm(centres(own_track(tracks, places[0, animal])) - places[:, animal], axis=1)
        assert apart.max() < 0.3 * BODY


def test_looks_correct_who_left_a_meeting_as_who() -> None:
    """Both vanish under a cover and come out where the other one would be expected."""
    there = pass_by(41, 0.4 * BODY)
    swapped = np.concatenate([there[:20], there[20:, ::-1]])  # they jump over each other in the middle of the meeting
    film_of = lambda colours: film(np.concatenate([swapped, swapped[::-1], swapped]), colours)  # noqa: E731
    different = locate(film_of((30, 80)))
    first = own_track(different, swapped[0, 0])
    assert np.linalg.norm(centres(first)[-1] - swapped[-1, 0]) < 0.2 * BODY
    alike = locate(film_of((40, 40)))
    assert np.linalg.norm(centres(own_track(alike, swapped[0, 0]))[-1] - swapped[-1, 1]) < 0.2 * BODY


def test_no_animal_is_invented() -> None:
    """One is away in some frames, and fewer are there than there may be."""
    places = pass_by(40, 3 * BODY)
    frames = [
        pair_frame([tuple(both[0]), None if 10 <= number < 20 else tuple(both[1])], number)
        for number, both in enumerate(places)
    ]
    tracks = locate(frames, 4)
    assert len(tracks) == 4
    counts = [sum(track.boxes[number] is not None for track in tracks) for number in range(40)]
    assert counts == [1 if 10 <= number < 20 else 2 for number in range(40)]
    again = own_track(tracks, places[0, 1])
    assert again.boxes[9] is not None
    assert again.boxes[20] is not None, "it is the only one that was lost"
    assert [track.reason for track in tracks if not any(track.boxes)] == ["it is not found"] * 2


def test_one_animal_is_located_as_before() -> None:
    frames = [arena_frame((x, y), number) for number, (x, y) in enumerate(walk(30))]
    alone = MotionLocator(io.BytesIO())
    for frame in frames:
        alone.add(frame)
    assert locate(frames, 1, headings=True) == [alone.locate(headings=True)]


def test_nothing_is_found_where_nothing_moves() -> None:
    for frames in ([arena_frame(None, n) for n in range(20)], [arena_frame((100, 100), n) for n in range(5)]):
        tracks = locate(frames, 3)
        assert len(tracks) == 3
        assert not any(track.sure or any(track.boxes) for track in tracks)


def test_headings_are_those_of_each() -> None:
    places = pass_by(60, 0.45 * BODY)
    tracks = locate(film(places), headings=True)
    for animal, ahead in ((0, 90.0), (1, 270.0)):
        angles = own_track(tracks, places[0, animal]).angles
        assert sum(angle is None for angle in angles) == 0
        assert np.abs((np.array(angles, float) - ahead + 180) % 360 - 180).max() < 25


def test_bent_bodies_that_lie_on_each_other_are_fitted() -> None:
    shape = Shape(20.0, 7.0, 440.0)
    truth = np.array([[50.0, 50.0, 0.3, 0.4, 0.0], [58.0, 54.0, 1.7, -0.3, 0.0]])
    y, x = np.mgrid[:100, :100]

    mask = np.zeros((100, 100), np.uint8)
    for values in truth:
        cv2.fillPoly(mask, [np.rint(outline(values, shape)).astype(np.int32)], 1)
    points = np.stack([x[mask > 0], y[mask > 0]], axis=1).astype(float)
    priors = np.add(truth, [[2.0, -2.0, 0.2, -0.3, 0.0], [-2.0, 1.0, -0.2, 0.2, 0.0]])
    found, _, wrong = fit_bodies(points, priors, shape)
    assert np.abs(found - truth)[:, :2].max() < 1.5
    assert np.abs(found - truth)[:, 2].max() < 0.15
    assert wrong < 0.35

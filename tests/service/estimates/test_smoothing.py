"""Tracks of keypoints are smoothed as scipy does, their gaps filled, their jumps listed."""

from __future__ import annotations

import numpy as np
import pytest

from service.estimates.results import Outcome
from service.estimates.smoothing import Smoothing, SmoothTracks, parse_smoothing
from service.http.problems import BadField


def outcomes_of(track, missing=()):
    """The outcomes of a video whose keypoints are (T, K, 2), without a pose in some frames."""
    outcomes = []
    for index, points in enumerate(track.tolist()):
        head = {"index": index, "frame": 2 * index, "time_s": index / 10}
        keypoints = [{"id": number, "x": x, "y": y, "score": 0.5} for number, (x, y) in enumerate(points)]
        pose = {**head, "width": 640, "height": 480, "keypoints": keypoints, "surprise": None}
        if index in missing:
            outcomes.append(Outcome(index, error={**head, "code": "nothing_found", "detail": "none"}))
        else:
            outcomes.append(Outcome(index, [pose]))
    return outcomes


@pytest.fixture
def track():
    """60 frames of 3 keypoints on smooth ways, with noise."""
    generator = np.random.default_rng(0)
    at = np.arange(60)[:, None]
    ways = np.stack([200 + 50 * np.sin(at / 9 + np.arange(3)), 150 + 3 * at + 40 * np.arange(3)], axis=2)
    return ways + generator.normal(0, 1, (60, 3, 2))


def smooth(track, text, missing=(), max_gap=5):
    method, _, window = text.partition(":")
    tracks = SmoothTracks(outcomes := outcomes_of(track, missing), 60, 3, Smoothing(method, int(window), max_gap))
    assert all(pose["keypoints"] for outcome in outcomes for pose in outcome.poses)
    return list(tracks.outcomes()), tracks.outliers


def points_of(outcome):
    return [None if point is None else (point["x"], point["y"]) for point in outcome.poses[0]["smoothed"]]


@pytest.mark.parametrize("method", ["savgol", "median"])
def test_whole_track_is_smoothed_as_scipy_does(track, method):
    from scipy.ndimage import median_filter  # not above: it takes each test process a second
    from scipy.signal import savgol_filter

    found, outliers = smooth(track, f"{method}:7")
    if method == "savgol":
        expected = savgol_filter(track, 7, 3, axis=0)
    else:
        expected = median_filter(track, size=(7, 1, 1), mode="nearest")
    np.testing.assert_allclose([points_of(outcome) for outcome in found], expected, atol=2e-3)
    assert outliers == []
    assert found[7].poses[0]["keypoints"][1]["x"] == track[7, 1, 0], "raw ones are kept"


def test_short_gaps_are_filled_and_long_ones_stay_open(track):
    missing = {20, 21, 40, 41, 42, 43}
    found, _ = smooth(track, "savgol:7", missing, max_gap=3)
    for index in (20, 21):
        (pose,) = found[index].poses
        assert (pose["keypoints"], pose["frame"], pose["time_s"]) == ([], 2 * index, index / 10)
        np.testing.assert_allclose(points_of(found[index]), track[index], atol=6)
        assert found[index].error["code"] == "nothing_found", "that it was not seen is still said"
    assert [found[index].poses for index in (40, 41, 42, 43)] == [[]] * 4
    assert found[39].poses[0]["smoothed"][0]
    assert found[44].poses[0]["smoothed"][0]


def test_jumps_are_listed_and_left_out_of_the_filter(track):
    plain, _ = smooth(track, "savgol:7")
    spoilt = track.copy()
    spoilt[30, 1] += 120
    found, outliers = smooth(spoilt, "savgol:7")
    assert outliers == [{"index": 30, "frame": 60, "keypoints": [1]}]
    np.testing.assert_allclose(points_of(found[30]), points_of(plain[30]), atol=4)
    assert found[30].poses[0]["keypoints"][1]["x"] == spoilt[30, 1, 0]


def test_fields():
    assert parse_smoothing({}) is None
    assert parse_smoothing({"smooth": "median"}) == Smoothing("median", 5, 5)
    assert parse_smoothing({"smooth": "savgol:11", "max_gap": "0"}) == Smoothing("savgol", 11, 0)
    for fields in (
        {"smooth": "savgol:10"},
        {"smooth": "savgol:3"},
        {"smooth": "x"},
        {"smooth": "median", "max_gap": "-1"},
    ):
        with pytest.raises(BadField):
            parse_smoothing(fields)

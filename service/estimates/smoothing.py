"""Smooth the tracks of a video's keypoints over time with scipy's filters, and list the frames that jump.

A track keeps its raw keypoints; smoothed ones stand beside them. Outliers, and gaps of a few frames, are interpolated
linearly before the filter; longer gaps part the track and stay open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.http.problems import BadField

from .pictures import Answer
from .results import Outcome

Floats = NDArray[np.float64]

WINDOWS = {"savgol": 7, "median": 5}  # frames of a filter by default
_MAX_WINDOW = 301
_MAX_GAP = 1000
_GAP = 5
_POLYNOMIAL = 3
_SPREADS, _NEIGHBOURS = 6.0, 5  # an outlier is this far from the median of its neighbours
_SHARE = 0.1  # but at least this share of the pose's longer side


class Smoothing(NamedTuple):
    """A filter over time: its name, its window in frames, and the longest gap to interpolate."""

    method: str
    window: int
    max_gap: int


def parse_smoothing(fields: Mapping[str, str]) -> Smoothing | None:
    """Parse ``smooth`` (savgol, median, or with a window in frames: savgol:11) and ``max_gap``. Raises BadField."""
    if "smooth" not in fields:
        if "max_gap" in fields:
            raise BadField("max_gap", "max_gap came without smooth, which fills gaps; send smooth too, or leave it out")
        return None
    method, _, window = fields["smooth"].partition(":")
    if method not in WINDOWS or (window and not _is_number(window, 5, _MAX_WINDOW)) or int(window or 5) % 2 == 0:
        raise BadField(
            "smooth",
            f"smooth is {fields['smooth'][:80]!r}; it must be savgol or median, with a window of an odd number of "
            f"frames from 5 to {_MAX_WINDOW} if it is not the default, as in savgol:11",
        )
    max_gap = fields.get("max_gap", str(_GAP))
    if not _is_number(max_gap, 0, _MAX_GAP):
        raise BadField("max_gap", f"max_gap is {max_gap[:80]!r}; it must be from 0 to {_MAX_GAP} frames")
    return Smoothing(method, int(window) if window else WINDOWS[method], int(max_gap))


def _is_number(text: str, low: int, high: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and low <= int(text) <= high


class SmoothTracks:
    """The smoothed tracks of a video.

    Args:
        outcomes: of all frames in order; iterated again by :meth:`outcomes`.
        count: of them.

    Attributes:
        outliers: {"index", "frame", "keypoints"} of frames in which keypoints jump, with "box" if boxes are numbered.
    """

    def __init__(self, outcomes: Iterable[Outcome], count: int, num_keypoints: int, smoothing: Smoothing) -> None:
        self._raw = outcomes
        # by the number of the box; 16 bytes for a keypoint of a frame
        self._tracks: dict[int | None, NDArray[np.float32]] = {}
        frames: dict[int | None, NDArray[np.int64]] = {}
        for outcome in outcomes:
            for pose in outcome.poses:
                box = pose.get("box")
                if box not in self._tracks:
                    self._tracks[box] = np.full((count, num_keypoints, 2), np.nan, np.float32)
                    frames[box] = np.zeros(count, np.int64)
                self._tracks[box][outcome.index] = [(point["x"], point["y"]) for point in pose["keypoints"]]
                frames[box][outcome.index] = pose.get("frame", outcome.index)
        self.outliers: list[dict[str, Any]] = []
        for box, track in self._tracks.items():
            jumps = _smooth_in_place(track, smoothing)
            for index in np.flatnonzero(jumps.any(axis=1)).tolist():
                label = {} if box is None else {"box": box}
                jumping = np.flatnonzero(jumps[index]).tolist()
                self.outliers.append({"index": index, "frame": int(frames[box][index]), **label, "keypoints": jumping})
        self.outliers.sort(key=lambda outlier: outlier["index"])

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcomes with smoothed keypoints; a frame in a filled gap gets poses without raw ones."""
        size = {"width": 0, "height": 0}
        for outcome in self._raw:
            poses = {pose.get("box"): pose for pose in outcome.poses}
            for pose in outcome.poses:
                size = {"width": pose["width"], "height": pose["height"]}
            smoothed: list[Answer] = []
            for box, track in self._tracks.items():
                if outcome.index >= len(track):
                    continue
                points = [
                    None if x != x else {"x": round(x, 3), "y": round(y, 3)} for x, y in track[outcome.index].tolist()
                ]
                if box in poses:
                    smoothed.append({**poses[box], "smoothed": points})
                elif any(points):
                    seen = outcome.error or outcome.poses[0]
                    head: Answer = {name: seen[name] for name in ("index", "frame", "time_s") if name in seen}
                    label = {} if box is None else {"box": box}
                    empty = {"keypoints": [], "surprise": None, "smoothed": points}
                    smoothed.append({"index": outcome.index, **head, **label, **size, **empty})
            yield replace(outcome, poses=smoothed)


def _smooth_in_place(track: NDArray[np.float32], smoothing: Smoothing) -> NDArray[np.bool_]:
    """Smooth a track (T, K, 2), NaN where it has no pose, and return where keypoints jump (T, K)."""
    jumps = np.zeros(track.shape[:2], bool)
    known = np.isfinite(track[:, 0, 0])
    if not known.any():
        return jumps
    sides = np.ptp(track[known], axis=1).max(axis=1)
    for keypoint in range(track.shape[1]):
        points = track[:, keypoint].astype(np.float64)
        jumps[:, keypoint] = _find_jumps(points, known, _SHARE * float(np.median(sides)))
        track[:, keypoint] = smooth_points(points, known & ~jumps[:, keypoint], smoothing)
    return jumps


def _find_jumps(points: Floats, known: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    from scipy.ndimage import median_filter

    filled = _interpolate(points, known)
    distance = np.linalg.norm(filled - median_filter(filled, size=(_NEIGHBOURS, 1), mode="nearest"), axis=1)
    spread = 1.4826 * float(np.median(distance[known]))
    jumps: NDArray[np.bool_] = known & (distance > max(_SPREADS * spread, least))
    return jumps


def smooth_points(points: Floats, known: NDArray[np.bool_], smoothing: Smoothing) -> Floats:
    """Return points (T, 2) smoothed; NaN in gaps that are longer than allowed, and before and after the known ones."""
    from scipy.ndimage import median_filter
    from scipy.signal import savgol_filter

    smooth = np.full_like(points, np.nan)
    places = np.flatnonzero(known)
    if not len(places):
        return smooth
    filled = _interpolate(points, known)
    for part in np.split(places, np.flatnonzero(np.diff(places) > smoothing.max_gap + 1) + 1):
        whole = slice(part[0], part[-1] + 1)
        length = whole.stop - whole.start
        if smoothing.method == "median":
            smooth[whole] = median_filter(filled[whole], size=(smoothing.window, 1), mode="nearest")
            continue
        window = min(smoothing.window, length - 1 + length % 2)
        fits = window > _POLYNOMIAL
        smooth[whole] = savgol_filter(filled[whole], window, _POLYNOMIAL, axis=0) if fits else filled[whole]
    return smooth


def _interpolate(points: Floats, known: NDArray[np.bool_]) -> Floats:
    places, at = np.flatnonzero(known), np.arange(len(points))
    return np.stack([np.interp(at, places, points[known, axis]) for axis in (0, 1)], axis=1)

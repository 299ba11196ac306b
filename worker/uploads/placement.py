"""Warn before a training if the thing does not seem to be of one size and in one place, from pictures alone.

Two measures on small copies of the squares, with numpy and OpenCV:

- *Placement*: how well what a window of the square shows (edges and colours) predicts the window's place, by ridge
  regression of functions of the place, fitted on half of the pictures: the share of explained variance, R², on the
  others. Where the thing was cut out, heads are here and legs there; where it wanders, a window predicts little. It
  needs no labels.
- *Wandering*: a still background predicts every place, so this measures the difference from the median picture of a
  clip or folder: how far its centre wanders over the pictures, relative to its extent.

Both are low and high for other reasons, too, so the result is a warning, never an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract.jobs.warnings import PictureWarning, WarningCode

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

FEWEST_PICTURES = 48
MOST_PICTURES = 256  # looked at, spread over all
SIDE_PX = 66  # of the small copies: a pixel on each side is for gradients
LEAST_PLACEMENT = 0.2
MOST_WANDERING = 1.1
_FEWEST_OF_CLIP = 8
_STILL = 0.85  # of a clip's variance is change, at most, if its background is still
_CELLS, _WINDOW, _DIRECTIONS = 8, 4, 6  # cells a side of the square and of a window
_LEVELS = 32  # of colour that weigh as much as an e-fold of gradients
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
_NOISE = 4.0  # times the median squared difference of a picture: below it is noise

_VARIES = (
    "the thing does not seem to be of one size and in one place: what a part of a picture shows hardly predicts where "
    "in the picture it is ({value:.2f}; pictures cut out alike have more than {bound}). {advice}"
)
_MOVES = (
    "a small thing seems to move before a still background: what changes wanders {value:.1f} times its own extent "
    "(pictures cut out alike have less than {bound}). {advice}"
)
_SEND_BOXES = (
    "Train with zoom=auto, which crops to it. For better results, crop the pictures yourself, or send boxes of it: "
    "a CSV, COCO or the JSON of MegaDetector, which finds animals"
)
_USE_MOTION = "Train with locate=motion, which finds what moves before a fixed camera, or send boxes"
_CHECK_BOXES = (
    "Look at the boxes (ppl job JOB --boxes found.csv) and send better ones, or set locate to off if whole pictures "
    "are meant"
)


def shrink(picture: Pixels) -> Pixels:
    """Return the small copy of a square (S, S, 3) that is measured."""
    interpolation = cv2.INTER_AREA if len(picture) >= SIDE_PX else cv2.INTER_LINEAR
    return cv2.resize(picture, (SIDE_PX, SIDE_PX), interpolation=interpolation).astype(np.uint8, copy=False)


def spread_rows(count: int) -> NDArray[np.int64]:
    """Return the rows of up to MOST_PICTURES pictures spread over all."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_PICTURES)).round().astype(np.int64))


def find_warnings(copies: Sequence[Pixels], clips: Sequence[str] | None, *, is_located: bool) -> list[PictureWarning]:
    """Return what seems wrong with some training pictures; nothing of fewer than FEWEST_PICTURES.

    Args:
        copies: squares of the pictures as :func:`shrink` returns them.
        clips: the video or folder of each; None if what moves in them is to be located later.
        is_located: whether the squares are around boxes.
    """
    if len(copies) < FEWEST_PICTURES:
        return []
    pictures = np.stack(copies)
    wandering = 0.0 if clips is None else measure_wandering(pictures, clips)
    return judge(measure_placement(pictures), wandering, is_located=is_located)


def judge(placement: float, wandering: float, *, is_located: bool) -> list[PictureWarning]:
    """Return the warnings that the two measures give."""
    if placement < LEAST_PLACEMENT:
        advice = _CHECK_BOXES if is_located else _SEND_BOXES
        detail = _VARIES.format(value=max(placement, 0.0), bound=LEAST_PLACEMENT, advice=advice)
        return [PictureWarning(code=WarningCode.VARYING_PLACE, detail=detail)]
    if wandering > MOST_WANDERING:
        advice = _CHECK_BOXES if is_located else _USE_MOTION
        detail = _MOVES.format(value=wandering, bound=MOST_WANDERING, advice=advice)
        return [PictureWarning(code=WarningCode.MOVING_THING, detail=detail)]
    return []


def measure_placement(pictures: Pixels) -> float:
    """Return the share of variance of the place that windows of small copies (N, 66, 66, 3) explain, held out.

    The mean over five functions of the place: x, y, x² + y², x² - y², xy. Sky above and ground below predict y alone.
    """
    windows = np.stack([_describe_windows(picture) for picture in pictures])
    places = _functions_of_place(_CELLS - _WINDOW + 1)
    explained = np.zeros(len(_RIDGES))
    for fold in (0, 1):
        fitted, held_out = (
            windows[start::2].reshape(-1, windows.shape[-1]).astype(np.float64) for start in (fold, 1 - fold)
        )
        mean, deviation = fitted.mean(0), fitted.std(0) + 1e-6
        fitted, held_out = (fitted - mean) / deviation, (held_out - mean) / deviation
        own, other = (np.tile(places, (len(each) // len(places), 1)) for each in (fitted, held_out))
        covariance, products = fitted.T @ fitted / len(fitted), fitted.T @ own / len(fitted)
        for index, ridge in enumerate(_RIDGES):
            weights = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), products)
            explained[index] += (1 - ((held_out @ weights - other) ** 2).mean(0)).mean() / 2
    return float(explained.max())


def measure_wandering(pictures: Pixels, clips: Sequence[str]) -> float:
    """Return how far the centre of what differs from a clip's median picture wanders, relative to its extent.

    The root mean square distance of the centres from their mean, over all clips of at least eight pictures with a still
    background, divided by the median extent; 0 without such a clip.
    """
    numbers = np.array(clips)
    distances, extents = [], []
    for clip, count in Counter(clips).items():
        if count >= _FEWEST_OF_CLIP:
            frames = pictures[numbers == clip]
            small = np.stack([cv2.resize(frame, (33, 33), interpolation=cv2.INTER_AREA) for frame in frames])
            centres, extent = _find_change(small.astype(np.float32))
            if len(extent):
                distances.append(((centres - centres.mean(0)) ** 2).mean(1))
                extents.append(extent)
    middle = float(np.median(np.concatenate(extents))) if extents else 0.0
    return float(np.sqrt(np.concatenate(distances).mean())) / middle if middle else 0.0


def _find_change(frames: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre (N, 2) and the extent (N,), a standard deviation, of the change of frames that have any.

    N is 0 if the background is not still: the median frame explains little of what the frames show.
    """
    change = ((frames - np.median(frames, axis=0)) ** 2).sum(-1).astype(np.float64)
    if change.sum() > _STILL * ((frames - frames.mean((0, 1, 2))) ** 2).sum():
        return np.zeros((0, 2)), np.zeros(0)
    change = np.maximum(change - _NOISE * np.median(change, axis=(1, 2), keepdims=True), 0)
    change = change[change.sum((1, 2)) > 0]
    share = change / change.sum((1, 2), keepdims=True)
    places = np.indices(frames.shape[1:3], dtype=np.float64)
    centres = np.einsum("nyx,cyx->nc", share, places)
    offsets = ((places - centres[:, :, None, None]) ** 2).mean(1)
    return centres, np.sqrt((share * offsets).sum((1, 2)))


def _describe_windows(picture: Pixels) -> Values:
    """Return edges by direction and colours of every window (P, D), also relative to the whole picture."""
    colours = picture.astype(np.float32)
    grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    strength = np.hypot(across, down)
    direction = np.arctan2(down, across) % np.pi / np.pi * _DIRECTIONS
    lower = np.floor(direction)
    edges = np.zeros((_DIRECTIONS, *strength.shape), np.float32)
    rows, columns = np.indices(strength.shape)
    for first, weight in ((lower, 1 - direction + lower), (lower + 1, direction - lower)):
        edges[first.astype(int) % _DIRECTIONS, rows, columns] += strength * weight
    size = len(strength) // _CELLS
    edges = np.log1p(edges.reshape(_DIRECTIONS, _CELLS, size, _CELLS, size).mean((2, 4)))
    inner = colours[1:-1, 1:-1].reshape(_CELLS, size, _CELLS, size, 3).mean((1, 3)).transpose(2, 0, 1) / _LEVELS
    cells = np.concatenate([edges, edges - edges.mean(), inner, inner - inner.mean((1, 2), keepdims=True)])
    windows = np.lib.stride_tricks.sliding_window_view(cells, (_WINDOW, _WINDOW), axis=(1, 2))
    described: Values = windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)
    return described


def _functions_of_place(count: int) -> NDArray[np.float64]:
    """Return functions (count², 5) of the places of count × count windows, each of variance 1 and mean 0."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, count)] * 2, indexing="ij")
    functions = np.stack([x, y, x**2 + y**2, x**2 - y**2, x * y], axis=-1).reshape(count**2, -1)
    centred = functions - functions.mean(0)
    scaled: NDArray[np.float64] = centred / centred.std(0)
    return scaled

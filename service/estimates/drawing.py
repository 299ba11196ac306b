"""Poses drawn on pictures, and priors drawn by themselves. Anti-aliased by distance: sharp at any size.

A shape is drawn by the distance of each pixel to it: a pixel is covered in full half a pixel inside
of its outline, and not at all half a pixel outside.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.media.fitting import Frame

STRONG = 0.2  # of the strongest link's weight; weaker ones are not drawn
_MOST_LINKS_PER_KEYPOINT = 2
_OUTLINE = np.array([16, 18, 24], np.float32)
_BACKGROUND = (13, 15, 33)
# the link map's colours from 0 to 1: night blue over violet and orange to near white
_STOPS = np.array([_BACKGROUND, (74, 31, 110), (178, 46, 105), (243, 120, 64), (253, 209, 105), (255, 252, 235)])
_POSITIONS = np.linspace(0, len(_STOPS) - 1, 1024)
_COLOURS = np.stack([np.interp(_POSITIONS, range(len(_STOPS)), stops) for stops in _STOPS.T], axis=1).round()
_COLOURS = _COLOURS.astype(np.uint8)
# a link map is smooth: larger ones are enlarged, as each of hundreds of links is a pass over the whole
_MOST_RENDERED_PX = 512

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


class StrongLink(NamedTuple):
    """A link worth drawing, its strength relative to the strongest in (0, 1]."""

    i: int
    j: int
    strength: float


def strong_links(links: Sequence[dict[str, Any]], num_keypoints: int) -> list[StrongLink]:
    """The links to draw, the weakest first: at least STRONG of the strongest, and only so many."""
    strongest = max((link["weight"] for link in links), default=0.0)
    if strongest <= 0:
        return []
    strong = [StrongLink(link["i"], link["j"], link["weight"] / strongest) for link in links]
    strong = sorted((link for link in strong if link.strength >= STRONG), key=lambda link: link.strength)
    return strong[-_MOST_LINKS_PER_KEYPOINT * num_keypoints :]


def keypoint_colour(index: int) -> Floats:
    """RGB of a keypoint, 0 to 255: neighbours in number differ most, the same number is always the same colour."""
    hue = (0.02 + index * 0.618034) % 1.0
    # eyes see yellow and green lighter than blue and red: even that out, and alternate
    lightness = (0.60, 0.50, 0.68)[index % 3] - (0.06 if 0.12 < hue < 0.5 else 0.0)
    return np.array(colorsys.hls_to_rgb(hue, lightness, 0.9), np.float32) * 255


def overlay(
    picture: Image.Image, frame: Frame, keypoints: NDArray[Any], links: Sequence[dict[str, Any]]
) -> Image.Image:
    """A pose drawn on its picture, in sizes that suit the square that the model looked at.

    Args:
        picture: RGB.
        keypoints: (K, 2) in pixels of the picture (integers at pixel centres).
        links: {"i", "j", "weight"}; the strong ones are drawn, thicker and denser by weight.
    """
    canvas = np.array(picture, dtype=np.uint8)
    unit = min(frame.size, 2.0 * max(picture.size)) / 100
    radius = max(1.5, 1.35 * unit)
    outline = max(0.6, 0.32 * unit)
    for link in strong_links(links, len(keypoints)):
        ends = keypoints[[link.i, link.j]]
        half = radius * (0.2 + 0.32 * link.strength)
        alpha = 0.3 + 0.65 * link.strength
        dark = np.stack([_OUTLINE, _OUTLINE])
        _segment(canvas, ends, half + outline * 0.7, dark, alpha * 0.6)
        _segment(canvas, ends, half, np.stack([keypoint_colour(link.i), keypoint_colour(link.j)]), alpha)
    for index, point in enumerate(keypoints):
        _disc(canvas, point, radius + outline, _OUTLINE)
        _disc(canvas, point, radius, keypoint_colour(index))
    return Image.fromarray(canvas)


def prior_picture(prior: dict[str, Any], side: int) -> Image.Image:
    """A prior's link map in colours with its keypoints as dots, as a square picture.

    Args:
        prior: a version's prior.json.
        side: of the picture in pixels.
    """
    keypoints = np.asarray(prior["keypoint_prior"], np.float32)
    values = render_link_map(keypoints, prior["links"], float(prior["link_width"]), min(side, _MOST_RENDERED_PX))
    strongest = float(values.max())
    levels = (values / strongest) ** 0.75 if strongest > 0 else values  # weak links stay visible
    if side > _MOST_RENDERED_PX:
        levels = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    canvas = _COLOURS[np.rint(levels * (len(_COLOURS) - 1)).astype(np.uint16)]
    radius = side / 110
    for index, point in enumerate((keypoints + 1) / 2 * side - 0.5):
        _disc(canvas, point, radius + side / 350, _OUTLINE)
        _disc(canvas, point, radius, keypoint_colour(index))
    return Image.fromarray(canvas)


def render_link_map(keypoints: Floats, links: Sequence[dict[str, Any]], link_width: float, side: int) -> Floats:
    """PPL eq. 3: at each pixel the greatest of weight * exp(-d²/link_width) over the links.

    Args:
        keypoints: (K, 2) in [-1, 1].
        link_width: sigma squared, in units of [-1, 1] squared.
        side: S.

    Returns:
        (S, S), pixel centres at (2i + 1)/S - 1.
    """
    grid = ((2 * np.arange(side, dtype=np.float32) + 1) / side - 1).astype(np.float32)
    best = np.zeros((side, side), np.float32)
    for link in links:
        if link["weight"] <= 0:
            continue
        squared = _squared_distance(grid[None, :], grid[:, None], keypoints[link["i"]], keypoints[link["j"]])[0]
        np.maximum(best, np.float32(link["weight"]) * np.exp(-squared / np.float32(link_width)), out=best)
    return best


def png(image: Image.Image) -> bytes:
    """An image as PNG; a large one less tightly packed, for the sake of time."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1 if image.width * image.height > 1_000_000 else 6)
    return file.getvalue()


def _disc(canvas: Pixels, centre: NDArray[Any], radius: float, colour: Floats) -> None:
    box = _visible(canvas, centre - radius - 1, centre + radius + 1)
    if box is None:
        return
    x, y = _coordinates(box)
    distance = np.sqrt((x - np.float32(centre[0])) ** 2 + (y - np.float32(centre[1])) ** 2)
    _blend(canvas, box, np.clip(radius + 0.5 - distance, 0, 1), colour)


def _segment(canvas: Pixels, ends: NDArray[Any], half: float, colours: Floats, alpha: float) -> None:
    """A line with round ends, its colour running from the first to the second; (2, 2) ends, (2, 3) colours."""
    for box in _strips(canvas, ends, half + 1):
        x, y = _coordinates(box)
        squared, along = _squared_distance(x, y, ends[0], ends[1])
        covered = np.clip(half + 0.5 - np.sqrt(squared), 0, 1)
        # a line thinner than a pixel covers only part of it
        covered *= alpha * min(1.0, 2 * half)
        _blend(canvas, box, covered, colours[0] + along[..., None] * (colours[1] - colours[0]))


def _squared_distance(x: Floats, y: Floats, start: NDArray[Any], end: NDArray[Any]) -> tuple[Floats, Floats]:
    """Of pixels to a segment, and how far along it (0 to 1) the nearest point lies."""
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    length = max(float(dx * dx + dy * dy), 1e-12)
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * dx + py * dy) / np.float32(length), 0, 1)
    squared: Floats = (px - along * dx) ** 2 + (py - along * dy) ** 2
    return squared, along


Region = tuple[int, int, int, int]  # left, top, right, bottom; the last two outside


def _strips(canvas: Pixels, ends: NDArray[Any], reach: float) -> Iterator[Region]:
    """Disjoint regions that hold all pixels within reach of a segment, and few others.

    The bounding box of a long diagonal is mostly empty: it is cut along its longer side.
    """
    low, high = ends.min(axis=0) - reach, ends.max(axis=0) + reach
    whole = _visible(canvas, low, high)
    if whole is None:
        return
    axis = int(high[1] - low[1] > high[0] - low[0])  # 0: cut into columns, 1: into rows
    first, last = ends[np.argsort(ends[:, axis])]
    span = float(last[axis] - first[axis])
    step = max(16, int(4 * reach))
    for start in range(whole[axis], whole[axis + 2], step):
        stop = min(start + step, whole[axis + 2])
        # the part of the segment whose pixels can lie in this strip
        parts = [min(1.0, max(0.0, (edge - first[axis]) / max(span, 1e-9))) for edge in (start - reach, stop + reach)]
        across = [first[1 - axis] + part * (last[1 - axis] - first[1 - axis]) for part in parts]
        near, far = min(across) - reach, max(across) + reach
        corners = ((start, near), (stop - 1, far)) if axis == 0 else ((near, start), (far, stop - 1))
        region = _visible(canvas, np.array(corners[0]), np.array(corners[1]))
        if region is not None:
            yield region


def _visible(canvas: Pixels, low: NDArray[Any], high: NDArray[Any]) -> Region | None:
    """The pixels from low to high that are on the canvas."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    height, width = canvas.shape[:2]
    left, top = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
    right, bottom = min(width, int(np.ceil(high[0])) + 1), min(height, int(np.ceil(high[1])) + 1)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _coordinates(box: Region) -> tuple[Floats, Floats]:
    left, top, right, bottom = box
    return np.arange(left, right, dtype=np.float32)[None, :], np.arange(top, bottom, dtype=np.float32)[:, None]


def _blend(canvas: Pixels, box: Region, alpha: Floats, colour: Floats) -> None:
    left, top, right, bottom = box
    part = canvas[top:bottom, left:right].astype(np.float32)
    part += alpha[..., None] * (colour - part)
    canvas[top:bottom, left:right] = np.rint(part).astype(np.uint8)

"""Draw poses on pictures, and priors on their own, anti-aliased by the distance of each pixel to a shape."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.version.palette import BOX_RGB, keypoint_rgb
from service.contract.media.boxes import FoundBox
from service.contract.media.fitting import Frame, box_corners

_LEAST_STRENGTH = 0.3  # thinner links can't be seen
_OUTLINE = np.array([16, 18, 24], np.float32)
_MARK = 0.08  # length of the mark at the side that the thing faces, relative to the box
_BACKGROUND = (13, 15, 33)
# colours of the link map from 0 to 1: dark blue, violet, orange, near white
_STOPS = np.array([_BACKGROUND, (74, 31, 110), (178, 46, 105), (243, 120, 64), (253, 209, 105), (255, 252, 235)])
_POSITIONS = np.linspace(0, len(_STOPS) - 1, 1024)
_COLOURS = np.stack([np.interp(_POSITIONS, range(len(_STOPS)), stops) for stops in _STOPS.T], axis=1).round()
_COLOURS = _COLOURS.astype(np.uint8)
# larger link maps are enlarged: they are smooth, and each of hundreds of links is a pass over all pixels
_MAX_RENDERED_PX = 512

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Region = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


class DrawnLink(NamedTuple):
    """A link to draw, its strength relative to the strongest, at most 1."""

    i: int
    j: int
    strength: float


def drawn_links(links: Sequence[dict[str, Any]]) -> list[DrawnLink]:
    """Return a skeleton's links with the strength to draw them with, the weakest first; those of weight 0 are none."""
    strongest = max((link["weight"] for link in links), default=0.0)
    found = [(link["weight"], link["i"], link["j"]) for link in links if link["weight"] > 0]
    return [DrawnLink(i, j, max(weight / strongest, _LEAST_STRENGTH)) for weight, i, j in sorted(found)]


def keypoint_colour(index: int) -> Floats:
    """Return the RGB colour (0 to 255) of a keypoint; consecutive keypoints differ most."""
    return np.array(keypoint_rgb(index), np.float32)


def overlay(
    picture: Image.Image,
    frame: Frame,
    keypoints: NDArray[Any],
    links: Sequence[dict[str, Any]],
    landmarks: Sequence[dict[str, Any]] = (),
    found: FoundBox | None = None,
) -> Image.Image:
    """Draw a pose on its picture, sized in proportion to the model's square, and the box in which it was found.

    A box with an angle is drawn rotated, with a mark at the side that the thing faces.

    Args:
        picture: RGB.
        keypoints: (K, 2) in pixels of the picture (integers at pixel centres).
        links: {"i", "j", "weight"} of the skeleton, drawn thicker and more opaque by weight.
        landmarks: {"name", "x", "y"}, drawn white with their names.
    """
    canvas = np.array(picture, dtype=np.uint8)
    unit = min(frame.size, 2.0 * max(picture.size)) / 100
    radius = max(1.5, 1.35 * unit)
    outline = max(0.6, 0.32 * unit)
    for link in drawn_links(links):
        ends = keypoints[[link.i, link.j]]
        half = radius * (0.2 + 0.32 * link.strength)
        alpha = 0.3 + 0.65 * link.strength
        dark = np.stack([_OUTLINE, _OUTLINE])
        _segment(canvas, ends, half + outline * 0.7, dark, alpha * 0.6)
        _segment(canvas, ends, half, np.stack([keypoint_colour(link.i), keypoint_colour(link.j)]), alpha)
    for index, point in enumerate(keypoints):
        _disc(canvas, point, radius + outline, _OUTLINE)
        _disc(canvas, point, radius, keypoint_colour(index))
    for landmark in landmarks:
        place = np.array([landmark["x"], landmark["y"]])
        _disc(canvas, place, 0.8 * radius + outline, _OUTLINE)
        _disc(canvas, place, 0.8 * radius, np.full(3, 255, np.float32))
    drawn = Image.fromarray(canvas)
    if found:
        draw, width = ImageDraw.Draw(drawn), max(1, round(0.6 * unit))
        for line in outline_box(found):
            draw.line([tuple(point) for point in line.tolist()], BOX_RGB, width, joint="curve")
    _write_names(drawn, landmarks, 1.6 * radius, max(10.0, 3 * unit))
    return drawn


def outline_box(found: FoundBox) -> list[NDArray[np.float64]]:
    """Return a box's outline and, with an angle, the mark at the side that the thing faces: lines (n, 2) in pixels."""
    corners = box_corners(found.box, found.angle or 0.0) - 0.5
    lines = [corners[[0, 1, 2, 3, 0]]]
    if found.angle is not None:
        middle = corners[:2].mean(0)
        lines.append(np.stack([middle, middle + _MARK * (corners[0] - corners[3])]))
    return lines


def _write_names(image: Image.Image, points: Sequence[dict[str, Any]], gap: float, size: float) -> None:
    """Write the names of points beside them, where there is room and no other name."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    taken: list[tuple[float, float, float, float]] = []
    for point in points:
        left, top, right, bottom = draw.textbbox((0, 0), point["name"], font, stroke_width=1)
        width, height, x, y = right - left, bottom - top, point["x"], point["y"]
        corners = [
            (x + gap, y - height / 2),
            (x - gap - width, y - height / 2),
            (x - width / 2, y - gap - height),
            (x - width / 2, y + gap),
        ]
        kept = [
            (min(max(0.0, x0), image.width - width), min(max(0.0, y0), image.height - height)) for x0, y0 in corners
        ]
        shift = [abs(x0 - x1) + abs(y0 - y1) for (x0, y0), (x1, y1) in zip(corners, kept, strict=True)]
        boxes = [
            (*kept[index], kept[index][0] + width, kept[index][1] + height)
            for index in np.argsort(shift, kind="stable")
        ]
        chosen = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(chosen)
        place = chosen[0] - left, chosen[1] - top
        draw.text(place, point["name"], "white", font, stroke_width=1, stroke_fill=tuple(_OUTLINE.astype(int)))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def prior_picture(prior: dict[str, Any], side: int) -> Image.Image:
    """Draw a prior's link map in colours with its keypoints as dots.

    Args:
        prior: a version's prior.json.
        side: side of the square picture in pixels.
    """
    keypoints = np.asarray(prior["keypoint_prior"], np.float32)
    values = render_link_map(keypoints, prior["links"], float(prior["link_width"]), min(side, _MAX_RENDERED_PX))
    strongest = float(values.max())
    levels = (values / strongest) ** 0.75 if strongest > 0 else values  # weak links stay visible
    if side > _MAX_RENDERED_PX:
        levels = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    canvas = _COLOURS[np.rint(levels * (len(_COLOURS) - 1)).astype(np.uint16)]
    radius = side / 110
    for index, point in enumerate((keypoints + 1) / 2 * side - 0.5):
        _disc(canvas, point, radius + side / 350, _OUTLINE)
        _disc(canvas, point, radius, keypoint_colour(index))
    return Image.fromarray(canvas)


def render_link_map(keypoints: Floats, links: Sequence[dict[str, Any]], link_width: float, side: int) -> Floats:
    """Render a link map (PPL eq. 3): at each pixel the maximum of weight * exp(-d²/link_width) over the links.

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
    """Encode an image as PNG; large ones with less compression, to save time."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1 if image.width * image.height > 1_000_000 else 6)
    return file.getvalue()


def _disc(canvas: Pixels, centre: NDArray[Any], radius: float, colour: Floats) -> None:
    _segment(canvas, np.stack([centre, centre]), radius, np.stack([colour, colour]), 1.0)


def _segment(canvas: Pixels, ends: NDArray[Any], half: float, colours: Floats, alpha: float) -> None:
    """Draw a line with round ends (2, 2), its colour a gradient between two (2, 3)."""
    for left, top, right, bottom in _strips(canvas, ends, half + 1):
        x = np.arange(left, right, dtype=np.float32)[None, :]
        y = np.arange(top, bottom, dtype=np.float32)[:, None]
        squared, along = _squared_distance(x, y, ends[0], ends[1])
        # a line thinner than a pixel covers only part of it
        covered = np.clip(half + 0.5 - np.sqrt(squared), 0, 1) * (alpha * min(1.0, 2 * half))
        part = canvas[top:bottom, left:right].astype(np.float32)
        part += covered[..., None] * (colours[0] + along[..., None] * (colours[1] - colours[0]) - part)
        canvas[top:bottom, left:right] = np.rint(part).astype(np.uint8)


def _squared_distance(x: Floats, y: Floats, start: NDArray[Any], end: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the squared distance of pixels to a segment, and the position (0 to 1) of the nearest point on it."""
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    length = max(float(dx * dx + dy * dy), 1e-12)
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * dx + py * dy) / np.float32(length), 0, 1)
    squared: Floats = (px - along * dx) ** 2 + (py - along * dy) ** 2
    return squared, along


def _strips(canvas: Pixels, ends: NDArray[Any], reach: float) -> Iterator[Region]:
    """Yield disjoint regions that cover all pixels within reach of a segment.

    They are strips of its bounding box, which is mostly empty for a long diagonal.
    """
    if not np.isfinite(ends).all():
        return
    low, high = ends.min(axis=0) - reach, ends.max(axis=0) + reach
    whole = _visible(canvas, low, high)
    axis = int(high[1] - low[1] > high[0] - low[0])  # 0: cut into columns, 1: into rows
    first, last = ends[np.argsort(ends[:, axis])]
    span = float(last[axis] - first[axis])
    step = max(16, int(4 * reach))
    for start in range(whole[axis], whole[axis + 2], step):
        stop = min(start + step, whole[axis + 2])
        # the part of the segment within reach of this strip
        parts = [min(1.0, max(0.0, (edge - first[axis]) / max(span, 1e-9))) for edge in (start - reach, stop + reach)]
        across = [first[1 - axis] + part * (last[1 - axis] - first[1 - axis]) for part in parts]
        near, far = min(across) - reach, max(across) + reach
        corners = ((start, near), (stop - 1, far)) if axis == 0 else ((near, start), (far, stop - 1))
        yield _visible(canvas, *corners)


def _visible(canvas: Pixels, low: Sequence[float], high: Sequence[float]) -> Region:
    """Clip the region from low to high to the canvas; it may be empty."""
    height, width = canvas.shape[:2]
    left, top = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
    return left, top, max(left, min(width, int(np.ceil(high[0])) + 1)), max(top, min(height, int(np.ceil(high[1])) + 1))

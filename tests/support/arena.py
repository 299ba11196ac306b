"""Frames of a fixed camera over an arena, in which a dark thing with a thin tail walks; its place and way are known."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BODY = 40  # px, the longer diameter
SIZE = (320, 240)

_X, _Y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
_FLOOR = (150 + 30 * np.sin(_X / 60) + 20 * (_Y / SIZE[1]) + 25 * ((_X // 40 + _Y // 60) % 2)).astype(np.uint8)
_NOISE = np.random.default_rng(0).normal(0, 3, _FLOOR.shape).astype(np.int16)


def arena_frame(
    place: tuple[float, float] | None, number: int = 0, colour: int = 40, shift: int = 0, light: int = 0
) -> Image.Image:
    """Return a frame with the thing's body centred on a place, looking left or right; without a place, the arena.

    Args:
        number: of the frame, which its noise depends on.
        shift: of the camera, in px.
        light: added to every pixel.
    """
    image = Image.fromarray(np.roll(_FLOOR, shift, axis=1))
    if place:
        draw, (cx, cy) = ImageDraw.Draw(image), place
        draw.ellipse((cx - BODY / 2, cy - BODY / 4, cx + BODY / 2, cy + BODY / 4), fill=colour)
        draw.line((cx + BODY / 2, cy, cx + 1.1 * BODY, cy - 8), fill=colour, width=2)
    return _finish(image, number, light)


def walker_frame(place: tuple[float, float], angle: float, number: int = 0, tail: float | None = 180.0) -> Image.Image:
    """Return a frame with a drop-shaped body centred on a place, which looks to an angle, clockwise from up.

    Args:
        tail: where its thin tail is, clockwise from where it looks; None for a thing without one.
    """
    image = Image.fromarray(_FLOOR)
    draw = ImageDraw.Draw(image)
    around = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    across = BODY / 4 * np.sin(around) * (1 - 0.25 * np.cos(around))  # narrower in front
    draw.polygon(_place(np.stack([across, -BODY / 2 * np.cos(around)], axis=1), place, angle), fill=40)
    if tail is not None:
        way = np.array([np.sin(np.radians(tail)), -np.cos(np.radians(tail))])
        draw.line(_place(np.outer((0.35 * BODY, 1.1 * BODY), way), place, angle), fill=40, width=2)
    return _finish(image, number)


def pair_frame(
    places: Sequence[tuple[float, float] | None], number: int = 0, colours: Sequence[int] = (40, 40)
) -> Image.Image:
    """Return a frame with an ellipse centred on each place; None for one that is not there."""
    image = Image.fromarray(_FLOOR)
    draw = ImageDraw.Draw(image)
    for place, colour in zip(places, colours, strict=True):
        if place:
            x, y = place
            draw.ellipse((x - BODY / 2, y - BODY / 4, x + BODY / 2, y + BODY / 4), fill=colour)
    return _finish(image, number)


def pass_by(count: int, gap: float) -> NDArray[np.float64]:
    """Return places (count, 2, 2) of two that go through the arena in opposite directions, a gap apart in height."""
    along = np.linspace(50, 270, count)
    middle = np.full(count, 120.0)
    return np.stack(
        [np.stack([along, middle - gap / 2], axis=1), np.stack([along[::-1], middle + gap / 2], axis=1)], axis=1
    )


def _place(points: NDArray[np.float64], place: tuple[float, float], angle: float) -> list[tuple[float, float]]:
    """Turn points (n, 2) of a thing that looks up, and move them to its place."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return [tuple(point) for point in (points @ [[cos, sin], [-sin, cos]] + place).tolist()]


def _finish(image: Image.Image, number: int, light: int = 0) -> Image.Image:
    noise = np.roll(_NOISE, 7919 * number)
    grey = np.clip(np.asarray(image, np.int16) + noise + light, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def walk(count: int) -> NDArray[np.float64]:
    """Return places (count, 2) of a smooth walk through the arena."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([160 + 100 * np.cos(turn), 120 + 70 * np.sin(2 * turn)], axis=1)


def walk_angles(count: int) -> NDArray[np.float64]:
    """Return the angles (count,) in degrees, clockwise from up, at which :func:`walk` goes."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.degrees(np.arctan2(-100 * np.sin(turn), -140 * np.cos(2 * turn))) % 360


def encode_film(frames: Iterable[Image.Image], scale: int = 1) -> bytes:
    """Encode frames as a Matroska file of JPEGs, enlarged."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = scale * 320, scale * 240, "yuvj420p", 1
        stream.options = {"q:v": "2"}
        for image in frames:
            image = image.resize((scale * 320, scale * 240))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file.getvalue()

"""The demo's picture: a grid of pictures with their poses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from service.client.types import ImageEstimate
from service.contract.media.fitting import Frame
from service.estimates.drawing import overlay

_TILE_PX = 256
_GAP_PX = 6
_COLUMNS = 6


def draw_grid(pictures: Sequence[tuple[bytes, ImageEstimate]], path: Path) -> None:
    """Write a PNG of all pictures in rows, each enlarged to the same size before its pose is drawn.

    Args:
        pictures: file bytes and their estimates, at least one.
    """
    tiles = [_draw_tile(data, estimate) for data, estimate in pictures]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    pitch = _TILE_PX + _GAP_PX
    grid = Image.new("RGB", (columns * pitch - _GAP_PX, rows * pitch - _GAP_PX), "white")
    for index, tile in enumerate(tiles):
        grid.paste(tile, (index % columns * pitch, index // columns * pitch))
    grid.save(path)


def _draw_tile(data: bytes, estimate: ImageEstimate) -> Image.Image:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = _TILE_PX / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    points = np.array([(point.x, point.y) for point in estimate.keypoints])
    longer = max(size)
    frame = Frame((size[0] - longer) / 2, (size[1] - longer) / 2, longer)
    links = [link.model_dump() for link in estimate.links]
    # integers are pixel centres, so the first pixel spans -0.5 to 0.5
    return overlay(picture.resize(size, Image.Resampling.BICUBIC), frame, (points + 0.5) * scale - 0.5, links)

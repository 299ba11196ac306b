"""A contact sheet: square crops of pictures that stand for a whole dataset, on one JPEG."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from .square_files import LEAST_FRAMES, natural_key

COLUMNS = 8  # also the frames taken of a video
STILL_ROWS = 6
CLIP_ROWS = 12

_SIDE_PX = 128  # of a picture
_GAP_PX = 4
_PAPER = (255, 255, 255)
_QUALITY = 85

Cell = tuple[int, int]  # row, column


def reducible(width: int, height: int) -> float:
    """By how much a picture may be decoded smaller for a sheet, see open_reduced."""
    return min(width, height) / _SIDE_PX / 2


class ContactSheet:
    """Pictures on a grid as they come."""

    def __init__(self) -> None:
        self._pictures: dict[Cell, Image.Image] = {}

    def offer(self, cell: Cell | None, image: Image.Image) -> None:
        """Take a picture for a cell that is free; the square in its middle is kept."""
        if cell is not None and cell not in self._pictures:
            self._pictures[cell] = ImageOps.fit(image, (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)

    def save(self, path: Path, *, close_up: bool = False) -> None:
        """Write it so that a reader sees all of it or nothing. Cells that nothing came for stay white.

        Args:
            close_up: leave no such cell between others.
        """
        cells = sorted(self._pictures)
        places = {cell: divmod(index, COLUMNS) if close_up else cell for index, cell in enumerate(cells)}
        rows, columns = (max((place[axis] for place in places.values()), default=0) + 1 for axis in (0, 1))
        width, height = (count * (_SIDE_PX + _GAP_PX) + _GAP_PX for count in (columns, rows))
        sheet = Image.new("RGB", (width, height), _PAPER)
        for cell, (row, column) in places.items():
            corner = (_GAP_PX + column * (_SIDE_PX + _GAP_PX), _GAP_PX + row * (_SIDE_PX + _GAP_PX))
            sheet.paste(self._pictures[cell], corner)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        sheet.save(draft, "JPEG", quality=_QUALITY)
        os.replace(draft, path)


class StillCells:
    """Cells for pictures and frames spread evenly over a dataset: where one can't be read, the next one stands in.

    Args:
        count: of pictures and frames, as far as is known.
    """

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)
        self._cells = min(COLUMNS * STILL_ROWS, self._count)

    def cell(self, number: int) -> Cell:
        """The cell of one of them, counted from 0."""
        place = min(number * self._cells // self._count, self._cells - 1)
        return place // COLUMNS, place % COLUMNS


class ClipCells:
    """A row for each of some clips spread evenly over a dataset, in natural order of their names.

    Args:
        pictures: the pictures of each clip that is a folder, by name of the folder.
        videos: names of the videos.
    """

    def __init__(self, pictures: Mapping[str, Sequence[str]], videos: Iterable[str]) -> None:
        folders = {clip: names for clip, names in pictures.items() if len(names) >= LEAST_FRAMES}
        clips = sorted({*folders, *videos}, key=natural_key)
        self._rows = {clip: row for row, clip in enumerate(_spread(clips, CLIP_ROWS))}
        self._cells: dict[str, Cell] = {}
        for clip, row in self._rows.items():
            frames = sorted(folders.get(clip, ()), key=natural_key)
            self._cells.update({name: (row, column) for column, name in enumerate(_spread(frames, COLUMNS))})

    def of_picture(self, name: str) -> Cell | None:
        """The cell of a picture of a folder, if it has one."""
        return self._cells.get(name)

    def of_frame(self, video: str, number: int) -> Cell | None:
        """The cell of the n-th frame that was taken of a video, if it has one."""
        return (self._rows[video], number) if video in self._rows and number < COLUMNS else None


def _spread(items: Sequence[str], most: int) -> list[str]:
    """As many of some items as may be, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]

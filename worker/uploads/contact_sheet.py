"""A contact sheet: one JPEG of square crops of pictures spread over a whole dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from service.contract.durable_files import atomic_write

from .media_reader import MIN_CLIP_FRAMES, natural_key

COLUMNS = 8  # also the number of frames taken of a video

_STILL_ROWS = 6
_CLIP_ROWS = 12
_SIDE_PX = 128  # of a picture
_GAP_PX = 4
_BACKGROUND = (255, 255, 255)
_QUALITY = 85

Cell = tuple[int, int]  # row, column


def max_reduction(width: int, height: int) -> float:
    """Return by how much a picture may be reduced while decoding, see `open_reduced`."""
    return min(width, height) / _SIDE_PX / 2


class ContactSheet:
    """Pictures on a grid, added in any order."""

    def __init__(self) -> None:
        self._pictures: dict[Cell, Image.Image] = {}

    def add(self, cell: Cell | None, image: Image.Image) -> None:
        """Put the picture's central square into a cell that is free."""
        if cell is not None and cell not in self._pictures:
            self._pictures[cell] = ImageOps.fit(image, (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)

    def save(self, path: Path, *, close_gaps: bool = False) -> None:
        """Write the sheet atomically. Empty cells stay white, or are closed up with `close_gaps`."""
        cells = sorted(self._pictures)
        places = {cell: divmod(index, COLUMNS) if close_gaps else cell for index, cell in enumerate(cells)}
        rows, columns = (max((place[axis] for place in places.values()), default=0) + 1 for axis in (0, 1))
        width, height = (count * (_SIDE_PX + _GAP_PX) + _GAP_PX for count in (columns, rows))
        sheet = Image.new("RGB", (width, height), _BACKGROUND)
        for cell, (row, column) in places.items():
            corner = (_GAP_PX + column * (_SIDE_PX + _GAP_PX), _GAP_PX + row * (_SIDE_PX + _GAP_PX))
            sheet.paste(self._pictures[cell], corner)
        with atomic_write(path) as file:
            sheet.save(file, "JPEG", quality=_QUALITY)


class StillCells:
    """Cells for pictures and frames spread evenly over a dataset; the next one replaces an unreadable one.

    Args:
        count: expected number of pictures and frames.
    """

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)
        self._cells = min(COLUMNS * _STILL_ROWS, self._count)

    def find(self, number: int) -> Cell:
        """Return the cell of a picture or frame, numbered from 0."""
        return divmod(min(number * self._cells // self._count, self._cells - 1), COLUMNS)


class ClipCells:
    """One row for each of some clips spread evenly over a dataset, in natural order of their names.

    Args:
        pictures: names of the pictures of each folder, by name of the folder.
        videos: names of the videos.
    """

    def __init__(self, pictures: Mapping[str, Sequence[str]], videos: Iterable[str]) -> None:
        folders = {clip: names for clip, names in pictures.items() if len(names) >= MIN_CLIP_FRAMES}
        clips = sorted({*folders, *videos}, key=natural_key)
        self._rows = {clip: row for row, clip in enumerate(_pick_evenly(clips, _CLIP_ROWS))}
        self._cells: dict[str, Cell] = {}
        for clip, row in self._rows.items():
            frames = sorted(folders.get(clip, ()), key=natural_key)
            self._cells.update({name: (row, column) for column, name in enumerate(_pick_evenly(frames, COLUMNS))})

    def find_picture(self, name: str) -> Cell | None:
        """Return the cell of a folder's picture, if it has one."""
        return self._cells.get(name)

    def find_frame(self, video: str, number: int) -> Cell | None:
        """Return the cell of a video's n-th taken frame, if it has one."""
        return (self._rows[video], number) if video in self._rows and number < COLUMNS else None


def _pick_evenly(items: Sequence[str], limit: int) -> list[str]:
    if len(items) <= limit:
        return list(items)
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]

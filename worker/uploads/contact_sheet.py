"""A contact sheet: one JPEG of pictures spread over a whole dataset, cut to squares, or whole with boxes on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from model.data import natural_key
from model.version.palette import BOX_RGB
from service.contract.durable_files import atomic_write
from service.contract.media.boxes import FoundBox
from service.contract.media.pictures import Picture

from .media_reader import MIN_CLIP_FRAMES

COLUMNS = 8  # also the number of frames taken of a video

_STILL_ROWS = 6
_CLIP_ROWS = 12
_SIDE_PX = 128  # of a picture
_GAP_PX = 4
_BOX_PX = 2  # width of a box's line
_OUTLINE = (16, 18, 24)

Cell = tuple[int, int]  # row, column


def max_reduction(width: int, height: int) -> float:
    """Return by how much a picture may be reduced while decoding, see `open_reduced`."""
    return min(width, height) / _SIDE_PX / 2


class ContactSheet:
    """Pictures on a grid, added in any order."""

    def __init__(self) -> None:
        self._cells: dict[Cell, _Cell] = {}

    def add(self, cell: Cell | None, picture: Picture, name: str) -> bool:
        """Put the picture into a cell that is free; return whether it was."""
        is_free = cell is not None and cell not in self._cells
        if cell is not None and is_free:
            square = ImageOps.fit(picture.image, (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)
            whole = ImageOps.contain(picture.image, (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)
            self._cells[cell] = _Cell(name, square, whole, whole.width / picture.width)
        return is_free

    def save(self, path: Path, boxes: Mapping[str, FoundBox] | None = None, *, close_gaps: bool = False) -> None:
        """Write the sheet atomically. Empty cells stay white, or are closed up with `close_gaps`.

        Args:
            boxes: by the picture's name, in its pixels; pictures are then shown whole, else cut to their central
                squares.
        """
        cells = sorted(self._cells)
        places = {cell: divmod(index, COLUMNS) if close_gaps else cell for index, cell in enumerate(cells)}
        rows, columns = (max((place[axis] for place in places.values()), default=0) + 1 for axis in (0, 1))
        width, height = (count * (_SIDE_PX + _GAP_PX) + _GAP_PX for count in (columns, rows))
        sheet = Image.new("RGB", (width, height), "white")
        for cell, (row, column) in places.items():
            image = self._cells[cell].square if boxes is None else self._cells[cell].draw(boxes)
            corner = (_GAP_PX + column * (_SIDE_PX + _GAP_PX), _GAP_PX + row * (_SIDE_PX + _GAP_PX))
            sheet.paste(image, corner)
        with atomic_write(path) as file:
            sheet.save(file, "JPEG", quality=85)


@dataclass(frozen=True)
class _Cell:
    name: str
    square: Image.Image  # its central part
    whole: Image.Image
    scale: float  # of the whole one

    def draw(self, boxes: Mapping[str, FoundBox]) -> Image.Image:
        """Return the whole picture in the middle of a white square, with its box."""
        image = self.whole
        if found := boxes.get(self.name):
            image = image.copy()
            x, y, width, height = (self.scale * value for value in found.box)
            draw, edges = ImageDraw.Draw(image), (x, y, x + width, y + height)
            draw.rectangle((edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1), None, _OUTLINE, _BOX_PX + 2)
            draw.rectangle(edges, None, BOX_RGB, _BOX_PX)
        return ImageOps.pad(image, (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC, "white")


def find_still_cell(number: int, count: int) -> Cell:
    """Return the cell of a picture or frame, spread evenly over `count`; the next one replaces an unreadable one."""
    cells = min(COLUMNS * _STILL_ROWS, count)
    return divmod(min(number * cells // count, cells - 1), COLUMNS)


def plan_clip_cells(
    pictures: Mapping[str, Sequence[str]], videos: Iterable[str]
) -> tuple[dict[str, int], dict[str, Cell]]:
    """Give a row to each of some clips spread evenly over a dataset, in natural order of their names.

    ``pictures`` are the names of each folder's pictures. Returns the row of each chosen clip, and the cell of each
    chosen picture of a folder.
    """
    folders = {clip: names for clip, names in pictures.items() if len(names) >= MIN_CLIP_FRAMES}
    clips = sorted({*folders, *videos}, key=natural_key)
    rows = {clip: row for row, clip in enumerate(_pick_evenly(clips, _CLIP_ROWS))}
    cells = {}
    for clip, row in rows.items():
        frames = _pick_evenly(sorted(folders.get(clip, ()), key=natural_key), COLUMNS)
        cells.update({name: (row, column) for column, name in enumerate(frames)})
    return rows, cells


def _pick_evenly(items: Sequence[str], limit: int) -> Sequence[str]:
    if len(items) <= limit:
        return items
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]

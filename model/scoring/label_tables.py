"""Read labels from a table: our own CSV, with a row per keypoint, or DeepLabCut's, with a row per picture.

Columns are separated by commas, semicolons or tabs, and numbers between semicolons or tabs may have decimal commas, as
spreadsheets write them. Empty rows, empty columns and a first line ``sep=;`` are ignored.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .labels import MAX_VALUES, ONE_ANIMAL, SPLITS, Labels, LabelsError, check_extent, check_in_pixels, check_size

_COLUMNS = ("image", "keypoint", "x", "y")  # required
_VISIBLE = {"1": True, "true": True, "yes": True, "2": True, "0": False, "false": False, "no": False, "": True}
_VISIBLE |= {"1.0": True, "2.0": True, "0.0": False}  # as tables with empty cells write them
# as pandas reads them
_NAN = ("nan", "-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan")
_MISSING = frozenset(("", "na", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "null", "none", *_NAN))
_VISIBLE |= dict.fromkeys(_MISSING, True)
# the mark of UTF-32 begins as one of UTF-16
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = ",;\t"
_SEPARATOR_LINE = re.compile(r'"?sep=(.?)"?[,;\t ]*(?:\r\n|\r|\n)', re.IGNORECASE)  # Excel's
_INDIVIDUAL = ("individual", "individuals", "animal", "instance", "track")  # columns that name the animal
_MAX_CELLS = 3 * MAX_VALUES  # x, y and a likelihood of each
_UNIQUE = "single"  # DeepLabCut's individual of body parts that are in a picture once
_LEVELS = ("scorer", "individuals", "bodyparts", "coords")  # DeepLabCut's header rows

Row = tuple[int, list[str]]  # number of its last line, and its cells


def decode_text(data: bytes) -> str:
    """Return text in UTF-8, or in UTF-16 or UTF-32 with its mark. Raises UnicodeDecodeError."""
    return data.decode(next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8-sig"))


def split_table(text: str) -> tuple[str, Iterator[Row]]:
    """Return what separates a table's columns, and its rows that have any cell. Raises LabelsError, also later."""
    if stated := _SEPARATOR_LINE.match(text):
        text = text[stated.end() :]
    head = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    delimiter = max(_DELIMITERS, key=head.count)
    return delimiter, _read_rows(text, delimiter)


def is_missing(cell: str) -> bool:
    """Return whether a cell is empty, or says that it has no value."""
    return cell.lower() in _MISSING


def parse_decimal(cell: str, delimiter: str) -> float:
    """Return a number, written with a decimal comma or point. Raises ValueError."""
    return float(cell.replace(",", ".") if delimiter != "," else cell)


def read_table(text: str) -> Labels:
    """Read labels from the text of a table. Raises LabelsError."""
    delimiter, rows = split_table(text)
    first = next(rows, None)
    if first is None:
        raise LabelsError("the labels are an empty table; expected a header and rows")
    is_deeplabcut = first[1][0].lower() == _LEVELS[0]
    return (_read_deeplabcut if is_deeplabcut else _read_own)(first, rows, delimiter)


def _read_rows(text: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows that have any cell."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise LabelsError(f"line {reader.line_num} is not CSV: {error}") from error


@dataclass
class _Table:
    """The rows of our own table: numbers of pictures and keypoints by name, and what is given for them."""

    delimiter: str
    columns: dict[str, int]  # the header's names
    width: int  # columns of the header
    pictures: dict[str, int] = field(default_factory=dict)
    joints: dict[str, int] = field(default_factory=dict)
    points: dict[tuple[int, int], tuple[float, float, bool]] = field(default_factory=dict)  # by picture and keypoint
    splits: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    animals: dict[str, str] = field(default_factory=dict)

    def add(self, row: list[str]) -> None:
        """Add a row."""
        if len(row) <= max(self.columns[name] for name in _COLUMNS) or any(row[self.width :]):
            raise LabelsError(f"has more or fewer fields than the header's {self.width}")
        cells = {name: row[index] if index < len(row) else "" for name, index in self.columns.items()}
        name, joint_name = cells["image"], cells["keypoint"]
        if all(is_missing(cells[column]) for column in _COLUMNS):  # an empty row, but for columns of others
            return
        if not name or not joint_name:
            raise LabelsError("image or keypoint is empty")
        place = (
            self.pictures.setdefault(name, len(self.pictures)),
            self.joints.setdefault(joint_name, len(self.joints)),
        )
        check_extent(len(self.pictures), len(self.joints))
        if place in self.points:
            raise LabelsError(f"'{joint_name}' of '{name}' is there twice")
        visible = _VISIBLE.get(cells.get("visible", "1").lower())
        if visible is None:
            raise LabelsError(f"visible is '{cells['visible'][:40]}'; expected 0 or 1")
        point = _parse_point(cells["x"], cells["y"], self.delimiter) if visible else None
        self.points[place] = (0.0, 0.0, False) if point is None else (*point, True)
        given = [cells.get(column, "") for column in _INDIVIDUAL]
        animal = " ".join(cell for cell in given if not is_missing(cell)) or "one without a name"
        if point is not None and self.animals.setdefault(name, animal) != animal:
            raise LabelsError(f"'{name}' has labels of two animals, {self.animals[name]} and {animal}; {ONE_ANIMAL}")
        if cells.get("split"):
            split = SPLITS.get(cells["split"].lower())
            if split is None:
                raise LabelsError(f"split is '{cells['split'][:40]}'; expected train or test")
            if self.splits.setdefault(name, split) != split:
                raise LabelsError(f"'{name}' is of split {split} here and of {self.splits[name]} above")
        if (size := _parse_size(name, cells, self.delimiter)) and self.sizes.setdefault(name, size) != size:
            raise LabelsError(f"'{name}' has {size} pixels here and {self.sizes[name]} above")


def _parse_size(name: str, cells: dict[str, str], delimiter: str) -> tuple[int, int] | None:
    """Return width and height, or None if one is missing or 0."""
    sides = {side: cells.get(side, "") for side in ("width", "height")}
    if any(map(is_missing, sides.values())):
        return None
    width, height = (_parse_number(side, text, delimiter) for side, text in sides.items())
    return check_size(name, width, height) if width and height else None


def _read_own(header: Row, rows: Iterator[Row], delimiter: str) -> Labels:
    names = [name.lower() for name in header[1]]
    table = _Table(delimiter, _find_columns(names), len(names))
    for line, row in rows:
        try:
            table.add(row)
        except LabelsError as error:
            raise LabelsError(f"line {line}: {error}") from None
    pictures = tuple(table.pictures)
    if not pictures:
        raise LabelsError("the labels have a header and no row; expected one row per keypoint")
    keypoints = np.zeros((len(pictures), len(table.joints), 2))
    visibility = np.zeros((len(pictures), len(table.joints)), dtype=np.uint8)
    for place, (x, y, visible) in table.points.items():
        keypoints[place], visibility[place] = (x, y), visible
    lacking = [name for name in pictures if name not in table.splits]
    if table.splits and lacking:
        raise LabelsError(f"{len(lacking)} of {len(pictures)} pictures have no split, such as '{lacking[0]}'")
    check_in_pixels(keypoints, visibility)
    splits = tuple(table.splits[name] for name in pictures) if table.splits else None
    sizes = np.array([table.sizes.get(name, (0, 0)) for name in pictures]) if table.sizes else None
    return Labels(pictures, tuple(table.joints), keypoints, visibility, splits, sizes)


def _find_columns(header: list[str]) -> dict[str, int]:
    """Return the number of each column that has a name."""
    columns = {name: index for index, name in enumerate(header) if name}
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise LabelsError(
            f"the header is '{', '.join(header)[:120]}', without {', '.join(missing)}; expected the columns image, "
            "keypoint, x, y and optionally visible, split, width, height, or DeepLabCut's header rows scorer, "
            "bodyparts, coords"
        )
    if len(columns) < len(header) - header.count(""):
        raise LabelsError(f"the header '{', '.join(header)[:120]}' names a column twice")
    return columns


def _read_deeplabcut(first: Row, rows: Iterator[Row], delimiter: str) -> Labels:
    """Read DeepLabCut's table: header rows, then one row per picture; its path may take several columns."""
    header = {_LEVELS[0]: first[1]}
    body: list[Row] = []
    for line, row in rows:
        if not body and row[0].lower() in _LEVELS:
            header[row[0].lower()] = row
        else:
            body.append((line, row))
    lacking = [level for level in ("bodyparts", "coords") if level not in header]
    if lacking:
        raise LabelsError(f"the table has no header row '{lacking[0]}'; expected scorer, bodyparts and coords")
    width = max(map(len, header.values()))
    levels = {level: row + [""] * (width - len(row)) for level, row in header.items()}
    start = next((index for index in range(1, width) if levels["coords"][index]), width)
    individuals = levels.get("individuals", [""] * width)
    columns = list(zip(individuals[start:], levels["bodyparts"][start:], levels["coords"][start:], strict=True))
    check_extent(len(body), len({joint for _, joint, _ in columns}))
    if len(body) * len(columns) > _MAX_CELLS:
        raise LabelsError(
            f"the table has {len(body)} rows of {len(columns)} columns; at most {_MAX_CELLS} cells are allowed"
        )
    names, values = [], np.full((len(body), len(columns)), np.nan)
    for (line, row), found in zip(body, values, strict=True):
        if any(row[width:]):
            raise LabelsError(f"line {line}: has more fields than the header's {width}")
        names.append("/".join(filter(None, row[:start])))
        try:
            # missing cells of a short row stay NaN, so that a wide header does not make short rows slow
            found[: max(0, min(len(row), width) - start)] = _parse_row(row[start:width], columns, delimiter)
        except LabelsError as error:
            raise LabelsError(f"line {line}: {error}") from None
    return labels_of_columns(columns, names, values)


def _parse_row(cells: list[str], columns: Sequence[tuple[str, str, str]], delimiter: str) -> list[float]:
    return [
        math.nan
        if is_missing(cell) or coordinate.lower() not in ("x", "y")
        else _parse_number(f"{coordinate} of {joint}", cell, delimiter)
        for cell, (_, joint, coordinate) in zip(cells, columns, strict=False)
    ]


def labels_of_columns(
    columns: Sequence[tuple[str, str, str]], names: Sequence[str], values: NDArray[np.float64]
) -> Labels:
    """Return labels of a table with a row per picture; pictures without any labelled keypoint are left out.

    Args:
        columns: individual ("" without individuals), body part and coordinate of each; only x and y are read.
        names: of the N pictures.
        values: (N, columns), NaN where a keypoint is not visible.

    Raises:
        LabelsError: a coordinate has no partner, or two animals of a picture are labelled.
    """
    places: dict[tuple[str, str, str], int] = {}
    for index, (who, joint, axis) in enumerate(columns):
        if joint and places.setdefault((who, joint, axis.lower()), index) != index:
            raise LabelsError(f"the body part '{joint}' has two columns {axis}; expected one of each")
    pairs = {}
    for who, joint, axis in places:
        if axis in ("x", "y"):
            if (other := (who, joint, "y" if axis == "x" else "x")) not in places:
                raise LabelsError(f"'{joint}' has a column {axis} and no {other[2]}")
            pairs[who, joint] = [places[who, joint, "x"], places[who, joint, "y"]]
    joints = tuple(dict.fromkeys(joint for _, joint in pairs))
    check_extent(len(names), len(joints))
    if not joints:
        raise LabelsError("the table has no column of x and y; expected the header rows bodyparts and coords")
    keypoints = np.full((len(names), len(joints), 2), np.nan)
    animal = np.full(len(names), "", dtype=object)  # seen so far in each picture
    for (who, joint), pair in pairs.items():
        points = values[:, pair]
        half = np.flatnonzero(np.isnan(points).sum(1) == 1)
        if len(half):
            raise LabelsError(f"'{joint}' of '{names[half[0]]}' has only one of x and y")
        rows = np.flatnonzero(~np.isnan(points[:, 0]))
        keypoints[rows, joints.index(joint)] = points[rows]
        if who == _UNIQUE and sum(part == joint for _, part in pairs) == 1:
            continue  # of no certain animal
        for row in rows[(animal[rows] != "") & (animal[rows] != who)]:
            raise LabelsError(f"'{names[row]}' has labels of two animals, {animal[row]} and {who}; {ONE_ANIMAL}")
        animal[rows] = who
    seen = ~np.isnan(keypoints[..., 0])
    kept = np.flatnonzero(seen.any(1)).tolist()
    if not kept:
        raise LabelsError("no picture of the table has a labelled keypoint")
    found = tuple(names[row] for row in kept)
    if len(set(found)) < len(found):
        twice = Counter(found).most_common(1)[0][0]
        raise LabelsError(f"the picture '{twice}' is there twice")
    if not all(found):
        raise LabelsError("a row has no picture; expected its path in the first column")
    labels = Labels(found, joints, np.nan_to_num(keypoints[kept]), seen[kept].astype(np.uint8))
    check_in_pixels(labels.keypoints, labels.visibility)
    return labels


def _parse_point(x: str, y: str, delimiter: str) -> tuple[float, float] | None:
    """Return a point, or None if both cells are empty or NaN: the keypoint is not visible. Raises LabelsError."""
    missing = [is_missing(cell) for cell in (x, y)]
    if all(missing):
        return None
    if any(missing):
        raise LabelsError(
            f"x is '{x[:40]}' and y is '{y[:40]}'; expected two finite numbers, or none for a keypoint that is not "
            "visible"
        )
    return _parse_number("x", x, delimiter), _parse_number("y", y, delimiter)


def _parse_number(column: str, text: str, delimiter: str) -> float:
    try:
        value = parse_decimal(text, delimiter)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelsError(
            f"{column} is '{text[:40]}'; expected a finite number, or an empty cell for a keypoint that is not visible"
        )
    return value

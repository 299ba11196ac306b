"""What training reads: squares in one file, the name of each, and which clip it belongs to."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

LEAST_FRAMES = 2  # of a clip: the reference of a frame is another one

# a name as Python's sorting takes it: runs of digits by their value, frame_2 before frame_10
NaturalKey = tuple[tuple[tuple[int, int, str], ...], str]


def natural_key(name: str) -> NaturalKey:
    """A name's place among others: numbers in it count by their value; names equal by that go by their letters."""
    parts = []
    for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name):
        plain = digits.lstrip("0")
        parts.append((0, len(plain), plain) if digits else (1, 0, text))
    return tuple(parts), name


def clip_of_picture(name: str) -> str:
    """The clip of a picture in an upload: its folder; "." for one that lies in none."""
    return str(PurePosixPath(name.replace("\\", "/")).parent)


class TrainingSet:
    """Squares as they come, put in order at the end.

    Args:
        pictures: where the .npy of squares shall be.
        clips: where the .npy of clip numbers shall be, if there are clips.
        side: S.

    Attributes:
        names: of the squares, in the order of the file.
        sizes: width and height in pixels of the pictures they were cut from, in the same order.
    """

    def __init__(self, pictures: Path, clips: Path, side: int) -> None:
        self._pictures = pictures
        self._clips = clips
        self._side = side
        self._file = SquareFile(pictures, side)
        self._clip_names: list[str] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def __enter__(self) -> TrainingSet:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def append(self, square: NDArray[np.uint8], name: str, clip: str, size: tuple[int, int]) -> None:
        """One picture (S, S, 3), its name and that of its clip, and the size it had."""
        self._file.append(square)
        self.names.append(name)
        self.sizes.append(size)
        self._clip_names.append(clip)

    def arrange(self) -> tuple[int, dict[str, int]]:
        """Make clips of what came: call it after the block.

        Clips in natural order of their names, the frames of each in natural order of theirs. Those
        of a single frame are left out.

        Returns:
            The number of clips, and the names of those left out with their number of frames.
        """
        counts: dict[str, int] = {}
        for clip in self._clip_names:
            counts[clip] = counts.get(clip, 0) + 1
        kept = sorted((clip for clip, count in counts.items() if count >= LEAST_FRAMES), key=natural_key)
        numbers = {clip: number for number, clip in enumerate(kept)}
        order = [at for at, clip in enumerate(self._clip_names) if clip in numbers]
        order.sort(key=lambda at: (numbers[self._clip_names[at]], natural_key(self.names[at])))
        if order != list(range(len(self.names))):
            self._reorder(order)
        clips = np.array([numbers[clip] for clip in self._clip_names], dtype=np.int64)
        with self._clips.open("wb") as file:
            np.save(file, clips, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        return len(kept), {clip: count for clip, count in counts.items() if clip not in numbers}

    def _reorder(self, order: list[int]) -> None:
        draft = self._pictures.with_name(f".{self._pictures.name}.ordered")
        with SquareFile(draft, self._side) as file:
            if order:
                squares = np.load(self._pictures, mmap_mode="r", allow_pickle=False)
                for at in order:
                    file.append(squares[at])
                del squares
        os.replace(draft, self._pictures)
        self.names = [self.names[at] for at in order]
        self.sizes = [self.sizes[at] for at in order]
        self._clip_names = [self._clip_names[at] for at in order]


class SquareFile:
    """An .npy of uint8 (N, S, S, 3) written picture by picture, N known only at the end."""

    def __init__(self, path: Path, side: int) -> None:
        self._file = path.open("wb")
        self._side = side
        self._count = 0
        self._header_bytes = self._write_header()

    def append(self, square: NDArray[np.uint8]) -> None:
        """One picture (S, S, 3)."""
        self._file.write(np.ascontiguousarray(square).data)
        self._count += 1

    def __enter__(self) -> SquareFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                assert self._write_header() == self._header_bytes  # numpy leaves room for a longer N
                self._file.flush()
                os.fsync(self._file.fileno())

    def _write_header(self) -> int:
        shape = (self._count, self._side, self._side, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()

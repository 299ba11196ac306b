"""Write the files that training reads: the squares, and the clip of each."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from service.contract.durable_files import atomic_write

MIN_CLIP_FRAMES = 2  # training pairs each frame with another one

NaturalKey = tuple[tuple[tuple[int, int, str], ...], str]


def natural_key(name: str) -> NaturalKey:
    """Return a sort key that compares digits by value, frame_2 before frame_10; ties are compared as text."""
    parts = []
    for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name):
        value = digits.lstrip("0")
        parts.append((0, len(value), value) if digits else (1, 0, text))
    return tuple(parts), name


def clip_of_picture(name: str) -> str:
    """Return the clip of a picture in an upload: its folder, or "." for a picture outside of any folder."""
    return str(PurePosixPath(name.replace("\\", "/")).parent)


class TrainingSet:
    """Squares in the order of arrival, sorted into clips at the end.

    Args:
        pictures: path of the .npy of squares.
        clips: path of the .npy of clip numbers, written by `arrange_clips`.
        side: S.

    Attributes:
        names: names of the squares, in the order of the file.
        sizes: width and height in pixels of the original pictures, in the same order.
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

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def append(self, square: NDArray[np.uint8], name: str, clip: str, size: tuple[int, int]) -> None:
        """Add a square (S, S, 3), its name, its clip and the original size."""
        self._file.append(square)
        self.names.append(name)
        self.sizes.append(size)
        self._clip_names.append(clip)

    def arrange_clips(self) -> tuple[int, dict[str, int]]:
        """Sort the file by clip and frame, in natural order, without clips of a single frame; call it after the block.

        Returns:
            The number of clips, and the number of frames of each clip left out, by name.
        """
        counts = Counter(self._clip_names)
        kept = sorted((clip for clip, count in counts.items() if count >= MIN_CLIP_FRAMES), key=natural_key)
        numbers = {clip: number for number, clip in enumerate(kept)}
        order = [index for index, clip in enumerate(self._clip_names) if clip in numbers]
        order.sort(key=lambda index: (numbers[self._clip_names[index]], natural_key(self.names[index])))
        if order != list(range(len(self.names))):
            self._reorder(order)
        clips = np.array([numbers[clip] for clip in self._clip_names], dtype=np.int64)
        with atomic_write(self._clips) as file:
            np.save(file, clips, allow_pickle=False)
        return len(kept), {clip: count for clip, count in counts.items() if clip not in numbers}

    def _reorder(self, order: list[int]) -> None:
        with atomic_write(self._pictures) as draft, SquareFile(Path(draft.name), self._side) as file:
            if order:
                squares = np.load(self._pictures, mmap_mode="r", allow_pickle=False)
                for index in order:
                    file.append(squares[index])
                del squares
        self.names = [self.names[index] for index in order]
        self.sizes = [self.sizes[index] for index in order]
        self._clip_names = [self._clip_names[index] for index in order]


class SquareFile:
    """An .npy of uint8 (N, S, S, 3) written picture by picture; N is written at the end."""

    def __init__(self, path: Path, side: int) -> None:
        self._file = path.open("wb")
        self._side = side
        self._count = 0
        self._header_bytes = self._write_header()

    def append(self, square: NDArray[np.uint8]) -> None:
        """Write one picture (S, S, 3)."""
        self._file.write(np.ascontiguousarray(square).data)
        self._count += 1

    def __enter__(self) -> SquareFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                assert self._write_header() == self._header_bytes  # numpy pads the header for a longer N
                self._file.flush()
                os.fsync(self._file.fileno())

    def _write_header(self) -> int:
        shape = (self._count, self._side, self._side, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()

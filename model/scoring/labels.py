"""Labels of pictures, for measuring only: no training sees them. Numpy only.

:func:`model.scoring.label_files.read_labels` reads them from a file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SPLITS = {"train": "train", "test": "test", "heldout": "test"}
MOST_KEYPOINTS = 512
MOST_VALUES = 20_000_000  # pictures x keypoints
MOST_PICTURES = 1_000_000
LONGEST_SIDE_PX = 1_000_000
_SHOWN = 3
_FARTHEST = 1.0  # sides of the square that a label may lie outside of it


class LabelsError(ValueError):
    """A labels file that can't be used; the message says what came and what was expected."""


@dataclass(frozen=True)
class Labels:
    """Labelled keypoints of N pictures, J each.

    Attributes:
        names: N file names; unique within a split.
        keypoint_names: J names, unique.
        keypoints: (N, J, 2) as (x, y), in pixels of the picture (integers at pixel centres), or, where
            ``in_square`` is set, in [0, 1] of the model's square. 0 where not visible.
        visibility: uint8 (N, J), 1 where the label counts.
        split: N times "train" or "test"; None where the file gives none.
        sizes: (N, 2) width and height of the pictures in pixels; None where the file does not tell.
        edges: pairs of keypoints, the true skeleton; empty where the file has none.
        in_square: what unit the keypoints have.
    """

    names: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    keypoints: Array
    visibility: NDArray[np.uint8]
    split: tuple[str, ...] | None = None
    sizes: NDArray[np.int64] | None = None
    edges: tuple[tuple[int, int], ...] = ()
    in_square: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> Labels:
        """Some of the pictures, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[row] for row in chosen),
            keypoints=self.keypoints[chosen],
            visibility=self.visibility[chosen],
            split=None if self.split is None else tuple(self.split[row] for row in chosen),
            sizes=None if self.sizes is None else self.sizes[chosen],
        )

    def of_split(self, split: str) -> Labels:
        """The pictures of "train" or "test".

        Raises:
            LabelsError: the labels have no split.
        """
        if self.split is None:
            raise LabelsError(f"the labels have no split; pictures of '{split}' can't be told from others")
        return self.rows([row for row, mine in enumerate(self.split) if mine == split])

    def match(self, pictures: Sequence[str]) -> NDArray[np.int64]:
        """The row of each picture's labels, -1 where it has none.

        A picture and a label belong together where their names are equal or one is the end of the other, folder by
        folder: the label "0001.jpg" is that of "dog/0001.jpg". A letter with an accent is the same in its two
        spellings in Unicode, for macOS writes the other one than most editors do.

        Args:
            pictures: file names, with or without folders.

        Raises:
            LabelsError: no picture has a label, or a name fits two labels, or a label fits two pictures.
        """
        parts = [_parts(picture) for picture in pictures]
        endings = _Endings([_parts(name) for name in self.names], {len(part) for part in parts})
        found = np.full(len(pictures), -1, dtype=np.int64)
        owner: dict[int, str] = {}
        for index, picture in enumerate(pictures):
            fitting = endings.fitting(parts[index])
            if len(fitting) > 1:
                told = _some([self._full_name(row) for row in fitting])
                raise LabelsError(f"picture '{picture}' fits {len(fitting)} labels: {told}")
            mine = fitting[0] if fitting else None
            if mine is not None and mine in owner:
                raise LabelsError(f"the label '{self.names[mine]}' fits two pictures, '{owner[mine]}' and '{picture}'")
            if mine is not None:
                owner[mine], found[index] = picture, mine
        if not owner:
            raise LabelsError(
                f"none of the {len(self)} labelled pictures ({_some(self.names)}) is among "
                f"the {len(pictures)} pictures ({_some(pictures)})"
            )
        return found

    def _full_name(self, row: int) -> str:
        return self.names[row] + (f" ({self.split[row]})" if self.split else "")

    def to_square(self, sizes: Mapping[str, tuple[int, int]] | None = None) -> Labels:
        """The same labels in [0, 1] of the model's square.

        Args:
            sizes: width and height in pixels by the labels' own names; they go before those of the file.

        Raises:
            LabelsError: the size of a picture is known from neither, or a label lies far outside of its picture.
        """
        if self.in_square:
            return self
        known = sizes or {}
        if self.sizes is None:
            lacking = [name for name in self.names if name not in known]
            if lacking:
                raise LabelsError(
                    f"the size of {len(lacking)} labelled pictures is unknown ({_some(lacking)}); "
                    "expected columns width and height, or the pictures themselves"
                )
        own = np.zeros((len(self), 2), dtype=np.int64) if self.sizes is None else self.sizes
        final = np.array([known.get(name, size) for name, size in zip(self.names, own.tolist(), strict=True)])
        final = final.reshape(len(self), 2).astype(np.int64)
        square = to_square(self.keypoints, final[:, None, 0], final[:, None, 1])
        square[self.visibility == 0] = 0
        far = np.argwhere((np.abs(square - 0.5) > 0.5 + _FARTHEST).any(-1))
        if len(far):
            row, joint = far[0]
            x, y = self.keypoints[row, joint]
            raise LabelsError(
                f"'{self.keypoint_names[joint]}' of '{self.names[row]}' is at ({x:g}, {y:g}), far outside of the "
                f"picture, which has {final[row, 0]} x {final[row, 1]} pixels"
            )
        return replace(self, keypoints=square, sizes=final, in_square=True)


def to_square(keypoints_px: ArrayLike, width: ArrayLike, height: ArrayLike) -> Array:
    """Pixels of a picture to [0, 1] of the square that the model sees.

    The whole picture lies centred in a square as wide as its longer side. A pixel's centre is an integer, so the
    picture spans -0.5 to width - 0.5, as in the pictures' contract.

    Args:
        keypoints_px: (…, 2) as (x, y), in pixels of the picture with its EXIF orientation applied.
        width: of the picture in pixels; of any shape that broadcasts with the points'.
        height: the same.

    Returns:
        (…, 2).
    """
    points = np.asarray(keypoints_px, dtype=np.float64)
    extent = np.stack(np.broadcast_arrays(np.asarray(width, np.float64), np.asarray(height, np.float64)), axis=-1)
    longer = extent.max(-1, keepdims=True)
    square: Array = (points + 0.5 + (longer - extent) / 2) / longer
    return square


def from_square(square: ArrayLike, width: ArrayLike, height: ArrayLike) -> Array:
    """The inverse of :func:`to_square`."""
    points = np.asarray(square, dtype=np.float64)
    extent = np.stack(np.broadcast_arrays(np.asarray(width, np.float64), np.asarray(height, np.float64)), axis=-1)
    longer = extent.max(-1, keepdims=True)
    pixels: Array = points * longer - 0.5 - (longer - extent) / 2
    return pixels


def hashed_split(
    names: Sequence[str], test_share: float = 0.2, clips: Sequence[Hashable] | None = None
) -> tuple[str, ...]:
    """ "train" or "test" for each picture, where nobody has said: the share of lowest SHA-256 of the name is "test".

    The same names have the same split on every machine, in whatever order they come; of two pictures or more, each
    split has one.

    Args:
        clips: which clip each picture is a frame of. Clips are split then, each by the first of its names: frames of
            one are too alike to be in both.
    """
    of: Sequence[Hashable] = range(len(names)) if clips is None else clips
    first: dict[Hashable, str] = {}
    for clip, name in zip(of, names, strict=True):
        first[clip] = min(name, first.get(clip, name))
    count = min(max(round(test_share * len(first)), 1), max(len(first) - 1, 0))

    def rank(clip: Hashable) -> tuple[bytes, str]:
        return hashlib.sha256(first[clip].encode("utf-8", "surrogatepass")).digest(), first[clip]

    test = set(sorted(first, key=rank)[:count])
    return tuple("test" if clip in test else "train" for clip in of)


def check_extent(pictures: int, keypoints: int) -> None:
    """Refuse what would not fit into memory.

    Raises:
        LabelsError: too many keypoints or pictures, or too many of the one times the other.
    """
    if pictures > MOST_PICTURES:
        raise LabelsError(f"more than {MOST_PICTURES} labelled pictures")
    if keypoints > MOST_KEYPOINTS:
        raise LabelsError(f"more than {MOST_KEYPOINTS} different keypoints")
    if pictures * keypoints > MOST_VALUES:
        raise LabelsError(f"{pictures} pictures of {keypoints} keypoints; at most {MOST_VALUES} keypoints in all")


def check_not_normalised(keypoints: Array, visibility: NDArray[np.uint8]) -> None:
    """Refuse pixels that are none: all of them in [0, 1].

    Raises:
        LabelsError: every visible coordinate lies in [0, 1].
    """
    seen = keypoints[visibility > 0]
    if len(seen) > 1 and seen.min() >= 0 and seen.max() <= 1:
        raise LabelsError(f"all of {len(seen)} labelled keypoints lie in [0, 1]; expected pixels of the picture")


def plain_size(name: str, width: float, height: float) -> tuple[int, int]:
    """Width and height as whole pixels.

    Raises:
        LabelsError: they are none.
    """
    if not all(side == int(side) and 0 < side <= LONGEST_SIDE_PX for side in (width, height)):
        raise LabelsError(f"'{name}' has {width:g} x {height:g} pixels; expected whole numbers above 0")
    return int(width), int(height)


def _parts(name: str) -> tuple[str, ...]:
    spelled = unicodedata.normalize("NFC", name)
    parts = tuple(part for part in spelled.replace("\\", "/").split("/") if part not in ("", "."))
    return parts or (name,)


class _Endings:
    """Which labels a picture's name fits, found without comparing it with each.

    Args:
        labels: the labels' names, part by part.
        lengths: numbers of parts that the pictures' names have.
    """

    def __init__(self, labels: Sequence[tuple[str, ...]], lengths: set[int]) -> None:
        self._whole: dict[tuple[str, ...], list[int]] = {}
        self._cut: dict[tuple[str, ...], list[int]] = {}
        for row, parts in enumerate(labels):
            self._whole.setdefault(parts, []).append(row)
            for length in lengths:
                if length < len(parts):
                    self._cut.setdefault(parts[-length:], []).append(row)

    def fitting(self, parts: tuple[str, ...]) -> list[int]:
        """Rows of equal names, or else of all whose name is the end of the picture's, or ends with it."""
        if parts in self._whole:
            return self._whole[parts]
        shorter = [row for first in range(1, len(parts)) for row in self._whole.get(parts[first:], [])]
        return shorter + self._cut.get(parts, [])


def _some(names: Sequence[str]) -> str:
    """The first few names, as a message shows them."""
    shown = ", ".join(f"'{name[:80]}'" for name in names[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")

"""Labelled keypoints of pictures, used for scoring and never for training. Numpy only.

:func:`model.scoring.label_files.read_labels` reads them from a file.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SPLITS = {"train": "train", "test": "test", "heldout": "test"}
MAX_KEYPOINTS = 512
MAX_VALUES = 20_000_000  # pictures x keypoints
MAX_PICTURES = 1_000_000
MAX_SIDE_PX = 1_000_000
_MAX_MESSAGE = 1000  # characters
_MAX_NAME = 4096  # characters
_MAX_OUTSIDE = 1.0  # how far outside of the picture a label may lie, in longer sides of the picture
_SLACK = 0.02  # up to this it counts as inside
_MAX_OUTSIDE_SHARE = 0.2  # of the labels; more are of pictures of another size or orientation
_FEW_OUTSIDE = 4  # say nothing
_NAMES_IN_MESSAGE = 3
_FRAME = re.compile(r"#\d+$")
ONE_ANIMAL = (
    "expected one labelled animal or person in a picture: leave the labels of one, or cut the animals out into "
    "pictures of their own"
)


class LabelsError(ValueError):
    """Labels that can't be used; the message says what came and what was expected, in at most 1,000 characters."""

    def __init__(self, message: str) -> None:
        # it may quote a name, which may be as long as its file
        super().__init__(message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…")


class NoMatchError(LabelsError):
    """No picture has a label."""


@dataclass(frozen=True)
class Labels:
    """Labelled keypoints of N pictures, J each.

    Attributes:
        names: N file names; unique within a split.
        keypoints: (N, J, 2) as (x, y), in pixels of the picture (integers at pixel centres), or in [0, 1] of the
            model's square if ``in_square``. 0 where not visible.
        visibility: uint8 (N, J), 1 where the label counts.
        split: N times "train" or "test"; None if the file has no split.
        sizes: (N, 2) width and height of the pictures in pixels, zeros where unknown; None if the file has no sizes.
        edges: pairs of keypoints, the true skeleton; may be empty.
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
        """Return the labels of some pictures, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[row] for row in chosen),
            keypoints=self.keypoints[chosen],
            visibility=self.visibility[chosen],
            split=None if self.split is None else tuple(self.split[row] for row in chosen),
            sizes=None if self.sizes is None else self.sizes[chosen],
        )

    def check_visible(self) -> None:
        """Raise LabelsError if no keypoint is visible in any picture."""
        if not self.visibility.any():
            raise LabelsError(
                f"no keypoint is labelled in {len(self)} pictures: each has no x and y, or is not visible; label some"
            )

    def match(self, pictures: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each picture's labels (len(pictures),), -1 for a picture without labels.

        A picture matches a label if their names are equal or one ends with the other, compared folder by folder: the
        label "0001.jpg" matches "dog/0001.jpg". Both Unicode spellings of an accented letter are equal, because macOS
        writes a different one than most editors.

        Raises:
            LabelsError: no picture has a label, a picture matches two labels, or a label matches two pictures.
        """
        paths = [_split_path(picture) for picture in pictures]
        lengths = {len(path) for path in paths}
        whole, longer = defaultdict(list), defaultdict(list)  # rows by the label's path, and by its ends
        for row, name in enumerate(self.names):
            path = _split_path(name)
            whole[path].append(row)
            for length in lengths:
                if length < len(path):
                    longer[path[-length:]].append(row)
        matched = np.full(len(pictures), -1, dtype=np.int64)
        picture_of: dict[int, str] = {}
        for number, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            shorter = [row for first in range(1, len(path)) for row in whole.get(path[first:], ())]
            rows = whole.get(path) or shorter + longer.get(path, [])
            if len(rows) > 1:
                names = [self.names[row] + (f" ({self.split[row]})" if self.split else "") for row in rows]
                raise LabelsError(f"picture '{picture}' fits {len(rows)} labels: {list_names(names)}")
            for row in rows:
                if row in picture_of:
                    two = f"'{picture_of[row]}' and '{picture}'"
                    raise LabelsError(f"the label '{self.names[row]}' fits two pictures, {two}")
                picture_of[row], matched[number] = picture, row
        if not picture_of:
            hint = "; of a video, some frames are taken (frames_per_clip)" if any(map(_FRAME.search, pictures)) else ""
            raise NoMatchError(
                f"none of the {len(self)} labelled pictures ({list_names(self.names)}) is among "
                f"the {len(pictures)} pictures ({list_names(pictures)}){hint}"
            )
        return matched

    def with_sizes(self, sizes: NDArray[np.int64]) -> Labels:
        """Return the labels with the sizes of the received pictures (N, 2); zeros for pictures that are missing.

        Raises LabelsError if the size of a picture is unknown or differs from the labels', or labels lie outside.
        """
        given = np.zeros_like(sizes) if self.sizes is None else self.sizes
        both = (given > 0).all(1) & (sizes > 0).all(1)
        for row in np.flatnonzero(both & (given != sizes).any(1)):
            self._refuse_size(int(row), *given[row].tolist(), *sizes[row].tolist())
        final = np.where(sizes > 0, sizes, given)
        unknown = [] if self.in_square else [self.names[row] for row in np.flatnonzero((final <= 0).any(1))]
        if unknown:
            raise LabelsError(
                f"the size of {len(unknown)} labelled pictures is unknown ({list_names(unknown)}); "
                "expected columns width and height, or the pictures themselves"
            )
        labels = replace(self, sizes=final)
        if not self.in_square:
            labels._check_inside()
        return labels

    def _refuse_size(self, row: int, width: int, height: int, came_width: int, came_height: int) -> None:
        turned = (width, height) == (came_height, came_width)
        raise LabelsError(
            f"by the labels '{self.names[row][:80]}' has {width} x {height} pixels, and the picture that came has "
            f"{came_width} x {came_height}"
            + (
                " as it is shown: label pictures with their EXIF orientation applied, or turn the labels"
                if turned
                else "; send the pictures that were labelled, or scale the labels"
            )
            + ". labels_fit=scale of a training job, an evaluation and landmarks scales labels of the same aspect "
            "ratio, and turns them where EXIF says so"
        )

    def _check_inside(self) -> None:
        """Raise LabelsError if a label lies far outside of its picture, or many a little."""
        assert self.sizes is not None
        sizes = self.sizes[:, None].astype(np.float64)
        outside = np.maximum(-0.5 - self.keypoints, self.keypoints - (sizes - 0.5)).max(-1) / sizes.max(-1)
        outside[self.visibility == 0] = 0
        if not outside.size or outside.max() <= _SLACK:
            return
        row, joint = np.unravel_index(int(outside.argmax()), outside.shape)
        x, y = self.keypoints[row, joint]
        width, height = self.sizes[row]
        place = f"'{self.keypoint_names[joint][:80]}' of '{self.names[row][:80]}' is at ({x:g}, {y:g})"
        if outside.max() > _MAX_OUTSIDE:
            raise LabelsError(f"{place}, far outside of the picture, which has {width} x {height} pixels")
        count, total = int((outside > _SLACK).sum()), int((self.visibility > 0).sum())
        if count > max(_FEW_OUTSIDE, _MAX_OUTSIDE_SHARE * total):
            raise LabelsError(
                f"{count} of {total} labels lie outside of their pictures: {place}, and the picture that came has "
                f"{width} x {height} pixels; send the pictures that were labelled, in the size and orientation in "
                "which they were"
            )

    def to_square(self, sizes: Mapping[str, tuple[int, int]] | None = None) -> Labels:
        """Return the labels in [0, 1] of the model's square.

        ``sizes`` are width and height in pixels by the labels' names. Raises LabelsError as :meth:`with_sizes`.
        """
        if self.in_square:
            return self
        known = sizes or {}
        labels = self.with_sizes(np.array([known.get(name, (0, 0)) for name in self.names], dtype=np.int64))
        assert labels.sizes is not None
        square = to_square(self.keypoints, labels.sizes[:, None, 0], labels.sizes[:, None, 1])
        square[self.visibility == 0] = 0
        return replace(labels, keypoints=square, in_square=True)


def to_square(keypoints_px: ArrayLike, width: ArrayLike, height: ArrayLike) -> Array:
    """Convert keypoints (…, 2) from pixels of a picture to [0, 1] of the model's square.

    The picture, its EXIF orientation applied, lies centred in a square as wide as its longer side. Integers are pixel
    centres, so it spans -0.5 to width - 0.5. Width and height are broadcast with the keypoints.
    """
    points = np.asarray(keypoints_px, dtype=np.float64)
    extent, longer = _extent(width, height)
    square: Array = (points + 0.5 + (longer - extent) / 2) / longer
    return square


def from_square(square: ArrayLike, width: ArrayLike, height: ArrayLike) -> Array:
    """Convert keypoints (…, 2) from [0, 1] of the square to pixels, the inverse of :func:`to_square`."""
    extent, longer = _extent(width, height)
    pixels: Array = np.asarray(square, dtype=np.float64) * longer - 0.5 - (longer - extent) / 2
    return pixels


def _extent(width: ArrayLike, height: ArrayLike) -> tuple[Array, Array]:
    extent = np.stack(np.broadcast_arrays(np.asarray(width, np.float64), np.asarray(height, np.float64)), axis=-1)
    return extent, extent.max(-1, keepdims=True)


def frame_label(video: str, number: int) -> str:
    """Return the name of a video's frame, as the frames of an upload are named."""
    return f"{video}#{number:06d}"


def hashed_split(
    names: Sequence[str], test_share: float = 0.2, clips: Sequence[Hashable] | None = None
) -> tuple[str, ...]:
    """Split pictures without a given split into "train" and "test": the lowest SHA-256 hashes of the names are "test".

    The same names give the same split on every machine and in any order. Each part gets a picture if there are two.
    Of frames, whole ``clips`` are split, each by the first of its names, because frames of one clip are too alike to be
    in both parts.
    """
    groups: Sequence[Hashable] = range(len(names)) if clips is None else clips
    first: dict[Hashable, str] = {}
    for group, name in zip(groups, names, strict=True):
        first[group] = min(name, first.get(group, name))
    count = min(max(round(test_share * len(first)), 1), max(len(first) - 1, 0))

    def rank(group: Hashable) -> tuple[bytes, str]:
        return hashlib.sha256(first[group].encode("utf-8", "surrogatepass")).digest(), first[group]

    test = set(sorted(first, key=rank)[:count])
    return tuple("test" if group in test else "train" for group in groups)


def check_extent(pictures: int, keypoints: int) -> None:
    """Raise LabelsError if labels of this many pictures and keypoints would not fit in memory."""
    if pictures > MAX_PICTURES:
        raise LabelsError(f"more than {MAX_PICTURES} labelled pictures")
    if keypoints > MAX_KEYPOINTS:
        raise LabelsError(f"more than {MAX_KEYPOINTS} different keypoints")
    if pictures * keypoints > MAX_VALUES:
        raise LabelsError(f"{pictures} pictures of {keypoints} keypoints; at most {MAX_VALUES} keypoints in all")


def check_in_pixels(keypoints: Array, visibility: NDArray[np.uint8]) -> None:
    """Raise LabelsError if all visible coordinates lie in [0, 1] and so are not pixels."""
    seen = keypoints[visibility > 0]
    if len(seen) > 1 and seen.min() >= 0 and seen.max() <= 1:
        raise LabelsError(f"all of {len(seen)} labelled keypoints lie in [0, 1]; expected pixels of the picture")


def check_size(name: str, width: float, height: float) -> tuple[int, int]:
    """Return width and height as integers. Raises LabelsError unless they are positive whole numbers of pixels."""
    if not all(side == int(side) and 0 < side <= MAX_SIDE_PX for side in (width, height)):
        raise LabelsError(f"'{name}' has {width:g} x {height:g} pixels; expected whole numbers above 0")
    return int(width), int(height)


def _split_path(name: str) -> tuple[str, ...]:
    if len(name) > _MAX_NAME:  # normalising a long run of accents takes quadratic time
        raise LabelsError(f"the name '{name[:80]}…' has {len(name)} characters; at most {_MAX_NAME} are allowed")
    normalised = unicodedata.normalize("NFC", name)
    parts = tuple(part for part in normalised.replace("\\", "/").split("/") if part not in ("", "."))
    return parts or (name,)


def list_names(names: Sequence[str]) -> str:
    """Return the first names for a message, shortened."""
    listed = ", ".join(f"'{name[:80]}'" for name in names[:_NAMES_IN_MESSAGE])
    return listed + (", …" if len(names) > _NAMES_IN_MESSAGE else "")

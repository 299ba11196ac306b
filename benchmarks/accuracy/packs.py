"""Sets of pictures for measuring: one file a set, with square crops of one category, and labels if it has any.

A pack is an ``.npz`` with the keys

- ``jpeg_blob`` uint8 and ``jpeg_offsets`` (N + 1): picture i is the JPEG ``jpeg_blob[offsets[i]:offsets[i + 1]]``,
  a square of any side;
- ``keypoints`` float32 (N, J, 2), (x, y) in [0, 1] of the square, and ``visibility`` (N, J), 0 without a label;
- ``split`` (N,), "train" or "test"; ``keypoint_names`` (J,);
- ``meta``, JSON text: ``source`` and ``licence``, and ``edges`` [[j, j'], …] if the true skeleton is known.

The sets of ``ACCURACY.md`` are not part of the project. To get the same:

``mj_dog`` (2,125 train, 375 test, 21 joints, exact)
    dm_control's suite dog (Apache-2.0), rendered at 128 x 128 with MuJoCo: joint angles normal around the middle
    with 0.16 of each range, azimuth 90 +- 40 degrees, elevation -20 to 3, a procedural background each; the joints'
    positions projected, each counted as visible.

``cub50_aligned`` (927 train, 883 test, 15 keypoints with visibility)
    CUB-200-2011 (Caltech; non-commercial research and education), classes 001 to 050 without the water birds
    1, 2, 3, 5, 6, 7, 8, 23, 24, 25, 44, 45, 46 and 50, in its own split. Each crop is a square of 1.2 times the
    longer side of the bounding box, moved and shrunk to stay inside the picture, then 128 x 128. Pictures with six
    visible parts or fewer are left out. All face left: a bird whose visible head parts lie right of its tail, back
    and nape in the mean is mirrored and its left and right parts are swapped; left out where the two means are
    nearer than 0.12 of the crop, or both eyes are visible.

``faces68`` (1,700 train, 400 test, 68 points, all visible)
    Frames of YouTube Faces (research use) with checked landmarks in iBUG's order (jaw, brows, nose, eyes, mouth), cut
    out around the face; the people of train and test differ.

``hands11k_sub`` (409 train, 177 test, no labels)
    586 pictures of 11k Hands (Afifi 2019; academic fair use): a square of 1.12 times the box of the hand, which a
    threshold on saturation finds on the white ground; mirrored if needed, so that all are of the same side.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
SPLITS = ("train", "test")


class PackError(ValueError):
    """A file is not a valid pack; the message names the file and says what is wrong."""


@dataclass(frozen=True)
class Part:
    """One split of a pack.

    Attributes:
        images: uint8 (N, S, S, 3), RGB.
        keypoints: (N, J, 2) as (x, y) in [0, 1] of the square; J is 0 without labels.
        visibility: (N, J), non-zero where the label counts.
    """

    images: NDArray[np.uint8]
    keypoints: Array
    visibility: Array


@dataclass(frozen=True)
class Pack:
    """A set of pictures, fitted to the model's square.

    Attributes:
        name: the file's name without its ending.
        keypoint_names: J names.
        edges: pairs of joints of the true skeleton; None if it is not known.
    """

    name: str
    train: Part
    test: Part
    keypoint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] | None

    @property
    def is_labelled(self) -> bool:
        return bool(self.keypoint_names)


def read_pack(path: Path, side: int) -> Pack:
    """Read a pack, every picture as a square of ``side`` pixels.

    Raises:
        PackError: a key is missing, shapes do not fit each other, a split is empty or a picture can't be read.
        OSError: the file can't be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            values = {key: stored[key] for key in stored.files}
        blob, offsets = values["jpeg_blob"].tobytes(), values["jpeg_offsets"]
        keypoints, visibility = values["keypoints"].astype(np.float64), values["visibility"].astype(np.float64)
        split, names = values["split"], tuple(map(str, values["keypoint_names"]))
        meta: dict[str, Any] = json.loads(str(values["meta"]))
    except KeyError as error:
        raise PackError(
            f"{path.name} has no {error}; expected the keys that benchmarks/accuracy/packs.py lists"
        ) from error
    except (ValueError, AttributeError) as error:  # not an archive of arrays, or no JSON
        raise PackError(f"{path.name} is not a set of pictures: {error}") from error
    count = len(offsets) - 1
    if keypoints.shape != (count, len(names), 2) or visibility.shape != (count, len(names)) or split.shape != (count,):
        raise PackError(
            f"{path.name} has {count} pictures and {len(names)} keypoint names, but keypoints {keypoints.shape}, "
            f"visibility {visibility.shape} and split {split.shape}"
        )
    parts: dict[str, Part] = {}
    for name in SPLITS:
        chosen = np.flatnonzero(split == name)
        if not len(chosen):
            raise PackError(f"{path.name} has no picture of the split '{name}'")
        squares = [_square(blob[offsets[i] : offsets[i + 1]], side, f"picture {i} of {path.name}") for i in chosen]
        parts[name] = Part(np.stack(squares), keypoints[chosen], visibility[chosen])
    edges = tuple((int(a), int(b)) for a, b in meta["edges"]) if "edges" in meta else None
    return Pack(path.stem, parts["train"], parts["test"], names, edges)


def _square(jpeg: bytes, side: int, what: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(jpeg)) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise PackError(f"{what} can't be read: {error}") from error
    if picture.width != picture.height:
        raise PackError(f"{what} is {picture.width} x {picture.height}; expected a square")
    # as model.data.fit_picture does it: the same pixels
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0))

"""Make a set as hard as photographs that were not prepared, with its labels.

    python -m benchmarks.accuracy.harder --set cub50_aligned.npz --how turned --out cub50_turned.npz
    python -m benchmarks.accuracy run --set cub50_turned.npz --row ppl --steps 1200 --seed 0 --out results

- ``turned``: each picture mirrored by chance and turned by any angle, around its middle; its edges are reflected into
  the corners. Labels that leave the square no longer count; those of left and right are swapped where it is mirrored.
- ``pasted``: each picture at 0.4 to 0.7 of its size, anywhere on a texture of its own.

Prints the mean size of the former square in the new one, by which an error in percent of the side is divided to get
percent of the thing's own size.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scoring.protocols import sides

from .packs import SPLITS, Array, PackError, Part, read_pack

SIDE = 128
SIZES = (0.4, 0.7)
"""Smallest and largest size of a pasted picture, of the side."""

Picture = NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return 2 if the set can't be read."""
    options = _parser().parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    try:
        pack = read_pack(options.set, SIDE)
        jpegs, points, seen, sizes = [], [], [], []
        for part in (pack.train, pack.test):
            swap = sides(pack.keypoint_names) if options.how == "turned" else None
            for index in range(len(part.images)):
                if options.how == "turned":
                    picture, keypoints, visibility = turn(part, index, swap, rng)
                    sizes.append(1.0)
                else:
                    picture, keypoints, size = paste(part.images[index], part.keypoints[index], rng)
                    visibility = part.visibility[index]
                    sizes.append(size)
                stream = io.BytesIO()
                Image.fromarray(picture).save(stream, "JPEG", quality=95)
                jpegs.append(stream.getvalue())
                points.append(keypoints)
                seen.append(visibility)
        split = [name for name, part in zip(SPLITS, (pack.train, pack.test), strict=True) for _ in part.images]
        np.savez(
            options.out,
            jpeg_blob=np.frombuffer(b"".join(jpegs), np.uint8),
            jpeg_offsets=np.cumsum([0, *map(len, jpegs)]),
            keypoints=np.array(points, np.float32),
            visibility=np.array(seen),
            split=np.array(split),
            keypoint_names=np.array(pack.keypoint_names),
            meta=json.dumps({"source": f"{pack.name}, {options.how}", **({"edges": pack.edges} if pack.edges else {})}),
        )
    except (PackError, OSError) as error:
        print(f"harder: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(jpegs)} pictures, mean size {np.mean(sizes):.3f}")
    return 0


def turn(
    part: Part, index: int, swap: Sequence[int] | None, rng: np.random.Generator
) -> tuple[Picture, Array, NDArray[np.generic]]:
    """Mirror a picture of a set by chance and turn it by any angle.

    Args:
        swap: the label that each label becomes in a mirrored picture, as :func:`model.scoring.protocols.sides` has it.

    Returns:
        The picture (S, S, 3), its labels (J, 2) in [0, 1] and their visibility (J,), 0 where one left the square.
    """
    picture, keypoints, visibility = part.images[index], part.keypoints[index], part.visibility[index]
    if rng.random() < 0.5:
        picture, keypoints = picture[:, ::-1], keypoints * (-1, 1) + (1, 0)
        if swap is not None:
            keypoints, visibility = keypoints[list(swap)], visibility[list(swap)]
    angle = rng.uniform(0, 360)
    side = len(picture)
    padded = Image.fromarray(np.pad(picture, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)), "reflect"))
    corner = (padded.width - side) // 2
    turned = padded.rotate(angle, Image.Resampling.BICUBIC).crop((corner, corner, corner + side, corner + side))
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # counter-clockwise as one sees it, y pointing down
    moved = (keypoints - 0.5) @ np.array([[cos, -sin], [sin, cos]]) + 0.5
    inside = ((moved >= 0) & (moved < 1)).all(-1)
    return np.asarray(turned), moved, np.where(inside, visibility, 0)


def paste(picture: Picture, keypoints: Array, rng: np.random.Generator) -> tuple[Picture, Array, float]:
    """Paste a square picture small and anywhere onto a texture; return it, its labels (J, 2) in [0, 1] and its size."""
    side = len(picture)
    small = round(side * rng.uniform(*SIZES))
    x, y = rng.integers(0, side - small + 1, 2)
    whole = texture(side, rng)
    whole[y : y + small, x : x + small] = Image.fromarray(picture).resize((small, small), Image.Resampling.BOX)
    return whole, (keypoints * small + (x, y)) / side, small / side


def texture(side: int, rng: np.random.Generator) -> Picture:
    """Make a texture (side, side, 3): noise of three scales around a colour."""
    values = np.broadcast_to(rng.uniform(60, 195, 3), (side, side, 3)).copy()
    for cells in (4, 12, 40):
        noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        values += (np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)) - 127.5) / 3
    return values.clip(0, 255).astype(np.uint8)


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.harder",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", type=Path, required=True, metavar="PACK.npz")
    parser.add_argument("--how", choices=("turned", "pasted"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="PACK.npz")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    return parser


if __name__ == "__main__":
    sys.exit(main())

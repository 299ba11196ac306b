"""Count how often training pictures are warned of, cut out and not, before any training.

    python -m benchmarks.accuracy.placement --sets mj_dog.npz faces68.npz --frames m4s1 --pictures 256 48 24 --seeds 5

Of each set, some pictures chosen by a seed: as they are; pasted at 0.3 to 0.6 of their side at random places onto
a texture each; the same with soft round edges onto parts of one texture; and onto one still texture with noise. Of
frames of a fixed camera: whole, and cut out around what moves. It prints a line a kind with the measures of
``worker/uploads/placement.py``, and how many are warned of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.media.fitting import Box, fit_square
from service.contract.media.motion import MotionLocator
from worker.uploads.placement import (
    FEWEST_PICTURES,
    SIDE_PX,
    judge,
    measure_placement,
    measure_wandering,
    shrink,
)

from .packs import read_pack

Images = NDArray[np.uint8]
Spoil = Callable[[Images, np.random.Generator], Images]

_SIDE = 128
_SMALL = (0.3, 0.6)  # of the side


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.sets and not options.frames:
        parser.error("there is nothing to measure; name sets with --sets, or a folder with --frames")
    for path in options.sets:
        images = read_pack(path, _SIDE).train.images
        for count in options.pictures:
            for kind, spoil in KINDS.items():
                made = []
                for seed in range(options.first_seed, options.first_seed + options.seeds):
                    rng = np.random.default_rng(seed)
                    rows = np.sort(rng.permutation(len(images))[:count])
                    made.append(spoil(images[rows], rng))
                print(f"{path.stem:16} {count:4} {kind:8} {describe(made)}", flush=True)
    if options.frames:
        whole, located = read_frames(options.frames)
        for kind, pictures in (("whole", whole), ("located", located)):
            print(f"{options.frames.name:16} {len(pictures):4} {kind:8} {describe([pictures])}")
    return 0


def describe(sets: Sequence[Images]) -> str:
    """Return the number of sets warned of and the measures of each."""
    warned, measures = 0, []
    for images in sets:
        copies = [shrink(image) for image in images]
        clips = ["."] * len(copies)
        pictures = np.stack(copies)
        placement, wandering = measure_placement(pictures), measure_wandering(pictures, clips)
        warned += bool(judge(placement, wandering, is_located=False))
        measures.append(f"{placement:.2f}/{wandering:.2f}")
    return f"warned {warned} of {len(sets)}; placement/wandering {' '.join(measures)}"


def texture(rng: np.random.Generator, side: int) -> Images:
    """Draw noise of a random scale, contrast and colour, and stripes."""
    rows, columns = np.meshgrid(*[np.fft.fftfreq(side)] * 2, indexing="ij")
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    noise = rng.normal(size=(3, side, side))
    smooth = np.fft.ifft2(np.fft.fft2(noise) / frequency ** rng.uniform(0.3, 1.6)).real
    smooth /= smooth.std()
    y, x = np.meshgrid(*[np.arange(side)] * 2, indexing="ij")
    turn, width = rng.uniform(0, np.pi), rng.uniform(4, 40)
    stripes = np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / width) * rng.integers(0, 2)
    values = rng.uniform(60, 190, 3) + rng.uniform(15, 50) * (smooth + stripes).transpose(1, 2, 0)
    return np.clip(values, 0, 255).astype(np.uint8)


def paste(images: Images, grounds: Sequence[Images], rng: np.random.Generator, *, round_: bool) -> Images:
    """Paste each picture small, anywhere onto its ground."""
    whole = []
    for image, ground in zip(images, grounds, strict=True):
        small = round(_SIDE * rng.uniform(*_SMALL))
        y, x = rng.integers(0, _SIDE - small + 1, 2)
        part = np.asarray(Image.fromarray(image).resize((small, small), Image.Resampling.BILINEAR), np.float64)
        drawn = ground.astype(np.float64)
        distance = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, small)] * 2))
        share = np.clip(6 * (1 - distance), 0, 1)[..., None] if round_ else np.ones((small, small, 1))
        at = np.s_[y : y + small, x : x + small]
        drawn[at] = share * part + (1 - share) * drawn[at]
        whole.append(drawn.astype(np.uint8))
    return np.stack(whole)


def _onto_textures(images: Images, rng: np.random.Generator) -> Images:
    return paste(images, [texture(rng, _SIDE) for _ in images], rng, round_=False)


def _onto_one(images: Images, rng: np.random.Generator) -> Images:
    large = texture(rng, 4 * _SIDE)
    corners = rng.integers(0, 3 * _SIDE, (len(images), 2))
    return paste(images, [large[y : y + _SIDE, x : x + _SIDE] for y, x in corners], rng, round_=True)


def _onto_still(images: Images, rng: np.random.Generator) -> Images:
    pasted = paste(images, [texture(rng, _SIDE)] * len(images), rng, round_=True)
    return np.clip(pasted + rng.normal(0, 3, pasted.shape), 0, 255).astype(np.uint8)


KINDS: dict[str, Spoil] = {
    "cut out": lambda images, rng: images,
    "pasted": _onto_textures,
    "one": _onto_one,
    "still": _onto_still,
}


def read_frames(folder: Path) -> tuple[Images, Images]:
    """Return frames of a fixed camera, whole and around what moves in them."""
    frames = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg")]
    with tempfile.TemporaryFile() as file:
        locator = MotionLocator(file)
        for frame in frames:
            locator.add(frame)
        boxes: tuple[Box | None, ...] = locator.locate().boxes
    whole = np.stack([fit_square(frame, SIDE_PX)[0] for frame in frames])
    located = np.stack([fit_square(frame, SIDE_PX, box)[0] for frame, box in zip(frames, boxes, strict=True) if box])
    return whole, located


def _parser() -> argparse.ArgumentParser:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy.placement", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=Path, nargs="*", default=[], help="sets as .npz")
    parser.add_argument("--frames", type=Path, help="folder of frames of a fixed camera")
    parser.add_argument("--pictures", type=int, nargs="+", default=[256], help=f"at least {FEWEST_PICTURES}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())

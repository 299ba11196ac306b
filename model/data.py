"""Pictures as the model takes them: uint8 squares in memory, and the batches of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

GREY = 128  # mid-grey: about 0 in [-1, 1], what masking and padding use
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
Images = NDArray[np.uint8]


def load_folder(folder: Path, side: int) -> Images:
    """Every picture below a folder, in order of name, fitted to squares: uint8 (N, S, S, 3).

    Fitting pads to a square with mid-grey and resizes; nothing is cut off or distorted.

    Raises:
        ValueError: the folder has no picture, or one of 32 bits a channel.
        OSError: a picture can't be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no picture; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return np.stack([fit_picture(path, side) for path in paths])


def fit_picture(path: Path, side: int) -> Images:
    """One picture file as a square of a given side in pixels, uint8 (S, S, 3)."""
    with Image.open(path) as opened:
        picture = _rgb(ImageOps.exif_transpose(opened))
    longer = max(picture.size)
    x, y = (longer - picture.width) / 2, (longer - picture.height) / 2
    canvas = Image.new("RGB", (math.ceil(x) + longer, math.ceil(y) + longer), (GREY, GREY, GREY))
    canvas.paste(picture, (math.ceil(x), math.ceil(y)))
    left, top = math.ceil(x) - x, math.ceil(y) - y  # half a pixel where the margins are odd
    box = (left, top, left + longer, top + longer)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


def _rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit grey scaled, transparency laid on mid-grey."""
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {picture.mode} has no fixed range; save it with 8 or 16 bits a channel")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, (GREY, GREY, GREY, 255))
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def to_tensor(images: Images, device: torch.device) -> Tensor:
    """uint8 (B, S, S, 3) to float (B, 3, S, S) in [-1, 1], channels last in memory."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return batch.to(torch.float32).div_(127.5).sub_(1)


def step_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """The random numbers of one purpose at one step: a resumed run draws what an unbroken one would."""
    mixed = (seed * 1_000_003 + step) * 31 + sum(stream.encode())
    return torch.Generator().manual_seed(mixed % 2**63)


class Batches:
    """Random batches of training pictures, each picture once an epoch, addressed by step.

    Args:
        images: uint8 (N, S, S, 3); may be a memory map.
        batch_size: pictures in a batch; where N is smaller, pictures repeat within a batch.
        seed: batch k is the same for the same seed, whichever step a run starts from.
        horizontal_flip: mirror each picture with probability one half.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, *, horizontal_flip: bool) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
            raise ValueError(f"images have shape {images.shape} and type {images.dtype}; expected uint8 (N, S, S, 3)")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.horizontal_flip = horizontal_flip
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def at(self, step: int) -> Images:
        """The batch of one step (counted from 0), uint8 (B, S, S, 3)."""
        first = step * self.batch_size
        indices = np.array([self._index(first + offset) for offset in range(self.batch_size)])
        batch = np.asarray(self.images[indices])
        if self.horizontal_flip:
            mirrored = torch.rand(self.batch_size, generator=step_generator(self.seed, "flip", step)).numpy() < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
        return batch

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            generator = step_generator(self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=generator)
        return int(self._order[offset])


def in_order(images: Images, batch_size: int) -> Iterator[Images]:
    """All pictures in order, a batch at a time."""
    for first in range(0, len(images), batch_size):
        yield np.asarray(images[first : first + batch_size])


def mask_patches(image: Tensor, ratio: float, grid: int, generator: torch.Generator) -> Tensor:
    """Set patches of a grid to mid-grey (0), each independently with probability ``ratio``.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        ratio: probability of a patch to be masked.
        grid: patches along one side; where it does not divide S, patches differ by a pixel.
        generator: on the CPU.
    """
    batch, _, height, width = image.shape
    keep = torch.rand(batch, 1, grid, grid, generator=generator) >= ratio
    mask = torch.nn.functional.interpolate(keep.to(image), size=(height, width), mode="nearest")
    return image * mask

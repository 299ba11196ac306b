"""Pictures as the model takes them: uint8 squares in memory, and the batches of a training run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .process_group import ALONE, Group

GREY = 128  # mid-grey, about 0 in [-1, 1]: for masks and padding
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
Images = NDArray[np.uint8]


def load_folder(folder: Path, side: int) -> Images:
    """Load every picture below a folder, in order of name, fitted to squares: uint8 (N, S, S, 3).

    Raises ValueError if there is no picture, or one has 32 bits a channel, and OSError if one can't be read.
    """
    return np.stack([fit_picture(path, side) for path in sorted(_find_pictures(folder))])


def load_clips(folder: Path, side: int) -> tuple[Images, NDArray[np.int64]]:
    """Load every folder of pictures below a folder as a clip, its frames fitted to squares in natural order of name.

    Returns the frames, uint8 (N, S, S, 3), and the number of each frame's clip, (N,), from 0. Raises as
    :func:`load_folder`, and ValueError if a clip has a single frame.
    """
    frames = sorted(_find_pictures(folder), key=lambda path: (natural_key(str(path.parent)), natural_key(path.name)))
    numbers: dict[Path, int] = {}
    clips = np.array([numbers.setdefault(path.parent, len(numbers)) for path in frames], dtype=np.int64)
    for clip, count in zip(numbers, np.bincount(clips), strict=True):
        if count < 2:
            raise ValueError(f"the clip {clip} has one frame; expected at least two")
    return np.stack([fit_picture(path, side) for path in frames]), clips


def _find_pictures(folder: Path) -> list[Path]:
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no picture; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return paths


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that compares digits by value, frame_2 before frame_10; ties are compared as text."""
    parts = [(digits.lstrip("0"), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)]
    return tuple((1, 0, text) if text else (0, len(value), value) for value, text in parts), name


def fit_picture(path: Path, side: int) -> Images:
    """Load a picture, pad it to a square with mid-grey and resize it: uint8 (S, S, 3)."""
    with Image.open(path) as opened:
        picture = _to_rgb(ImageOps.exif_transpose(opened))
    longer = max(picture.size)
    x, y = (longer - picture.width) / 2, (longer - picture.height) / 2
    canvas = Image.new("RGB", (math.ceil(x) + longer, math.ceil(y) + longer), (GREY, GREY, GREY))
    canvas.paste(picture, (math.ceil(x), math.ceil(y)))
    left, top = math.ceil(x) - x, math.ceil(y) - y  # half a pixel where the margins are odd
    box = (left, top, left + longer, top + longer)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: scale 16-bit grey, lay transparency on mid-grey."""
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
    """Convert uint8 (B, S, S, 3) to float (B, 3, S, S) in [-1, 1], channels last in memory."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return batch.to(torch.float32).div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> Images:
    """Convert float (..., 3, S, S) in [-1, 1], clamped, to uint8 (..., S, S, 3)."""
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels: Images = levels.movedim(-3, -1).cpu().numpy()
    return pixels


def step_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """Return the random numbers of one purpose at one step, the same in a resumed run as in an unbroken one."""
    mixed = (seed * 1_000_003 + step) * 31 + sum(stream.encode())
    return torch.Generator().manual_seed(mixed % 2**63)


class Batches:
    """Random batches of training pictures, each picture once an epoch, addressed by step.

    Args:
        images: uint8 (N, S, S, 3); may be a memory map.
        batch_size: pictures in a batch; if N is smaller, pictures repeat within a batch.
        seed: the batch of a step depends only on the seed, not on the step that a run starts from.
        horizontal_flip: mirror each picture, and its reference with it, with probability one half.
        clips: the number of each frame's clip, (N,); None for stills.
        group: only this process's share of a batch is read, from the batches of one process.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        *,
        horizontal_flip: bool,
        clips: NDArray[np.int64] | None = None,
        group: Group = ALONE,
    ) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
            raise ValueError(f"images have shape {images.shape} and type {images.dtype}; expected uint8 (N, S, S, 3)")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.horizontal_flip, self.group = horizontal_flip, group
        self.clips = None if clips is None else Clips(clips, len(images))
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Images:
        """Return this process's share of a step's batch, uint8 (B, S, S, 3); steps count from 0."""
        return self._take(self._indices(step), step)

    def references_at(self, step: int) -> Images:
        """Return another frame of the clip of each picture in a step's batch, mirrored if the picture is."""
        assert self.clips is not None
        generator = step_generator(self.seed, "reference", step)
        return self._take(self.clips.draw_other_frames(self._indices(step), generator), step)

    def _indices(self, step: int) -> NDArray[np.int64]:
        first = step * self.batch_size
        return np.array([self._index(first + offset) for offset in range(self.batch_size)], dtype=np.int64)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            generator = step_generator(self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=generator).numpy()
        return int(self._order[offset])

    def _take(self, indices: NDArray[np.int64], step: int) -> Images:
        batch = np.asarray(self.images[self.group.share(indices)])
        if self.horizontal_flip:
            mirrored = torch.rand(self.batch_size, generator=step_generator(self.seed, "flip", step)).numpy() < 0.5
            mirrored = self.group.share(mirrored)
            batch[mirrored] = batch[mirrored, :, ::-1]
        return batch


class Clips:
    """The frames of each clip, given the number of each of N frames' clip, integers (N,), in any order."""

    def __init__(self, clips: NDArray[np.int64], frames: int) -> None:
        if clips.shape != (frames,) or not np.issubdtype(clips.dtype, np.integer):
            raise ValueError(f"clips have shape {clips.shape} and type {clips.dtype}; expected integers ({frames},)")
        names, member_of, lengths = np.unique(clips, return_inverse=True, return_counts=True)
        if lengths.min() < 2:
            single = int(lengths.argmin())
            raise ValueError(
                f"clip {names[single]} has a single frame, number {int((member_of == single).argmax())} of the "
                "pictures; its reference must be another frame of the clip, expected at least two"
            )
        self._clip_of = member_of
        self._frames = np.split(np.argsort(member_of, kind="stable"), np.cumsum(lengths)[:-1])  # of each clip, in order

    def draw_other_frames(self, frames: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """Draw another frame of the same clip for each frame, uniformly; (B,) to (B,)."""
        drawn = torch.randint(2**62, (len(frames),), generator=generator).tolist()
        found = []
        for frame, number in zip(frames, drawn, strict=True):
            clip = self._frames[self._clip_of[frame]]
            ahead = 1 + number % (len(clip) - 1)
            found.append(clip[(np.searchsorted(clip, frame) + ahead) % len(clip)])
        return np.array(found, dtype=np.int64)


def iterate_batches(images: Images, batch_size: int) -> Iterator[Images]:
    """Yield all pictures in order, a batch at a time."""
    for first in range(0, len(images), batch_size):
        yield np.asarray(images[first : first + batch_size])


def mask_patches(image: Tensor, ratio: float, grid: int, generator: torch.Generator, group: Group = ALONE) -> Tensor:
    """Set patches of a grid to mid-grey (0), each independently with probability ``ratio``.

    Args:
        image: (B, 3, S, S) in [-1, 1], this process's share of the group's batch.
        ratio: probability of a patch to be masked.
        grid: patches along one side; if it does not divide S, patches differ by a pixel.
        generator: on the CPU; draws for the whole batch.
    """
    batch, _, height, width = image.shape
    keep = group.share(torch.rand(batch * group.size, 1, grid, grid, generator=generator) >= ratio)
    mask = torch.nn.functional.interpolate(keep.to(image), size=(height, width), mode="nearest")
    return image * mask

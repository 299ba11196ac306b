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


def load_clips(folder: Path, side: int) -> tuple[Images, NDArray[np.int64]]:
    """Every folder below a folder that holds pictures, as a clip; its frames in natural order of name.

    Natural order: frame_2 comes before frame_10. Frames are fitted to squares as by :func:`load_folder`.

    Returns:
        The frames, uint8 (N, S, S, 3), and the number of each one's clip, (N,), counted from 0.

    Raises:
        ValueError: there is no picture, or a clip has a single one.
        OSError: a picture can't be read.
    """
    found: dict[Path, list[Path]] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.parent, []).append(path)
    if not found:
        raise ValueError(f"{folder} holds no picture; expected folders of {', '.join(sorted(SUFFIXES))}")
    frames: list[Images] = []
    clips: list[int] = []
    for number, clip in enumerate(sorted(found, key=lambda path: natural(str(path)))):
        if len(found[clip]) < 2:
            raise ValueError(f"the clip {clip} has one frame; expected at least two")
        for path in sorted(found[clip], key=lambda path: natural(path.name)):
            frames.append(fit_picture(path, side))
            clips.append(number)
    return np.stack(frames), np.array(clips, dtype=np.int64)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key for sorting by which the numbers in names count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


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
        horizontal_flip: mirror each picture with probability one half, its reference with it.
        clips: which clip each frame is of, (N,); None for stills.
        group: of each batch only this process's share is read; the pictures, their order and what is mirrored are
            those of one process.

    Raises:
        ValueError: images or clips of another shape or type, or a clip of a single frame.
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
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def at(self, step: int) -> Images:
        """This process's share of the batch of one step (counted from 0), uint8 (B, S, S, 3)."""
        return self._take(self._indices(step), step)

    def references_at(self, step: int) -> Images:
        """Another frame of the clip of each picture in the batch of one step, mirrored where that one is."""
        assert self.clips is not None
        return self._take(self.clips.others(self._indices(step), step_generator(self.seed, "reference", step)), step)

    def _indices(self, step: int) -> NDArray[np.int64]:
        first = step * self.batch_size
        return np.array([self._index(first + offset) for offset in range(self.batch_size)], dtype=np.int64)

    def _take(self, indices: NDArray[np.int64], step: int) -> Images:
        batch = np.asarray(self.images[self.group.share(indices)])
        if self.horizontal_flip:
            mirrored = torch.rand(self.batch_size, generator=step_generator(self.seed, "flip", step)).numpy() < 0.5
            mirrored = self.group.share(mirrored)
            batch[mirrored] = batch[mirrored, :, ::-1]
        return batch

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            generator = step_generator(self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=generator)
        return int(self._order[offset])


class Clips:
    """Which frames belong together.

    Args:
        clips: the number of each frame's clip, integers (N,), in any order.
        frames: N.

    Raises:
        ValueError: another shape or type, or a clip of a single frame.
    """

    def __init__(self, clips: NDArray[np.int64], frames: int) -> None:
        if clips.shape != (frames,) or not np.issubdtype(clips.dtype, np.integer):
            raise ValueError(f"clips have shape {clips.shape} and type {clips.dtype}; expected integers ({frames},)")
        names, member_of, lengths = np.unique(clips, return_inverse=True, return_counts=True)
        if lengths.min() < 2:
            alone = int(lengths.argmin())
            raise ValueError(
                f"clip {names[alone]} has a single frame, number {int((member_of == alone).argmax())} of the pictures; "
                "its reference must be another frame of the clip, expected at least two"
            )
        self.count = len(names)
        self._members = np.argsort(member_of, kind="stable")  # clip after clip
        self._first = (np.cumsum(lengths) - lengths)[member_of]  # where the frame's clip begins there
        self._length = lengths[member_of]
        self._place = np.empty(frames, dtype=np.int64)  # of a frame in its clip
        self._place[self._members] = np.arange(frames) - self._first[self._members]

    def others(self, frames: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """For each frame another one of its clip, each with the same probability; (B,) to (B,)."""
        drawn = torch.randint(2**62, (len(frames),), generator=generator).numpy()
        length = self._length[frames]
        ahead = 1 + drawn % (length - 1)
        found: NDArray[np.int64] = self._members[self._first[frames] + (self._place[frames] + ahead) % length]
        return found


def in_order(images: Images, batch_size: int) -> Iterator[Images]:
    """All pictures in order, a batch at a time."""
    for first in range(0, len(images), batch_size):
        yield np.asarray(images[first : first + batch_size])


def mask_patches(image: Tensor, ratio: float, grid: int, generator: torch.Generator, group: Group = ALONE) -> Tensor:
    """Set patches of a grid to mid-grey (0), each independently with probability ``ratio``.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        ratio: probability of a patch to be masked.
        grid: patches along one side; where it does not divide S, patches differ by a pixel.
        generator: on the CPU; draws for the whole batch.
        group: of whose batch the images are this process's share.
    """
    batch, _, height, width = image.shape
    keep = group.share(torch.rand(batch * group.size, 1, grid, grid, generator=generator) >= ratio)
    mask = torch.nn.functional.interpolate(keep.to(image), size=(height, width), mode="nearest")
    return image * mask

"""Hide parts of training pictures. Not in the paper, which trains on whole pictures only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.process_group import ALONE, Group

GRID = 16
"""Patches along one side, as in the paper's tests of occlusion."""

_PATCHES, _SQUARE = 0.4, 0.4  # parts of the pictures that lose random patches, and a square; the rest stay whole
_MAX_PATCH_RATIO = 0.5  # of all patches of a picture
_MAX_SQUARE = 0.8  # side of the square, of the image side
_MAX_OFFSET = 0.25  # of the square from the centre, of the image side


def hide_parts(image: Tensor, generator: torch.Generator, group: Group = ALONE, total: int | None = None) -> Tensor:
    """Set parts of each picture to mid-grey (0): random patches, a square near the centre, or nothing.

    Args:
        image: (B, 3, S, S) in [-1, 1], this process's share of the group's pictures.
        generator: on the CPU; draws for all of the group's pictures.
        group: the processes that share the pictures.
        total: number of the group's pictures; B for one process.
    """
    batch, (height, width) = total or len(image), image.shape[2:]
    kind = torch.rand(batch, 1, 1, generator=generator)
    ratio = torch.rand(batch, 1, 1, generator=generator) * _MAX_PATCH_RATIO
    patches = torch.rand(batch, GRID, GRID, generator=generator) < ratio
    side = torch.rand(batch, generator=generator) * _MAX_SQUARE * GRID
    centre = GRID / 2 + (torch.rand(batch, 2, generator=generator) * 2 - 1) * _MAX_OFFSET * GRID
    in_x, in_y = ((torch.arange(GRID) + 0.5 - centre[..., None]).abs() < side[:, None, None] / 2).unbind(1)
    square = in_y[:, :, None] & in_x[:, None, :]
    hidden = group.share(torch.where(kind < _PATCHES, patches, square & (kind < _PATCHES + _SQUARE)))
    visible = functional.interpolate((~hidden).unsqueeze(1).to(image), size=(height, width), mode="nearest")
    return image * visible

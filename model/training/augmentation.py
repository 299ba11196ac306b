"""Random rotation, scaling, shift and tint, so that few pictures last for many epochs. Not in the paper."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model.process_group import ALONE, Group

# the most at strength 1, in both directions
_ROTATION = math.radians(16)
_SCALING = 0.16
_SHIFT = 0.1  # in units of [-1, 1]
_CONTRAST, _BRIGHTNESS = 0.3, 0.3  # contrast of each channel


def augment(image: Tensor, strength: float, generator: torch.Generator, group: Group = ALONE) -> Tensor:
    """Warp and tint each picture at random; the picture is mirrored beyond its border.

    The same state of the generator gives the same changes, which is how a picture and its reference get the same.

    Args:
        image: (B, 3, S, S) in [-1, 1], this process's share of the group's batch; so is the result.
        strength: factor on all changes; 0 changes nothing.
        generator: on the CPU; draws for the whole batch.
    """
    drawn = group.share(torch.rand(len(image) * group.size, 8, generator=generator)) * 2 - 1
    drawn = (drawn * strength).to(image.device)
    rotation, scale = drawn[:, 0] * _ROTATION, 1 + drawn[:, 1] * _SCALING
    sin, cos = rotation.sin() * scale, rotation.cos() * scale
    shift = drawn[:, 2:4] * _SHIFT
    matrix = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), dim=-1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    warped = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    contrast = 1 + drawn[:, 4:7, None, None] * _CONTRAST
    brightness = drawn[:, 7, None, None, None] * _BRIGHTNESS
    tinted: Tensor = (warped * contrast + brightness).clamp(-1, 1)
    return tinted.contiguous(memory_format=torch.channels_last)

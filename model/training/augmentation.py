"""Training pictures turned, resized, moved and tinted a little, so that few pictures last for many epochs.

Not in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model.process_group import ALONE, Group

# how far at strength 1, each way
_TURN = math.radians(16)
_RESIZE = 0.16
_MOVE = 0.1  # in units of [-1, 1]
_CONTRAST, _BRIGHTNESS = 0.3, 0.3  # the former a channel


def augment(image: Tensor, strength: float, generator: torch.Generator, group: Group = ALONE) -> Tensor:
    """Warp and tint each picture by chance; what comes in from outside is the picture mirrored at its border.

    The same generator state gives the same warps and tints: a picture and its reference are given the same.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        strength: 0 changes nothing; at 1 turns by up to 16 degrees, sizes by up to 16 % and moves by up to a
            twentieth of the side, contrast of each channel and brightness change by up to 0.3.
        generator: on the CPU; draws for the whole batch.
        group: of whose batch the images are this process's share.

    Returns:
        (B, 3, S, S) in [-1, 1], channels last in memory.
    """
    drawn = group.share(torch.rand(len(image) * group.size, 8, generator=generator)) * 2 - 1
    drawn = (drawn * strength).to(image.device)
    turn, zoom = drawn[:, 0] * _TURN, 1 + drawn[:, 1] * _RESIZE
    across, along = turn.sin() * zoom, turn.cos() * zoom
    move = drawn[:, 2:4] * _MOVE
    matrix = torch.stack((along, -across, move[:, 0], across, along, move[:, 1]), dim=-1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    warped = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    contrast = 1 + drawn[:, 4:7, None, None] * _CONTRAST
    brightness = drawn[:, 7, None, None, None] * _BRIGHTNESS
    tinted: Tensor = (warped * contrast + brightness).clamp(-1, 1)
    return tinted.contiguous(memory_format=torch.channels_last)

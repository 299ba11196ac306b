"""Known rotations, scalings and shifts of pictures: what follows the picture is found where the warp takes it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_ROTATION, _SCALING, _SHIFT = math.radians(15), 0.15, 0.15  # the most; the shift in units of [-1, 1]


class Warps(NamedTuple):
    """A warp a picture, from places in the warped picture to places in the original, in [-1, 1].

    Attributes:
        linear: (B, 2, 2).
        shift: (B, 2).
    """

    linear: Tensor
    shift: Tensor

    @classmethod
    def draw(cls, pictures: Tensor, generator: torch.Generator) -> Warps:
        """Draw a warp for each picture (B, 3, S, S)."""
        drawn = torch.rand(len(pictures), 4, generator=generator).to(pictures) * 2 - 1
        angle, scale = drawn[:, 0] * _ROTATION, 1 + drawn[:, 1] * _SCALING
        rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).view(-1, 2, 2)
        return cls(rotation * scale[:, None, None], drawn[:, 2:] * _SHIFT)

    def pictures(self, pictures: Tensor) -> Tensor:
        """Return the warped pictures; what comes in from outside is mirrored."""
        matrix = torch.cat((self.linear, self.shift[..., None]), -1)
        grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
        return functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)

    def places(self, points: Tensor) -> Tensor:
        """Return where points (B, K, 2) of the pictures are in the warped pictures."""
        warped: Tensor = (points - self.shift[:, None]) @ torch.linalg.inv(self.linear).transpose(1, 2)
        return warped

    def followed(self, points: Tensor, found: Tensor) -> Tensor:
        """Return how well K points follow the warps, (K,): 1 if they are found where they must be, 0 if they stay.

        Args:
            points, found: (B, K, 2) in the pictures and in the warped pictures.
        """
        expected = self.places(points)
        missed: Tensor = (expected - found).norm(dim=-1).mean(0)
        moved: Tensor = (expected - points).norm(dim=-1).mean(0)
        return 1 - missed / moved

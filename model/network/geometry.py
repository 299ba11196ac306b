"""The coordinate convention, and every conversion.

Coordinates are (x, y), normalised to [-1, 1] over the image, y down. The centre of pixel i of S
lies at (2i + 1)/S - 1, so the image's borders are at -1 and 1 (torch's ``align_corners=False``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_centres(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """The pixel centres of one axis, (side,), in [-1, 1]."""
    return (torch.arange(side, dtype=dtype, device=device) * 2 + 1) / side - 1


def pixel_grid(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Every pixel's centre in row-major order, (side * side, 2) as (x, y) in [-1, 1]."""
    axis = pixel_centres(side, dtype=dtype, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)


def to_unit(keypoints: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1] of the image side, any shape (..., 2)."""
    return (keypoints + 1) / 2


def from_unit(keypoints: Tensor) -> Tensor:
    """From [0, 1] of the image side to [-1, 1], any shape (..., 2)."""
    return keypoints * 2 - 1


def scale_to_box(keypoints: Tensor, eps: float = 1e-6) -> Tensor:
    """Poses moved and scaled so that their bounding boxes are the unit square, (..., K, 2) in [0, 1].

    An axis along which all keypoints agree becomes 0.
    """
    low = keypoints.amin(dim=-2, keepdim=True)
    extent = keypoints.amax(dim=-2, keepdim=True) - low
    return (keypoints - low) / extent.clamp_min(eps)

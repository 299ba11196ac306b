"""The coordinate convention: (x, y) in [-1, 1] over the image, y down.

The centre of pixel i of S lies at (2i + 1)/S - 1, so the image's borders are at -1 and 1 (``align_corners=False``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_centres(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return the pixel centres of one axis, (S,), in [-1, 1]."""
    return (torch.arange(side, dtype=dtype, device=device) * 2 + 1) / side - 1


def pixel_grid(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return every pixel's centre in row-major order, (S * S, 2) as (x, y) in [-1, 1]."""
    axis = pixel_centres(side, dtype=dtype, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)


def scale_to_box(keypoints: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale poses (..., K, 2) so that their bounding boxes are the unit square; an axis without extent becomes 0."""
    low = keypoints.amin(dim=-2, keepdim=True)
    extent = keypoints.amax(dim=-2, keepdim=True) - low
    return (keypoints - low) / extent.clamp_min(eps)

"""Surprise: the distance of a pose to the memory, relative to the poses of the training pictures. Not in the paper.

The distance is the root mean squared distance of its keypoints to those decoded from the nearest vectors, in units of
[-1, 1]. A version's scale is the 99th percentile over its training pictures; surprise is distance over scale.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .memory import HierarchicalMemory

PERCENTILE = 99


@torch.no_grad()
def recall(memory: HierarchicalMemory, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes (B, M) of poses (B, K, 2), and the distances (B,) to the poses decoded from them."""
    recalled = memory(keypoints)
    apart = recalled.keypoints - keypoints.float()
    return recalled.codes, apart.square().sum(-1).mean(-1).sqrt()


def recall_all(memory: HierarchicalMemory, poses: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Apply :func:`recall` to batches of poses; return the results joined, on the CPU."""
    codes, distances = zip(*(recall(memory, keypoints) for keypoints in poses), strict=True)
    return torch.cat(codes).cpu(), torch.cat(distances).cpu()


def surprise_scale(distances: Tensor) -> float | None:
    """Return the distance that counts as 1, from those of the training pictures (N,).

    None where it is not a positive number: training never moved, or the memory reproduces every pose exactly.
    """
    scale = float(torch.quantile(distances.double(), PERCENTILE / 100))
    return scale if 0 < scale < float("inf") else None

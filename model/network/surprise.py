"""How far a pose lies from what the memory makes of it: what the category's poses are not, surprises.

The distance of a pose is the root of its keypoints' mean squared distance to those that the memory decodes from
the nearest vectors, in units of [-1, 1]. A version's scale is the 99th percentile of its training pictures'
distances; surprise is distance over scale. No part of the paper, which shows only that the memory holds poses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .memory import HierarchicalMemory

PERCENTILE = 99


@torch.no_grad()
def recall(memory: HierarchicalMemory, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """The codes (B, M) that poses (B, K, 2) retrieve, and the poses' distances (B,) to what these decode to."""
    recalled = memory(keypoints)
    apart = recalled.keypoints - keypoints.float()
    return recalled.codes, apart.square().sum(-1).mean(-1).sqrt()


def scale_of(distances: Tensor) -> float | None:
    """The distance that counts as 1, from those of the training pictures (N,); None where it would mean nothing.

    Training that never moved, or a memory that holds every pose to the last bit, leaves no distance to compare with.
    """
    scale = float(torch.quantile(distances.double(), PERCENTILE / 100))
    return scale if 0 < scale < float("inf") else None


def recall_all(memory: HierarchicalMemory, poses: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """As :func:`recall` of many batches of poses, on the CPU."""
    codes, distances = zip(*(recall(memory, keypoints) for keypoints in poses), strict=True)
    return torch.cat(codes).cpu(), torch.cat(distances).cpu()

"""The four losses of PPL; the reconstruction loss compares activations of :mod:`model.network.perceptual`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from model.network.geometry import scale_to_box
from model.network.links import link_lengths
from model.network.memory import Recalled
from model.process_group import ALONE, Group


def reconstruction_loss(ours: Sequence[Tensor], target: Sequence[Tensor], group: Group = ALONE) -> Tensor:
    """L1 between two images' activations, each level divided by the target's mean magnitude, averaged.

    Differs from the paper in that division, which keeps one level from outweighing the others. The magnitude is
    that of the group's whole batch, so that the mean over its processes is the loss of that batch.
    """
    if len(ours) != len(target):
        raise ValueError(f"{len(ours)} levels compared with {len(target)}")
    levels = [
        (a.float() - b.float()).abs().mean() / group.mean(b.float().abs().mean()).clamp_min(1e-6)
        for a, b in zip(ours, target, strict=True)
    ]
    return torch.stack(levels).mean()


def boundary_loss(keypoints: Tensor) -> Tensor:
    """Eq. 5: |x| for each coordinate outside [-1, 1]; summed over keypoints, mean over images and axes.

    Args:
        keypoints: (B, K, 2).
    """
    size = keypoints.abs()
    return torch.where(size > 1, size, torch.zeros_like(size)).sum(dim=1).mean()


def link_regularization_loss(
    keypoint_prior: Tensor, keypoints: Tensor, link_weights: Tensor, group: Group = ALONE
) -> Tensor:
    """Eq. 6 in the form of the release: links that keep their length between prior and image deserve weight.

    mean |10 delta + log w| over the links with 0.3 < length < 0.7, delta being the change of length from prior
    to image. Lengths are those after both poses are scaled to their bounding boxes.
    The gradient reaches the weights only.

    Args:
        keypoint_prior: (K, 2).
        keypoints: (B, K, 2).
        link_weights: (L,), positive.
        group: the links are counted over its whole batch, so that the mean over its processes is the loss of that.
    """
    with torch.no_grad():
        before = link_lengths(scale_to_box(keypoint_prior))
        after = link_lengths(scale_to_box(keypoints))
        change = (after - before).abs()
        counted = ((after > 0.3) & (after < 0.7)).to(after.dtype)
    terms = (10 * change + link_weights.clamp_min(1e-12).log()).abs() * counted
    return terms.sum() / group.mean(counted.sum()).clamp_min(1 / group.size)  # without any, terms are 0 too


def memory_loss(recalled: Recalled, keypoints: Tensor, decode_weight: float) -> Tensor:
    """Tokens towards their vectors, and decoded towards given keypoints; means over all elements.

    Args:
        recalled: what the memory made of the keypoints.
        keypoints: (B, K, 2), taken as constants.
        decode_weight: factor on the second term, 100 in the release.
    """
    commitment = functional.mse_loss(recalled.tokens, recalled.vectors.detach())
    decoded = functional.mse_loss(recalled.keypoints, keypoints.detach())
    return commitment + decode_weight * decoded

"""The losses of PPL, and two of our own for hidden parts.

The paper trains on whole pictures only; parts are hidden so that a pose is found where some of it can't be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from model.network.blocks import scale_to_box
from model.network.links import link_lengths
from model.network.memory import Recalled
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import fill_in
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


def reconstruction_loss(ours: Sequence[Tensor], target: Sequence[Tensor], group: Group = ALONE) -> Tensor:
    """Average the L1 distances of two images' activations, each level divided by the target's mean magnitude.

    Differs from the paper in that division, which keeps one level from outweighing the others. The magnitude is that
    of the group's whole batch, so that the mean over its processes is the loss of the batch.
    """
    if len(ours) != len(target):
        raise ValueError(f"{len(ours)} levels compared with {len(target)}")
    levels = [
        (a.float() - b.float()).abs().mean() / group.mean(b.float().abs().mean()).clamp_min(1e-6)
        for a, b in zip(ours, target, strict=True)
    ]
    return torch.stack(levels).mean()


def boundary_loss(keypoints: Tensor) -> Tensor:
    """Penalise keypoints (B, K, 2) outside [-1, 1] by |x| (PPL eq. 5): summed over K, mean over images and axes."""
    size = keypoints.abs()
    return torch.where(size > 1, size, torch.zeros_like(size)).sum(dim=1).mean()


def link_regularization_loss(
    keypoint_prior: Tensor, keypoints: Tensor, link_weights: Tensor, group: Group = ALONE
) -> Tensor:
    """Give weight to links that keep their length between prior and image (PPL eq. 6, in the form of the release).

    The mean of |10 delta + log w| over the links with 0.3 < length < 0.7, delta being the change of length, after both
    poses are scaled to their bounding boxes. The gradient reaches the weights only.

    Args:
        keypoint_prior: (K, 2).
        keypoints: (B, K, 2).
        link_weights: (L,), positive.
        group: links are counted over its whole batch, so that the mean over its processes is the loss of the batch.
    """
    with torch.no_grad():
        before = link_lengths(scale_to_box(keypoint_prior))
        after = link_lengths(scale_to_box(keypoints))
        change = (after - before).abs()
        counted = ((after > 0.3) & (after < 0.7)).to(after.dtype)
    terms = (10 * change + link_weights.clamp_min(1e-12).log()).abs() * counted
    return terms.sum() / group.mean(counted.sum()).clamp_min(1 / group.size)  # without any link, terms are 0 too


def memory_loss(recalled: Recalled, keypoints: Tensor, decode_weight: float) -> Tensor:
    """Pull tokens to their vectors, and decoded keypoints to the given (B, K, 2); mean squares over all elements.

    ``decode_weight`` is the factor on the second term, 100 in the release. The given keypoints are constants.
    """
    commitment = functional.mse_loss(recalled.tokens, recalled.vectors.detach())
    decoded = functional.mse_loss(recalled.keypoints, keypoints.detach())
    return commitment + decode_weight * decoded


def hidden_part_losses(
    model: PosePriorLearner,
    image: Tensor,
    keypoints: Tensor,
    link_width: float,
    generator: torch.Generator,
    group: Group = ALONE,
    total: int | None = None,
) -> dict[str, Tensor]:
    """Measure how far keypoints move when parts are hidden, before and after a step of refinement. Not in the paper.

    Mean absolute differences in units of [-1, 1]. Only the regressor learns: the keypoints of the whole picture are
    constants, and so is the filled-in image. Batch norms use and keep their running statistics, those of whole
    pictures.

    Args:
        model: a model with a memory, in training mode.
        image: (B, 3, S, S) in [-1, 1], this process's share; shares may differ by one picture, and one may be empty.
        keypoints: (B, K, 2), found in the whole pictures.
        link_width: sigma squared at this step.
        generator: CPU generator that chooses the hidden patches.
        group: the processes that share the pictures.
        total: number of the group's pictures; B for one process.

    Returns:
        "occlusion" and "refinement", weighted by the size of the share, so that their mean over the processes is that
        over the group's pictures.
    """
    if not len(image):
        return {"occlusion": keypoints.new_zeros(()), "refinement": keypoints.new_zeros(())}
    weight = len(image) * group.size / (total or len(image))
    goal = keypoints.detach()
    hidden = hide_parts(image, generator, group, total).contiguous(memory_format=torch.channels_last)
    model.eval()
    found = model.locate(hidden).keypoints
    with torch.no_grad():
        filled_in = fill_in(model, hidden, found, link_width)
    again = model.locate(filled_in).keypoints
    model.train()
    return {
        "occlusion": weight * functional.l1_loss(found, goal),
        "refinement": weight * functional.l1_loss(again, goal),
    }

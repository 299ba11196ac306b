"""Training for hidden parts: the keypoints of a picture, found again where a part of it is hidden.

Not in the paper, which trains on whole pictures only and leaves hidden parts to iterative inference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import fill_in
from model.process_group import ALONE, Group

GRID = 16
"""Patches along one side of what is hidden, as in the paper's tests of occlusion."""

_PATCHES, _SQUARE = 0.4, 0.4  # parts of a batch with random patches hidden, and with a square; the rest stays whole
_MOST_PATCHES = 0.5  # hidden of a picture, as a part of all
_LARGEST_SQUARE = 0.8  # its side, of the image's
_REACH = 0.25  # of the image side, how far off the centre a square may lie


def hide_parts(image: Tensor, generator: torch.Generator, group: Group = ALONE, whole: int | None = None) -> Tensor:
    """Set parts of each picture to mid-grey (0): patches at random, a square about the centre, or nothing.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        generator: on the CPU; draws for all of the group's pictures.
        group: of whose pictures these are this process's share.
        whole: number of the group's pictures; B for one process.
    """
    batch, (height, width) = whole or len(image), image.shape[2:]
    kind = torch.rand(batch, 1, 1, generator=generator)
    ratio = torch.rand(batch, 1, 1, generator=generator) * _MOST_PATCHES
    patches = torch.rand(batch, GRID, GRID, generator=generator) < ratio
    side = torch.rand(batch, generator=generator) * _LARGEST_SQUARE * GRID
    centre = GRID / 2 + (torch.rand(batch, 2, generator=generator) * 2 - 1) * _REACH * GRID
    along = ((torch.arange(GRID) + 0.5 - centre[..., None]).abs() < side[:, None, None] / 2).unbind(1)  # of x, of y
    square = along[1][:, :, None] & along[0][:, None, :]
    hidden = group.share(torch.where(kind < _PATCHES, patches, square & (kind < _PATCHES + _SQUARE)))
    visible = functional.interpolate((~hidden).unsqueeze(1).to(image), size=(height, width), mode="nearest")
    return image * visible


def hidden_part_losses(
    model: PosePriorLearner,
    image: Tensor,
    keypoints: Tensor,
    link_width: float,
    generator: torch.Generator,
    group: Group = ALONE,
    whole: int | None = None,
) -> dict[str, Tensor]:
    """How far keypoints move when parts of the picture are hidden, before and after a step of refinement.

    Mean absolute differences, in units of [-1, 1]. The keypoints of the whole picture are constants, and so is
    what the memory and the reconstructor fill in: only the regressor learns. Batch norms use and keep their
    running statistics, those of whole pictures.

    Args:
        model: with a memory, in training mode; left in it.
        image: (B, 3, S, S) in [-1, 1].
        keypoints: (B, K, 2), found in the whole pictures.
        link_width: sigma squared at this step.
        generator: on the CPU; decides what is hidden.
        group: of whose pictures these are this process's share; shares may differ by one, and one may be empty.
        whole: number of the group's pictures; B for one process.

    Returns:
        "occlusion" and "refinement", weighted by the size of the share: their mean over the group's processes is
        that over its pictures.
    """
    if not len(image):
        return {"occlusion": keypoints.new_zeros(()), "refinement": keypoints.new_zeros(())}
    weight = len(image) * group.size / (whole or len(image))
    goal = keypoints.detach()
    hidden = hide_parts(image, generator, group, whole).contiguous(memory_format=torch.channels_last)
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

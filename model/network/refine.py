"""Iterative inference: refine poses towards the prototypes in the memory (PPL figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import shrink
from .pose_prior_learner import Located, PosePriorLearner


class NoMemoryError(ValueError):
    """A request for refinement or codes to a model without memory."""


def fill_in(model: PosePriorLearner, image: Tensor, keypoints: Tensor, link_width: float | None = None) -> Tensor:
    """Reconstruct images with the prototypes of their poses drawn in: (B, 3, s, s) in [-1, 1], s the working side.

    Args:
        model: a model with a memory.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        keypoints: (B, K, 2) in [-1, 1], before this step.
        link_width: sigma squared of the links; the final one unless given.
    """
    assert model.memory is not None
    prototypes = model.memory(keypoints).keypoints
    image = shrink(image, model.config.side)
    drawn = model.reconstructor(image, model.draw(prototypes, image, link_width))
    filled: Tensor = drawn.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    return filled


@torch.no_grad()
def refine(model: PosePriorLearner, image: Tensor, refine_steps: int) -> tuple[Located, Tensor]:
    """Locate keypoints, then ``refine_steps`` times in the image that :func:`fill_in` makes of the last pose.

    The pose of a step lies ``refine_gain`` of the way from the first pose to the one found again. Differs from the
    paper where that is less than 1: keypoints in plain sight then stay near where they were first found.

    Args:
        model: in eval mode.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        refine_steps: N, at least 0.

    Returns:
        Keypoints (B, K, 2) and scores of the last step with the evidence of the image, and the trajectory
        (B, N + 1, K, 2).

    Raises:
        NoMemoryError: steps are requested of an AutoLink model, which has no memory.
    """
    if refine_steps and model.memory is None:
        raise NoMemoryError(
            f"refine_steps is {refine_steps}; a model of the method {model.config.method} has no memory to "
            "refine with, expected 0"
        )
    located = model.locate(image, evidence=True)
    first = located.keypoints
    trajectory = [first]
    for _ in range(refine_steps):
        found = model.locate(fill_in(model, image, located.keypoints))
        moved = torch.lerp(first, found.keypoints, model.config.refine_gain)
        located = Located(moved, found.scores, located.evidence)
        trajectory.append(located.keypoints)
    return located, torch.stack(trajectory, dim=1)

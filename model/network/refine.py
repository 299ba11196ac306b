"""Iterative inference: poses regressed towards the prototypical poses in the memory (PPL figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .pose_prior_learner import PosePriorLearner
from .regressor import Located


class NoMemoryError(ValueError):
    """Refinement was asked of a model without memory."""


def fill_in(model: PosePriorLearner, image: Tensor, keypoints: Tensor, link_width: float | None = None) -> Tensor:
    """The image with the memory's nearest poses drawn into it: (B, 3, S, S) in [-1, 1].

    Args:
        model: with a memory.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        keypoints: (B, K, 2), as found so far.
        link_width: sigma squared of the links, the final one unless given.
    """
    assert model.memory is not None
    recalled = model.memory(keypoints).keypoints
    drawn = model.reconstructor(image, model.draw(recalled, image, link_width))
    filled: Tensor = drawn.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    return filled


@torch.no_grad()
def refine(model: PosePriorLearner, image: Tensor, refine_steps: int) -> tuple[Located, Tensor]:
    """Locate keypoints, then again in what the memory makes of them, ``refine_steps`` times.

    At each step the memory's nearest poses are drawn as a link map, the reconstructor fills the image in
    around them, and keypoints are located in the result. The step's pose lies between the first one and that,
    at the part ``refine_gain`` of the way: 1 is the paper's iteration. Differs from the paper where it is less,
    which keeps what was seen well in place.

    Args:
        model: in eval mode.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        refine_steps: N, at least 0.

    Returns:
        The last iteration's keypoints (B, K, 2) and scores, and the trajectory (B, N + 1, K, 2).

    Raises:
        NoMemoryError: steps of an AutoLink model, which has no memory to refine with.
    """
    if refine_steps and model.memory is None:
        raise NoMemoryError(
            f"refine_steps is {refine_steps}; a model of the method {model.config.method} has no memory to "
            "refine with, expected 0"
        )
    located = model.locate(image)
    first = located.keypoints
    trajectory = [first]
    for _ in range(refine_steps):
        found = model.locate(fill_in(model, image, located.keypoints))
        located = Located(torch.lerp(first, found.keypoints, model.config.refine_gain), found.scores)
        trajectory.append(located.keypoints)
    return located, torch.stack(trajectory, dim=1)

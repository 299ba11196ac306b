"""Iterative inference: poses regressed towards the prototypical poses in the memory (PPL figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from model.ppl import PosePriorLearner
from model.regressor import Located


class NoMemoryError(ValueError):
    """Refinement was asked of a model without memory."""


@torch.no_grad()
def refine(model: PosePriorLearner, image: Tensor, refine_steps: int) -> tuple[Located, Tensor]:
    """Locate keypoints, then again in what the memory makes of them, ``refine_steps`` times.

    At each step the memory's nearest poses are drawn as a link map, the reconstructor fills the image in
    around them, and keypoints are located in the result.

    Args:
        model: in eval mode.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        refine_steps: N, at least 0.

    Returns:
        The last iteration's keypoints (B, K, 2) and scores, and the trajectory (B, N + 1, K, 2).

    Raises:
        NoMemoryError: steps of an AutoLink model, which has no memory to refine with.
    """
    located = model.locate(image)
    trajectory = [located.keypoints]
    for _ in range(refine_steps):
        if model.memory is None:
            raise NoMemoryError(
                f"refine_steps is {refine_steps}; a model of the method {model.config.method} has no memory to "
                "refine with, expected 0"
            )
        recalled = model.memory(located.keypoints).keypoints
        filled_in = model.reconstructor(image, model.draw_links(recalled))
        located = model.locate(filled_in.clamp(-1, 1).contiguous(memory_format=torch.channels_last))
        trajectory.append(located.keypoints)
    return located, torch.stack(trajectory, dim=1)

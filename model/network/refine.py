"""Iterative inference: refine poses towards the prototypes in the memory (PPL figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import shrink
from .pose_prior_learner import Located, PosePriorLearner

_LEAST_DOUBT = 1e-3


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
def refine(
    model: PosePriorLearner, image: Tensor, refine_steps: int, reconstructions: list[Tensor] | None = None
) -> tuple[Located, Tensor]:
    """Locate keypoints, then ``refine_steps`` times in the image that :func:`fill_in` makes of the last pose.

    The pose of a step lies ``refine_gain`` of the way from the first pose to the one found again, or less for keypoints
    that were seen well at first (:func:`refined_share`). Differs from the paper, where that is 1: keypoints in plain
    sight then stay near where they were first found.

    Args:
        model: in eval mode.
        image: (B, 3, S, S) in [-1, 1], occluded or not.
        refine_steps: N, at least 0.
        reconstructions: gets what :func:`fill_in` makes of each pose of the trajectory, N + 1 batches: step n + 1 looks
            at the one of step n, and the last one is made for this list alone.

    Returns:
        Keypoints (B, K, 2) and scores of the last step (mixed like these with the weighting "scores"), the evidence
        of the image, and the trajectory (B, N + 1, K, 2).

    Raises:
        NoMemoryError: steps or reconstructions are requested of an AutoLink model, which has no memory.
    """
    if reconstructions is not None and model.memory is None:
        raise NoMemoryError(f"a model of the method {model.config.method} has no memory to reconstruct pictures with")
    if refine_steps and model.memory is None:
        raise NoMemoryError(
            f"refine_steps is {refine_steps}; a model of the method {model.config.method} has no memory to "
            "refine with, expected 0"
        )
    located = seen = model.locate(image, evidence=True)
    trajectory = [seen.keypoints]
    for _ in range(refine_steps):
        filled = fill_in(model, image, located.keypoints)
        if reconstructions is not None:
            reconstructions.append(filled)
        found = model.locate(filled)
        share = model.config.refine_gain * refined_share(model.config.refine_weighting, seen.scores, found.scores)
        moved = torch.lerp(seen.keypoints, found.keypoints, share[..., None])
        scores = found.scores
        if model.config.refine_weighting == "scores":
            scores = torch.lerp(seen.scores, found.scores, share)
        located = Located(moved, scores, seen.evidence)
        trajectory.append(located.keypoints)
    if reconstructions is not None:
        reconstructions.append(fill_in(model, image, located.keypoints))
    return located, torch.stack(trajectory, dim=1)


def refined_share(weighting: str, first: Tensor, refined: Tensor) -> Tensor:
    """Return how much the refined position of a keypoint counts beside its first one, in [0, 1], from both scores.

    Not in the paper. 1 for the weighting "constant". "scores": the refined odds over both odds, odds being
    score / (1 - score), so two equally sure positions meet in the middle.

    Args:
        first: (B, K) in [0, 1], the scores in the image.
        refined: (B, K), those in the filled-in image.
    """
    if weighting == "constant":
        return torch.ones_like(first)
    before, after = (scores.clamp(_LEAST_DOUBT, 1 - _LEAST_DOUBT) for scores in (first, refined))
    ahead, behind = after * (1 - before), before * (1 - after)
    return ahead / (ahead + behind)

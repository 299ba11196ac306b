"""Measure how good a version is without labels, on its training pictures; :mod:`model.scoring.quality` judges it.

Keypoints of a learned pose follow the picture when it is turned, scaled and shifted, move from picture to picture, and
carry what the reconstruction can't know from the reference. None of this needs a label, and the loss shows none of it:
a skeleton that never moves can have the lowest loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.data import Images, mask_patches, step_generator, to_tensor
from model.network.blocks import autocast, shrink
from model.network.links import link_indices
from model.network.pose_prior_learner import PosePriorLearner

from .scoring.quality import judge

_PICTURES = 96  # that keypoints are measured on
_DRAWN = 16  # that reconstructions are measured on
_ROTATION, _SCALING, _SHIFT = math.radians(15), 0.15, 0.15  # the most; the shift in units of [-1, 1]
_INSIDE = 0.9  # keypoints beyond it may leave the warped picture


@torch.inference_mode()
def measure_quality(model: PosePriorLearner, images: Images) -> dict[str, Any]:
    """Return the measures of a model and the verdict on them, as JSON values.

    Args:
        model: put into eval mode.
        images: the training pictures, uint8 (N, S, S, 3).
    """
    model.eval()
    chosen = np.linspace(0, len(images) - 1, min(_PICTURES, len(images))).round().astype(int)
    pictures = to_tensor(np.ascontiguousarray(images[chosen]), model.link_logits.device)
    with autocast(model.config.precision, pictures.device):
        located = model.locate(pictures)
        keypoints = located.keypoints.float()
        mean_pose = keypoints.mean(0)
        drawn = _spread(pictures, _DRAWN)
        explained, idle = _explained(model, drawn, _spread(keypoints, _DRAWN), mean_pose)
        measures = {
            "consistency": _consistency(model, pictures, keypoints),
            # of the side, which is 2
            "movement_percent": 50 * float((keypoints - mean_pose).square().sum(-1).mean().sqrt()),
            "explained": explained,
            "idle_keypoints": idle,
            "mean_score": float(located.scores.mean()),
            "pictures": len(chosen),
        }
    return measures | judge(measures, len(images), model.config.num_keypoints)


def _spread(values: Tensor, count: int) -> Tensor:
    """Return up to ``count`` rows, evenly spaced."""
    return values[torch.linspace(0, len(values) - 1, min(count, len(values))).round().long()]


def _consistency(model: PosePriorLearner, pictures: Tensor, keypoints: Tensor) -> float:
    """Return 1 - (distance to where the warp takes a keypoint) / (distance that the warp moves it), of the means."""
    drawn = torch.rand(len(pictures), 4, generator=step_generator(0, "quality", 0)).to(pictures) * 2 - 1
    angle, scale = drawn[:, 0] * _ROTATION, 1 + drawn[:, 1] * _SCALING
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).view(-1, 2, 2)
    linear, shift = rotation * scale[:, None, None], drawn[:, 2:] * _SHIFT  # from warped to original places
    grid = functional.affine_grid(torch.cat((linear, shift[..., None]), -1), list(pictures.shape), align_corners=False)
    warped = functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    found = model.locate(warped.contiguous(memory_format=torch.channels_last)).keypoints.float()
    expected = (keypoints - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2)
    inside = (expected.abs().amax(-1) < _INSIDE) & (keypoints.abs().amax(-1) < _INSIDE)
    if not inside.any():
        return 0.0
    missed, moved = (float((expected - other).norm(dim=-1)[inside].mean()) for other in (found, keypoints))
    return 1 - missed / moved


def _explained(
    model: PosePriorLearner, pictures: Tensor, keypoints: Tensor, mean_pose: Tensor
) -> tuple[float, list[int]]:
    """Return what the poses explain of the pictures, and the keypoints that explain nothing.

    The first is 1 - (error of the reconstruction from a picture's own pose) / (error from the mean pose). A keypoint
    is idle if the reconstruction without its links is as good.
    """
    config = model.config
    pictures = shrink(pictures, config.side)
    reference = mask_patches(pictures, config.mask_ratio, config.mask_grid, step_generator(0, "quality", 1))
    target = _activations(model, pictures)

    def error(poses: Tensor) -> float:
        image = model.reconstructor(reference, model.draw(poses, pictures)).clamp(-1, 1)
        found = _activations(model, image)
        ratios = [float((a - b).abs().mean() / b.abs().mean()) for a, b in zip(found, target, strict=True)]
        return float(np.mean(ratios))

    own, mean = error(keypoints), error(mean_pose.expand_as(keypoints))
    i, j = link_indices(config.num_keypoints, pictures.device)
    logits = model.link_logits.detach().clone()
    losses = []
    for keypoint in range(config.num_keypoints):
        model.link_logits.data.masked_fill_((i == keypoint) | (j == keypoint), -1e4)
        losses.append(error(keypoints) - own)
        model.link_logits.data.copy_(logits)
    idle = [keypoint for keypoint, loss in enumerate(losses) if loss < _IDLE * own]
    return 1 - own / max(mean, 1e-6), idle


_IDLE = 5e-4  # of the error: a smaller change is none


def _activations(model: PosePriorLearner, image: Tensor) -> list[Tensor]:
    """Return what two images are compared by: a frozen network's activations where the model has one, and pixels."""
    features = model.regressor.features
    levels = [] if features is None else [level.float() for level in features(image)]
    return [*levels, functional.avg_pool2d(image.float(), 2)]

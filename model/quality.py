"""Measure how good a version is without labels, on its training pictures; :mod:`model.scoring.quality` judges it.

Keypoints of a good version agree with the parts that a network trained on other pictures finds, follow the picture when
it is rotated, scaled and shifted, move from picture to picture, and carry what the reconstruction can't know from the
reference. None of this needs a label, and the loss shows none of it: a skeleton that never moves can have the lowest
loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.data import Images, mask_patches, step_generator, to_tensor
from model.network.blocks import autocast, channels_last, full_precision, pixel_grid, shrink
from model.network.clusters import cluster_vectors, relative_errors
from model.network.links import link_indices
from model.network.perceptual import feature_network
from model.network.pose_prior_learner import PosePriorLearner
from model.network.warps import Warps

from .scoring.quality import judge

_PICTURES = 128  # that keypoints are measured on
_DRAWN = 16  # that reconstructions are measured on
_INSIDE = 0.9  # keypoints beyond it may leave the warped picture
_INPUT_SIDE = 128  # of the frozen network's input, in pixels
_NUM_PARTS, _GRID_SIDE = 32, 16  # clusters of its activations, on a grid of 16 by 16
_SHARPNESS = 20.0  # inverse temperature of the softmax over the grid
_ROUNDS, _SAMPLE = 15, 8000  # of the clustering; vectors that it is fitted on
_RIDGE_PARTS, _RIDGE_KEYPOINTS = 0.1, 0.01  # penalties of the maps from parts and from keypoints


@torch.inference_mode()
def measure_quality(model: PosePriorLearner, images: Images) -> dict[str, Any]:
    """Return the measures of a model and the verdict on them, as JSON values.

    Args:
        model: put into eval mode.
        images: the training pictures, uint8 (N, S, S, 3).

    Raises:
        WeightsUnavailableError: the weights of the frozen network, efficientnet_lite0, are not installed.
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
            "agreement": _agreement(pictures, keypoints),
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


def _agreement(pictures: Tensor, keypoints: Tensor) -> float:
    """Return how well keypoints and the parts found by a frozen network predict each other's positions; 1 is best.

    Parts are clusters of the network's activations in these pictures. The result is the mean of two shares: the share
    of the keypoints' movement that linear maps from the parts explain, and the share of the parts' movement that maps
    from the keypoints explain, of the best explained eighth of the parts (most lie in the background, and no pose
    explains them).

    Args:
        pictures: (N, 3, S, S).
        keypoints: (N, K, 2) in [-1, 1].
    """
    if len(pictures) < 2:
        return 0.0
    with torch.random.fork_rng(devices=[]):  # building layers draws random numbers
        network = channels_last(feature_network("efficientnet_lite0", _INPUT_SIDE // 2), pictures.device)
    with full_precision(pictures.device):
        levels = [_standardise(level.float()) for level in network(pictures)[1:]]
        vectors = functional.normalize(torch.cat(levels, dim=1), dim=1).flatten(2).transpose(1, 2)  # (N, P, D)
        generator = step_generator(0, "quality", 2)
        similarity = vectors @ cluster_vectors(vectors.flatten(0, 1), _NUM_PARTS, _ROUNDS, _SAMPLE, generator).T
        attention = (similarity * _SHARPNESS).softmax(1).transpose(1, 2)
        parts = attention @ pixel_grid(_GRID_SIDE, device=pictures.device)  # (N, C, 2)
        of_keypoints = 1 - relative_errors(parts, keypoints, _RIDGE_PARTS).mean()
        of_parts = 1 - relative_errors(keypoints, parts, _RIDGE_KEYPOINTS).sort().values[: _NUM_PARTS // 8].mean()
    return float((of_keypoints + of_parts) / 2)


def _standardise(level: Tensor) -> Tensor:
    """Return activations (N, D, S, S) on the grid as unit vectors, each channel scaled to mean 0 and deviation 1."""
    if level.shape[-1] != _GRID_SIDE:
        level = functional.interpolate(level, size=(_GRID_SIDE, _GRID_SIDE), mode="bilinear")
    mean, spread = level.mean((0, 2, 3), keepdim=True), level.std((0, 2, 3), keepdim=True)
    return functional.normalize((level - mean) / (spread + 1e-6), dim=1)


def _consistency(model: PosePriorLearner, pictures: Tensor, keypoints: Tensor) -> float:
    """Return 1 - (distance to where the warp takes a keypoint) / (distance that the warp moves it), of the means."""
    warps = Warps.draw(pictures, step_generator(0, "quality", 0))
    warped = warps.pictures(pictures).contiguous(memory_format=torch.channels_last)
    found, expected = model.locate(warped).keypoints.float(), warps.places(keypoints)
    inside = (expected.abs().amax(-1) < _INSIDE) & (keypoints.abs().amax(-1) < _INSIDE)
    if not inside.any():
        return 0.0
    missed, moved = (float((expected - other).norm(dim=-1)[inside].mean()) for other in (found, keypoints))
    return 1 - missed / moved


def _explained(
    model: PosePriorLearner, pictures: Tensor, keypoints: Tensor, mean_pose: Tensor
) -> tuple[float, list[int]]:
    """Return the share of the pictures that the poses explain, and the keypoints that explain nothing.

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
    """Return the features by which images are compared: pixels, and activations if the model has a frozen network."""
    features = model.regressor.features
    levels = [] if features is None else [level.float() for level in features(image)]
    return [*levels, functional.avg_pool2d(image.float(), 2)]

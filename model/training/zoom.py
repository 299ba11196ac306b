"""Crop training pictures around the thing, where a locator finds it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from model.data import Images, iterate_batches, to_pixels, to_tensor
from model.network.blocks import autocast
from model.network.locator import FEWEST_PICTURES, crop, describe_angles, describe_cells, is_upright
from model.network.pose_prior_learner import PosePriorLearner
from model.process_group import ALONE, Group

_PLACE_FITTED_TO = 256  # pictures
_ROTATED = 96  # pictures whose angles are fitted; each is seen at sixteen
_BATCH = 32


@torch.no_grad()
def fit_locator(model: PosePriorLearner, images: Images, group: Group = ALONE) -> None:
    """Fit a model's locator, if it has one, to some of the pictures, uint8 (N, S, S, 3), evenly spaced.

    All processes of a group get the locator of rank 0: a template that begins with another picture has another angle.
    """
    locator, features = model.locator, model.regressor.features
    if locator is None or features is None or len(images) < FEWEST_PICTURES:
        return
    device, precision = locator.weight.device, model.config.precision
    with autocast(precision, device):
        cells = [
            describe_cells(features(to_tensor(batch, device))).cpu()
            for batch in spread_batches(images, _PLACE_FITTED_TO)
        ]
    locator.fit_place(torch.cat(cells))
    if len(images) >= _ROTATED and not is_upright(_describe_rotations(model, images, FEWEST_PICTURES)):
        locator.fit_angle(_describe_rotations(model, images, _ROTATED))
    for value in locator.buffers():
        value.copy_(group.total(value if group.rank == 0 else torch.zeros_like(value)))


def _describe_rotations(model: PosePriorLearner, images: Images, count: int) -> torch.Tensor:
    """Return the frozen activations (N, A, D, P) of crops of some pictures at each angle."""
    locator, features = model.locator, model.regressor.features
    assert locator is not None
    assert features is not None
    turned = []
    with autocast(model.config.precision, locator.weight.device):
        for pictures in spread_batches(images, count):
            batch = to_tensor(pictures, locator.weight.device)
            turned.append(describe_angles(crop(batch, locator(batch, features)), features).cpu())
    return torch.cat(turned)


def spread_batches(images: Images, most: int) -> Iterator[Images]:
    """Yield batches of pictures that are evenly spaced, ``most`` of them in all."""
    rows = np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(np.int64)
    return iterate_batches(images[rows], _BATCH)


def crop_pictures(model: PosePriorLearner, images: Images) -> Images:
    """Return pictures, uint8 (N, S, S, 3), as the model is to see them.

    Crops of the same size are held in memory; without a fitted locator the same pictures are returned.
    """
    if model.locator is None or not model.locator.fitted:
        return images
    crops = np.empty(images.shape, np.uint8)
    for first in range(0, len(images), _BATCH):
        batch = to_tensor(images[first : first + _BATCH], model.locator.weight.device)
        with autocast(model.config.precision, batch.device):
            found = model.find_crops(batch)
        assert found is not None
        crops[first : first + _BATCH] = to_pixels(crop(batch, found))
    return crops

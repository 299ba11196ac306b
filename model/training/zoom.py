"""Crop training pictures around the thing, where a locator finds it."""

from __future__ import annotations

import numpy as np
import torch

from model.data import Images, iterate_batches, to_pixels, to_tensor
from model.network.blocks import autocast
from model.network.locator import FEWEST_PICTURES, crop, describe_cells
from model.network.pose_prior_learner import PosePriorLearner

_FITTED_TO = 256  # pictures
_BATCH = 32


@torch.no_grad()
def fit_locator(model: PosePriorLearner, images: Images) -> None:
    """Fit a model's locator, if it has one, to some of the pictures, uint8 (N, S, S, 3), evenly spaced."""
    locator, features = model.locator, model.regressor.features
    if locator is None or features is None or len(images) < FEWEST_PICTURES:
        return
    chosen = np.linspace(0, len(images) - 1, min(len(images), _FITTED_TO)).round().astype(np.int64)
    cells, device = [], locator.weight.device
    with autocast(model.config.precision, device):
        for batch in iterate_batches(images[chosen], _BATCH):
            cells.append(describe_cells(features(to_tensor(batch, device))).cpu())
    locator.fit(torch.cat(cells))


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
            squares = model.find_crops(batch)
        assert squares is not None
        crops[first : first + _BATCH] = to_pixels(crop(batch, squares))
    return crops

"""Start the attention at clusters of the frozen activations of the training pictures."""

from __future__ import annotations

import torch

from model.data import Images, step_generator, to_tensor
from model.network.blocks import autocast, full_precision
from model.network.clusters import FEWEST_PICTURES
from model.network.pose_prior_learner import PosePriorLearner
from model.network.warps import Warps
from model.process_group import ALONE, Group

from .zoom import spread_batches

_FITTED_TO = 512  # pictures


@torch.no_grad()
def fit_clusters(model: PosePriorLearner, images: Images, group: Group = ALONE) -> None:
    """Fit a model's attention from clusters, if it has one, to some of the pictures, uint8 (N, S, S, 3), evenly spaced.

    The same pictures give the same clusters with every seed. All processes of a group get those of rank 0.
    """
    clusters, features = model.regressor.clusters, model.regressor.features
    if clusters is None or features is None or len(images) < FEWEST_PICTURES:
        return
    device = clusters.mean.device
    generator = step_generator(0, "clusters", 1)
    deepest, deepest_warped, drawn = [], [], []
    with autocast(model.config.precision, device):
        for batch in spread_batches(images, _FITTED_TO):
            pictures = to_tensor(batch, device)
            warps = Warps.draw(pictures, generator)
            warped = warps.pictures(pictures).contiguous(memory_format=torch.channels_last)
            deepest.append(features(pictures)[-1].float())
            deepest_warped.append(features(warped)[-1].float())
            drawn.append(warps)
    with full_precision(device):
        warps = Warps(*map(torch.cat, zip(*drawn, strict=True)))
        side, generator = model.config.side // 4, step_generator(0, "clusters", 0)
        clusters.fit(torch.cat(deepest), torch.cat(deepest_warped), warps, side, generator)
    for value in clusters.buffers():
        value.copy_(group.total(value if group.rank == 0 else torch.zeros_like(value)))

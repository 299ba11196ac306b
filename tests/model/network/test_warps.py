"""Known warps of pictures: what follows them is found where they take it."""

import numpy as np
import pytest
import torch

from model.network.warps import Warps

SIDE = 64


def dots(points):
    """Pictures (B, 3, SIDE, SIDE) with a soft dot at a place (B, 2) in [-1, 1] each."""
    at = (torch.arange(SIDE) * 2 + 1) / SIDE - 1
    distance = (at[None, None, :] - points[:, 0, None, None]) ** 2 + (at[None, :, None] - points[:, 1, None, None]) ** 2
    return torch.exp(-distance / 0.01)[:, None].expand(-1, 3, -1, -1)


def centre(pictures):
    at = (torch.arange(SIDE) * 2 + 1) / SIDE - 1
    weights = pictures[:, 0] / pictures[:, 0].sum((1, 2), keepdim=True)
    return torch.stack(((weights.sum(1) * at).sum(1), (weights.sum(2) * at).sum(1)), -1)


def test_places_are_where_the_warp_takes_the_picture():
    points = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (40, 2))).float()
    warps = Warps.draw(dots(points), torch.Generator().manual_seed(0))
    expected = warps.places(points[:, None])[:, 0]
    assert (expected - points).norm(dim=1).mean() > 0.1
    assert (centre(warps.pictures(dots(points))) - expected).abs().max() < 0.01


def test_what_follows_the_warp_differs_from_what_stays_and_what_wanders():
    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.uniform(-0.5, 0.5, (200, 3, 2))).float()
    warps = Warps.draw(torch.zeros(200, 3, 1, 1), torch.Generator().manual_seed(0))
    found = warps.places(points)
    found[:, 1] = points[:, 1]
    found[:, 2] = torch.from_numpy(rng.uniform(-0.5, 0.5, (200, 2)))
    follows, stays, wanders = warps.followed(points, found).tolist()
    assert (follows, stays) == (pytest.approx(1, abs=1e-5), pytest.approx(0, abs=1e-5))
    assert wanders < -1

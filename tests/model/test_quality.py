"""Quality without labels: what follows the picture, what moves, and what the links explain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.network.blocks import pixel_grid
from model.network.pose_prior_learner import Located, PosePriorLearner
from model.quality import measure_quality


@pytest.fixture
def spots():
    """(40, 32, 32, 3): a bright spot at a random place not far from the middle of each, on black."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    places = rng.uniform(11, 20, (40, 2))
    near = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in places]
    return (np.stack(near)[..., None] * [255, 255, 255]).astype(np.uint8)


def with_keypoints(model, monkeypatch, find):
    """Let a model find keypoints (B, K, 2) in images (B, 3, S, S) by a function."""

    def locate(image, evidence=False):
        keypoints = find(image)
        return Located(keypoints, torch.full(keypoints.shape[:2], 0.7))

    monkeypatch.setattr(model, "locate", locate)


def brightest(image):
    mass = (image.mean(1) + 1).clamp_min(0).flatten(1).square()
    centre = (mass[..., None] * pixel_grid(image.shape[-1])).sum(1) / mass.sum(1, keepdim=True)
    return centre[:, None].expand(-1, 5, -1).clone()


def test_keypoints_that_follow_the_picture_are_consistent(tiny, spots, monkeypatch):
    model = PosePriorLearner(tiny)
    with_keypoints(model, monkeypatch, brightest)
    found = measure_quality(model, spots)
    assert found["consistency"] > 0.9
    assert found["agreement"] > 0.5, "a trained network sees the spot where it is"
    spread = brightest(torch.from_numpy(spots).permute(0, 3, 1, 2).float() / 127.5 - 1)[:, 0]
    expected = 50 * (spread - spread.mean(0)).square().sum(-1).mean().sqrt()
    assert found["movement_percent"] == pytest.approx(float(expected), rel=1e-4)
    assert found["mean_score"] == pytest.approx(0.7)
    assert found["pictures"] == 40


def test_a_skeleton_that_never_moves_has_failed(tiny, spots, monkeypatch):
    model = PosePriorLearner(tiny)
    still = torch.linspace(-0.6, 0.6, 10).view(1, 5, 2)
    with_keypoints(model, monkeypatch, lambda image: still.expand(len(image), -1, -1).clone())
    found = measure_quality(model, spots)
    measures = [found[name] for name in ("consistency", "movement_percent", "explained", "agreement")]
    assert measures == pytest.approx([0, 0, 0, 0], abs=0.02)
    assert (found["verdict"], found["score"] < 0.1) == ("failed", True)
    assert "hardly moves" in found["advice"]


def test_measuring_leaves_the_model_as_it_was(tiny, spots):
    torch.manual_seed(1)
    model = PosePriorLearner(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = measure_quality(model, spots)
    assert first == measure_quality(model, spots)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_keypoint_without_links_is_idle(tiny, spots):
    torch.manual_seed(0)
    model = PosePriorLearner(tiny)
    model.link_logits.data.fill_(3 / tiny.link_scale)
    model.link_logits.data[[0, 4, 5, 6]] = -1e4  # all links of keypoint 1: 0-1, 1-2, 1-3, 1-4
    assert 1 in measure_quality(model, spots)["idle_keypoints"]


def test_keypoints_of_other_pictures_agree_with_nothing(tiny, spots, monkeypatch):
    model = PosePriorLearner(tiny)
    with_keypoints(model, monkeypatch, lambda image: brightest(image).roll(1, 0))
    assert measure_quality(model, spots)["agreement"] < 0.1

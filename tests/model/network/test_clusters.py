"""Attention starts at clusters of frozen activations, so keypoints start at parts of the thing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import resolve
from model.network.clusters import FEWEST_PICTURES, ClusterAttention
from model.network.warps import Warps
from model.predictor import Predictor
from model.training.trainer import Trainer

TINY = {"base_width": 8, "num_keypoints": 4, "num_banks": 2, "bank_size": 4, "token_dim": 8, "memory_width": 8}
TINY |= {"memory_depth": 1, "steps": 10, "batch_size": 4, "history_snapshots": 0, "precision": "fp32", "zoom": "off"}
CELLS, WIDTH = 16, 112  # of the grid of activations here; of the network's deepest level


def config(**changes):
    return resolve("compact", TINY | {"attention_start": "clusters"} | changes)


def draw_parts(corners, rng):
    """Activations (N, D, CELLS, CELLS) of a part at each of the corners (N, 5, 2), row and column, in noise."""
    kinds, made = np.random.default_rng(0).normal(size=(5, WIDTH)), rng.normal(size=(len(corners), CELLS, CELLS, WIDTH))
    for picture, places in zip(made, corners, strict=True):
        for kind in (4, 0, 1, 2, 3):  # the last lies below the others
            row, column = places[kind]
            picture[row : row + 2, column : column + 2] = 6 * kinds[kind] + picture[:2, :2] / 4
    return torch.from_numpy(made).permute(0, 3, 1, 2).float()


def parts(count, seed):
    """Corners of four parts of a thing, and of one that belongs to the background; and their places in [-1, 1]."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(3, CELLS - 9, (count, 1, 2)) + np.array([(0, 0), (0, 4), (4, 0), (4, 4)])
    corners = np.concatenate((corners, rng.integers(0, CELLS - 1, (count, 1, 2))), axis=1)
    return corners, torch.from_numpy((corners[..., ::-1] + 1) / CELLS * 2 - 1).float(), rng


def where(clusters, activations):
    attention = clusters(activations, CELLS).softmax(-1)
    at = (torch.arange(CELLS) * 2 + 1) / CELLS - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).flatten(0, 1)
    return attention @ grid


def test_keypoints_start_at_parts_that_follow_the_picture_when_it_is_warped():
    corners, places, rng = parts(96, seed=1)
    warps = Warps.draw(torch.zeros(96, 3, 1, 1), torch.Generator().manual_seed(0))
    moved = ((warps.places(places).numpy()[..., ::-1] + 1) / 2 * CELLS - 1).round().astype(int).clip(0, CELLS - 2)
    moved[:, 4] = corners[:, 4]  # it stays
    clusters = ClusterAttention(config())
    generator = torch.Generator().manual_seed(0)
    clusters.fit(draw_parts(corners, rng), draw_parts(moved, rng), warps, CELLS, generator)
    corners, places, rng = parts(32, seed=2)
    found = where(clusters, draw_parts(corners, rng)).detach()
    distances = torch.cdist(found.transpose(0, 1).flatten(1), places.transpose(0, 1).flatten(1)) / 32**0.5
    assert distances.min(1).values.max() < 0.15
    assert 4 not in distances.argmin(1)


def test_every_seed_starts_at_the_same_parts_which_fade_out_and_leave_a_version_as_trained(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (FEWEST_PICTURES, 128, 128, 3), dtype=np.uint8)
    first, second = (Trainer(images, config(seed=seed), "cpu") for seed in (0, 1))
    clusters = first.model.regressor.clusters
    start = clusters.directions.clone()
    assert start.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert torch.equal(start, second.model.regressor.clusters.directions)
    factors = [clusters.factor.item() for _ in first.run()]
    assert factors == pytest.approx([5, 0, 0, 0, 0, 0, 0, 0, 0, 0], abs=1e-5)
    assert torch.equal(start, clusters.directions)
    first.export(tmp_path)
    predictor = Predictor.load(tmp_path, "cpu")
    assert predictor.model.regressor.clusters is None
    batch = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 127.5 - 1
    expected = first.model.eval().locate(batch).keypoints.detach().numpy()
    assert np.abs(predictor.predict(images[:2]).keypoints - expected).max() < 1e-4


def test_a_version_made_before_they_have_faded_out_uses_them_and_what_continues_from_it_does_not_start_again(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (FEWEST_PICTURES, 128, 128, 3), dtype=np.uint8)
    trainer = Trainer(images, config(), "cpu")
    steps = trainer.run()
    next(steps)
    trainer.export(tmp_path / "early")
    predictor = Predictor.load(tmp_path / "early", "cpu")
    assert predictor.model.regressor.clusters.factor.item() == pytest.approx(5, abs=1e-5)
    batch = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 127.5 - 1
    expected = trainer.model.eval().locate(batch).keypoints.detach().numpy()
    assert np.abs(predictor.predict(images[:2]).keypoints - expected).max() < 1e-4
    list(steps)
    trainer.export(tmp_path / "whole")
    for version, factors in (("early", [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ("whole", [0] * 10)):
        more = Trainer(images, config(), "cpu")
        more.load_weights(tmp_path / version / "weights.safetensors")
        assert [more.model.regressor.clusters.factor.item() for _ in more.run()] == pytest.approx(factors, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_shortest_runs_leave_no_clusters_either(steps):
    images = np.random.default_rng(0).integers(0, 255, (FEWEST_PICTURES, 64, 64, 3), dtype=np.uint8)
    trainer = Trainer(images, config(steps=steps, image_size=64), "cpu")
    assert trainer.model.regressor.clusters.factor == 10
    list(trainer.run())
    assert trainer.model.regressor.clusters.factor == 0


def test_a_run_stopped_while_they_fade_and_resumed_takes_the_same_steps(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (FEWEST_PICTURES, 64, 64, 3), dtype=np.uint8)
    settings = config(steps=16, image_size=64, occlusion_start=0.0)
    unbroken = Trainer(images, settings, "cpu")
    unbroken.save_checkpoint(tmp_path / "0")
    for _, report in zip(range(5), unbroken.run(), strict=False):
        unbroken.save_checkpoint(tmp_path / str(report.step))
    expected = unbroken.model.state_dict()
    for stop, factor in ((0, 10), (2, 3.75), (4, 0)):
        resumed = Trainer(images, settings, "cpu")
        assert resumed.load_checkpoint(tmp_path / str(stop))
        assert resumed.model.regressor.clusters.factor.item() == pytest.approx(factor, abs=1e-5)
        for _ in zip(range(5 - stop), resumed.run(), strict=False):
            pass
        found = resumed.model.state_dict()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_few_pictures_fit_nothing_and_still_train():
    images = np.random.default_rng(0).integers(0, 255, (FEWEST_PICTURES - 1, 128, 128, 3), dtype=np.uint8)
    trainer = Trainer(images, config(), "cpu")
    assert all(np.isfinite(report.losses["total"]) for report in trainer.run())
    assert trainer.model.regressor.clusters.factor == 0


def test_without_features_there_are_no_clusters():
    images = np.zeros((8, 128, 128, 3), np.uint8)
    assert Trainer(images, replace(config(), features="none"), "cpu").model.regressor.clusters is None
    assert Trainer(images, config(attention_start="random"), "cpu").model.regressor.clusters is None

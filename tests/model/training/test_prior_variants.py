"""The paper's table of prior variants: what each starts from, what moves, and that each survives an export."""

import json

import numpy as np
import pytest
import torch

from model.config import SettingError, resolve
from model.network.pose_prior_learner import LEAST_LINK_WEIGHT, PosePriorLearner, inverse_softplus
from model.predictor import Predictor
from model.training.losses import memory_loss
from model.training.trainer import Trainer
from model.version.prior import PosePrior

COLUMNS = [  # keypoint prior, trainable, connectivity prior, trainable; in the table's order
    ("predefined", True, "predefined", True),
    ("predefined", True, "predefined", False),
    ("predefined", False, "predefined", True),
    ("predefined", False, "predefined", False),
    ("predefined", True, "random", True),
    ("predefined", False, "random", True),
    ("random", True, "predefined", True),
    ("random", False, "predefined", True),
    ("random", True, "random", True),
    ("random", False, "random", True),
    ("memory", False, "random", True),
]


def _config(tiny, column):
    names = ("keypoint_prior", "keypoint_prior_trainable", "connectivity_prior", "connectivity_prior_trainable")
    return resolve("compact", {**tiny.to_dict(), **dict(zip(names, column, strict=True))})


def _trainer(images, tiny, column, prior):
    config = _config(tiny, column)
    return Trainer(images, config, device="cpu", prior=prior if config.needs_prior else None)


def _copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: "-".join(map(str, column)))
def test_every_column_of_the_table_trains_what_it_should_and_loads_again(images, tiny, prior, tmp_path, column):
    keypoints_from, keypoints_move, links_from, links_move = column
    trainer = _trainer(images, tiny, column, prior)
    model = trainer.model
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}

    at_start = PosePrior.from_model(model)
    if keypoints_from == "predefined":
        assert torch.equal(at_start.keypoint_prior, prior.keypoint_prior)
    if links_from == "predefined":
        expected = prior.link_weights.clamp_min(LEAST_LINK_WEIGHT)
        torch.testing.assert_close(at_start.link_weights, expected, rtol=1e-4, atol=0)

    before = _copy(model)
    list(trainer.run())
    after = _copy(model)

    assert torch.equal(before["link_logits"], after["link_logits"]) != links_move
    assert (id(model.link_logits) in optimised) == links_move
    if keypoints_from == "memory":
        assert "own_prior" not in after
        assert not torch.equal(at_start.keypoint_prior, PosePrior.from_model(model).keypoint_prior)
    else:
        assert torch.equal(before["own_prior"], after["own_prior"]) != keypoints_move
        assert (id(model.own_prior) in optimised) == keypoints_move
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"memory.codebook", "memory.use_counts"} <= moved
    assert {name.split(".")[1] for name in moved if name.startswith("memory.")} >= {"encoder", "decoder"}
    assert any(name.startswith("regressor.") for name in moved)

    trainer.export(tmp_path)
    exported = PosePrior.from_json(json.loads((tmp_path / "prior.json").read_text()))
    assert exported.keypoint_prior_source == keypoints_from
    given = keypoints_from == "predefined" or links_from == "predefined"
    assert (exported.keypoint_names == prior.keypoint_names) == given
    if keypoints_from != "memory":
        assert torch.equal(exported.keypoint_prior, after["own_prior"])
    loaded, direct = Predictor.load(tmp_path, "cpu"), Predictor(model, "cpu")
    np.testing.assert_allclose(loaded.predict(images, 2).trajectory, direct.predict(images, 2).trajectory, atol=1e-5)


def test_a_trained_prior_starts_a_further_training(images, tiny, tmp_path):
    trainer = _trainer(images, tiny, COLUMNS[-1], None)
    list(trainer.run())
    trainer.export(tmp_path)
    learned = PosePrior.from_json(json.loads((tmp_path / "prior.json").read_text()))
    again = PosePrior.from_model(_trainer(images, tiny, COLUMNS[0], learned).model)
    assert torch.equal(again.keypoint_prior, learned.keypoint_prior)
    torch.testing.assert_close(again.link_weights, learned.link_weights, rtol=1e-3, atol=1e-6)


def test_random_keypoint_prior_lies_in_the_middle_half_and_follows_the_seed(images, tiny):
    column = ("random", False, "random", True)
    first, again = (_trainer(images, tiny, column, None).model.own_prior for _ in range(2))
    other = resolve("compact", {**_config(tiny, column).to_dict(), "seed": 1})
    assert torch.equal(first, again)
    assert not torch.equal(first, Trainer(images, other, device="cpu").model.own_prior)
    assert 0.05 < first.abs().max() <= 0.5


def test_memory_pathway_leaves_a_trained_prior_alone(tiny, prior):
    model = PosePriorLearner(_config(tiny, COLUMNS[0]), keypoint_prior=prior.keypoint_prior)
    out = model(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    memory_loss(out.recalled, out.keypoints, 100).backward(retain_graph=True)
    assert model.own_prior.grad is None
    out.reconstruction.square().mean().backward()
    assert model.own_prior.grad.abs().sum() > 0


def test_trained_prior_does_not_decay(images, tiny, prior):
    trainer = _trainer(images, tiny, COLUMNS[0], prior)
    decayed, plain = trainer.optimizer.param_groups
    assert not any(p is trainer.model.own_prior for p in decayed["params"])
    assert any(p is trainer.model.own_prior for p in plain["params"])


def test_prior_of_the_caller_is_not_changed_by_training(images, tiny, prior):
    before = prior.keypoint_prior.clone()
    list(_trainer(images, tiny, COLUMNS[0], prior).run())
    assert torch.equal(prior.keypoint_prior, before)


@pytest.mark.parametrize("weight", [1e-4, 0.018, 1.0, 30.0, 900.0])
def test_inverse_softplus_is_the_inverse(weight):
    value = torch.tensor(weight)
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(value)), value, rtol=1e-4, atol=0)


def test_prior_and_settings_must_belong_together(images, tiny, prior):
    needs = _config(tiny, COLUMNS[0])
    with pytest.raises(ValueError, match="no prior is given; keypoint_prior=predefined"):
        Trainer(images, needs, device="cpu")
    with pytest.raises(ValueError, match="a prior is given, but"):
        Trainer(images, tiny, device="cpu", prior=prior)
    with pytest.raises(ValueError, match="the prior has 5 keypoints; the setting num_keypoints is 6"):
        Trainer(images, resolve("compact", {**needs.to_dict(), "num_keypoints": 6}), device="cpu", prior=prior)
    unlinked = PosePrior.from_json({**prior.to_json(), "connectivity_prior": None, "links": []})
    with pytest.raises(ValueError, match="no link with a weight above 0"):
        Trainer(images, needs, device="cpu", prior=unlinked)
    keypoints_alone = _config(tiny, COLUMNS[4])
    assert Trainer(images, keypoints_alone, device="cpu", prior=unlinked).keypoint_names == prior.keypoint_names


def test_memorys_prior_can_not_be_trained_and_autolink_takes_none(tiny):
    with pytest.raises(SettingError, match="distilled, never trained"):
        _config(tiny, ("memory", True, "random", True))
    with pytest.raises(SettingError, match="autolink has no keypoint prior") as caught:
        resolve("compact", {"method": "autolink", "keypoint_prior": "random"})
    assert caught.value.name == "keypoint_prior"

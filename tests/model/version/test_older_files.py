"""Files of the first release are read: later settings have the values that match its behaviour."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import PPLConfig
from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version import tensor_files
from model.version.prior import PosePrior

LATER = (
    "method",
    "keypoint_prior",
    "keypoint_prior_trainable",
    "connectivity_prior",
    "connectivity_prior_trainable",
    "mode",
    "frames_per_clip",
    "history_snapshots",
    "link_colours",
    "object_colour",
)


def _older(settings):
    return {name: value for name, value in settings.items() if name not in LATER}


@pytest.fixture
def tiny(tiny):
    """Switch off what later presets switch on."""
    return replace(tiny, link_colours=0, object_colour=False)


@pytest.fixture
def trainer(images, tiny):
    trainer = Trainer(images, tiny, device="cpu")
    for report in trainer.run():
        if report.step == 3:
            break
    return trainer


def test_settings_of_the_first_release_mean_what_they_meant(tiny):
    assert PPLConfig.from_dict(_older(tiny.to_dict())) == tiny


def test_version_of_the_first_release_predicts_as_before(images, trainer, tmp_path):
    trainer.export(tmp_path)
    (tmp_path / "history.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(_older(config)))
    ours, theirs = Predictor.load(tmp_path, "cpu"), Predictor(trainer.model, "cpu")
    np.testing.assert_allclose(ours.predict(images, 1).trajectory, theirs.predict(images, 1).trajectory, atol=1e-6)


def test_prior_of_the_first_release_came_from_the_memory(trainer, tmp_path):
    trainer.export(tmp_path)
    written = json.loads((tmp_path / "prior.json").read_text())
    del written["keypoint_prior_source"]
    assert PosePrior.from_json(written).keypoint_prior_source == "memory"


def test_weights_of_a_plain_ppl_have_the_names_they_had(trainer):
    parts = {name.split(".")[0] for name in trainer.model.state_dict()}
    assert parts == {"link_logits", "memory", "reconstructor", "regressor"}


def test_checkpoint_of_the_first_release_goes_on_and_its_history_begins_there(images, tiny, trainer, tmp_path):
    unbroken = Trainer(images, tiny, device="cpu")
    list(unbroken.run())
    trainer.save_checkpoint(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors, facts = tensor_files.load(path)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("history.")}
    tensor_files.save(path, tensors, {"step": facts["step"], "config": _older(facts["config"]), "saved_at": 0.0})
    resumed = Trainer(images, tiny, device="cpu")
    assert resumed.load_checkpoint(tmp_path)
    list(resumed.run())
    assert [snapshot.step for snapshot in resumed.history.snapshots] == [3, 4, 5, 6]
    expected = unbroken.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())

"""Whether the thing is there: evidence of training pictures against that of pictures made without it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import PRESENCE_FILE, Predictor
from model.presence import calibrate_presence, collect_evidence, make_absent
from model.scoring.presence import Presence
from model.training.trainer import Trainer
from model.version.tensor_files import CheckpointError, save_json


def evidence(rng, count, *, present):
    """Rows of score, entropy, distance and a description of eight numbers."""
    score = rng.beta(16, 4, count) if present else rng.beta(8, 8, count)
    entropy = rng.normal(2.0 if present else 2.6, 0.3, count)
    seen = rng.normal(0 if present else 0.5, 1, (count, 8)) * np.geomspace(1, 1000, 8)
    return np.column_stack((score, entropy, rng.gamma(3, 0.05, count), seen))


@pytest.fixture
def fitted():
    rng = np.random.default_rng(0)
    return Presence.fit(evidence(rng, 300, present=True), evidence(rng, 200, present=False))


def test_probabilities_are_calibrated(fitted):
    rng = np.random.default_rng(1)
    there, absent = (fitted.probability(evidence(rng, 2000, present=present)) for present in (True, False))
    assert (there[:, None] > absent[None]).mean() > 0.9
    joined, truth = np.concatenate((there, absent)), np.repeat([1.0, 0.0], 2000)
    bins = np.clip((joined * 10).astype(int), 0, 9)
    error = sum(abs((joined - truth)[bins == b].mean()) * (bins == b).mean() for b in range(10) if (bins == b).any())
    assert error < 0.05


def test_it_survives_json(fitted):
    rows = evidence(np.random.default_rng(2), 20, present=True)
    back = Presence.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_allclose(back.probability(rows), fitted.probability(rows), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", [1.0]),
        ("precision", [[1.0]]),
        ("weights", [1, 2]),
        ("scale", [1, 1, 0, 1]),
        ("centre", "x"),
        ("format", 9),
    ],
)
def test_damaged_files_are_refused(fitted, tmp_path, name, value):
    with pytest.raises(ValueError):
        Presence.from_json({**fitted.to_json(), name: value})
    with pytest.raises(ValueError):
        Presence.from_json([])


def test_a_version_answers_with_probabilities(tiny, images, tmp_path):
    pictures = np.tile(images, (4, 1, 1, 1))
    trainer = Trainer(pictures, tiny, "cpu")
    trainer.export(tmp_path)
    assert Predictor.load(tmp_path, "cpu").predict(images).presences is None, "as of a version of before"
    presence = calibrate_presence(trainer.model, pictures)
    save_json(tmp_path / PRESENCE_FILE, presence.to_json())
    found = Predictor.load(tmp_path, "cpu").predict(images, 2).presences
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, presence.probability(collect_evidence(trainer.model, images)), atol=0.02)
    (tmp_path / PRESENCE_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=PRESENCE_FILE):
        Predictor.load(tmp_path, "cpu")


def test_few_pictures_calibrate_nothing(tiny, images):
    assert calibrate_presence(PosePriorLearner(tiny), images) is None


def test_made_pictures_lack_the_thing(tiny, images):
    torch.manual_seed(0)
    model = PosePriorLearner(tiny)
    made = make_absent(model, images, np.random.default_rng(0))
    assert (made.dtype, made.shape) == (np.uint8, (5 * 48, 32, 32, 3))
    assert (make_absent(model, images, np.random.default_rng(0)) == made).all()
    shuffled = made[48 : 2 * 48]
    for row, picture in enumerate(shuffled):
        original = images[row % 10]
        assert (np.sort(picture.ravel()) == np.sort(original.ravel())).all(), "the same pixels at other places"
        assert (picture != original).any()

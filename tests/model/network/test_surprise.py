"""Surprise: the distance of a pose to the memory, 1 at the 99th percentile of the training pictures."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.network.memory import recall, surprise_scale
from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version.tensor_files import CheckpointError
from service.contract.media.fitting import fit_square
from service.contract.media.pictures import open_picture

SAMPLES = Path(__file__).resolve().parents[3] / "service" / "samples"


@pytest.fixture(scope="module")
def version(images, tiny, tmp_path_factory):
    trainer = Trainer(images, tiny, "cpu")
    list(trainer.run())
    folder = tmp_path_factory.mktemp("version")
    trainer.export(folder)
    return folder


@pytest.fixture
def exported(version, tmp_path):
    """A copy of the version that a test may change."""
    return shutil.copytree(version, tmp_path, dirs_exist_ok=True)


def test_exported_scale_is_the_99th_percentile_of_the_training_pictures(images, exported):
    surprises = Predictor.load(exported, "cpu").predict(images).surprises
    assert surprises.shape == (len(images),)
    assert surprises.dtype == np.float32
    assert np.quantile(surprises, 0.99) == pytest.approx(1, abs=0.02)  # batches of other sizes round otherwise


def test_codes_are_the_vectors_that_the_memory_retrieves(images, exported):
    predictor = Predictor.load(exported, "cpu")
    found = predictor.predict(images[:5], codes=True)
    memory = predictor.model.memory
    assert found.codes.shape == (5, predictor.config.num_banks)
    vectors = memory.lookup(torch.from_numpy(found.codes.astype(np.int64)))
    assert torch.equal(vectors, memory(torch.from_numpy(found.keypoints)).vectors)
    assert predictor.predict(images[:5]).codes is None


def test_surprise_is_of_the_pose_before_refinement(images, exported):
    predictor = Predictor.load(exported, "cpu")
    plain, refined = predictor.predict(images[:4], codes=True), predictor.predict(images[:4], 2, codes=True)
    np.testing.assert_allclose(plain.surprises, refined.surprises, rtol=1e-6)
    np.testing.assert_array_equal(plain.codes, refined.codes)


def test_distance_is_measured_to_what_the_memory_decodes(exported):
    memory = Predictor.load(exported, "cpu").model.memory
    poses = torch.rand(3, 5, 2) * 2 - 1
    expected = (memory(poses).keypoints - poses).square().sum(-1).mean(-1).sqrt()
    torch.testing.assert_close(recall(memory, poses)[1], expected)


@pytest.mark.parametrize("change", ["no file", "no member", "null"])
def test_version_without_a_scale_says_nothing(images, exported, change):
    path = exported / "memory.json"
    memory = json.loads(path.read_text())
    if change == "no file":
        path.unlink()
    elif change == "no member":
        del memory["surprise_scale"]
        path.write_text(json.dumps(memory))
    else:
        path.write_text(json.dumps({**memory, "surprise_scale": None}))
    found = Predictor.load(exported, "cpu").predict(images[:2], codes=True)
    assert found.surprises is None
    assert found.codes is not None


@pytest.mark.parametrize("text", ['{"surprise_scale": 0}', '{"surprise_scale": "much"}', "[]", "{"])
def test_damaged_scale_is_refused(exported, text):
    (exported / "memory.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"memory\.json|surprise_scale"):
        Predictor.load(exported, "cpu")


def test_memory_that_holds_every_pose_has_no_scale():
    assert surprise_scale(torch.zeros(9)) is None
    assert surprise_scale(torch.linspace(0, 1, 101)) == pytest.approx(0.99)


def smooth(rng, count):
    """Pictures of coloured clouds, coarse to fine."""
    seeds = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in rng.integers(2, 17, count))
    return np.stack([np.asarray(Image.fromarray(seed).resize((64, 64), Image.Resampling.BILINEAR)) for seed in seeds])


def shuffled(rng, squares):
    """The same pictures, their sixteen parts in another order: the same colours and textures, and no dog."""
    parts = squares.reshape(-1, 4, 16, 4, 16, 3).swapaxes(2, 3).reshape(-1, 16, 16, 16, 3)
    parts = np.stack([part[rng.permutation(16)] for part in parts])
    return parts.reshape(-1, 4, 4, 16, 16, 3).swapaxes(2, 3).reshape(-1, 64, 64, 3)


def test_sample_dog_is_surprised_by_what_is_no_dog():
    predictor = Predictor.load(SAMPLES / "dog", "cpu")
    with zipfile.ZipFile(SAMPLES / "dog_heldout.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:60]
        dogs = np.stack([fit_square(open_picture(archive.read(name)), 64)[0] for name in names])
    rng = np.random.default_rng(0)
    others = {
        "noise": rng.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8),
        "clouds": smooth(rng, 60),
        "shuffled": shuffled(rng, dogs),
        "upside down": dogs[:, ::-1].copy(),
    }
    held_out = predictor.predict(dogs).surprises
    assert np.mean(held_out > 1) < 0.06, "dogs that training never saw are as ordinary as those it saw"
    for kind, pictures in others.items():
        surprises = predictor.predict(pictures).surprises
        higher = (surprises[:, None] > held_out[None]).mean()  # of all pairs: the area under the ROC curve
        assert higher > 0.93, f"{kind} surprises more than a dog in only {higher:.1%} of the pairs"
        assert np.median(surprises) > 1, kind

"""Quality against labelled errors, and presence: the versions that are made for them, and their figures."""

import json

import numpy as np
import pytest

from benchmarks.accuracy import presence
from benchmarks.accuracy.packs import read_pack
from benchmarks.accuracy.quality import SPOILT, Trial, correlate, main, make_versions, spoil

TINY = {"image_size": 32, "base_width": 8, "num_keypoints": 4, "num_banks": 3, "bank_size": 4, "token_dim": 16}
TINY |= {"mask_grid": 4, "perceptual_size": 32, "batch_size": 4, "features": "none"}


@pytest.fixture
def pack(pack_file):
    return read_pack(pack_file, 32)


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_pictures_are_what_they_are_called(pack, what):
    train, test = spoil(what, pack, pack)
    assert len(test.images) == len(test.keypoints) == 6
    if what in ("steps", "rate"):
        assert train is pack.train
    elif what == "thirty":
        assert len(train.images) == len(train.keypoints) == 14  # the pack has no more
    elif what == "mixed":
        assert len(train.images) == 28
    else:
        # the bar is pasted at most 0.4 as large; its labels stay on it
        for image, points, visible in zip(train.images, train.keypoints, train.visibility, strict=True):
            assert visible.all()
            assert np.ptp(points, axis=0).max() < 0.4
            assert ((points > -0.1) & (points < 1.1)).all()
            x, y = (points[0] * 32).astype(int)
            assert image[y, x, 0] > 120, "the middle of the bar"


def test_a_measured_version_is_reported_and_not_trained_again(pack, tmp_path, capsys):
    trial = Trial("a", (1, 16), 0, settings=TINY)
    measured = make_versions(tmp_path, trial, pack, pack)
    first, second = (f"{pack.name}.{name}" for name in ("spoilt-a-1", "good-a-16"))
    assert list(measured) == [first, second], "a version of 1 step is spoilt"
    assert all(0.3 < ratio < 3 for ratio in measured.values()), "about as good as the mean pose"
    stored = json.loads((tmp_path / first / "measured.json").read_text())
    assert [stored[key] for key in ("spoilt", "pictures", "keypoints")] == ["steps", 14, 4]
    weights = [(tmp_path / name / "weights.safetensors") for name in (first, second)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    before = weights[0].stat().st_mtime_ns
    assert make_versions(tmp_path, trial, pack, pack) == {}
    assert list(make_versions(tmp_path, trial, pack, pack, again=True)) == [first, second]
    assert weights[0].stat().st_mtime_ns == before
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith(second)
    found = json.loads(printed[printed.index("{") :])
    assert found["spoilt called doubtful or failed"] == [1, 1], "14 pictures are few"


def test_correlation_is_of_ranks():
    rows = [{"score": score, "ratio": ratio} for score, ratio in ((0, 0.9), (0.1, 0.5), (0.2, 0.49), (9, 0.1))]
    assert correlate(rows) == 1
    assert correlate([{**row, "score": -row["score"]} for row in rows]) == -1
    tied = [{"score": score, "ratio": ratio} for score, ratio in ((0, 3), (0, 2), (1, 1))]
    assert correlate(tied) == pytest.approx(0.866, abs=1e-3)
    assert correlate(tied[:2]) is None


def test_calibration_and_area_of_known_probabilities():
    rng = np.random.default_rng(0)
    values = rng.uniform(size=40_000)
    truth = rng.uniform(size=40_000) < values
    there, absent = values[truth], values[~truth]
    assert presence.calibration_error(there, [absent]) < 0.02
    assert presence.calibration_error(there**3, [absent**3]) > 0.1
    assert presence.auroc(np.array([0.5, 0.9]), np.array([0.5, 0.1])) == 0.875
    # each kind weighs the same, whatever its number
    assert presence.calibration_error(np.ones(9), [np.zeros(7), np.ones(1)]) == pytest.approx(0.25)


def test_presence_is_scored_for_each_kind(pack, tmp_path):
    from model.config import resolve
    from model.training.trainer import Trainer

    train = np.tile(pack.train.images, (2, 1, 1, 1))
    trainer = Trainer(train, resolve(overrides={**TINY, "steps": 1}), "cpu")
    found = presence.score(trainer.model, train, pack.test.images, {"none": np.zeros((3, 32, 32, 3), np.uint8)})
    assert list(found["kinds"]) == [*presence.KINDS, "none"]
    assert all(0 <= row["auroc"] <= 1 and 0 <= row["ece"] <= 1 for row in found["kinds"].values())


def test_places_beside_an_animal_do_not_touch_it():
    for x in range(0, 500, 25):
        box = (float(x), 100.0, 120.0, 120.0)
        other = presence._elsewhere((640, 480), box)
        assert abs(other[0] - x) >= 120 or abs(other[1] - 100) >= 120
        assert 0 <= other[0] <= 520
        assert 0 <= other[1] <= 360
    assert presence._elsewhere((100, 100), (0.0, 0.0, 90.0, 90.0)) is None

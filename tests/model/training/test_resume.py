"""A run that is stopped after any step and resumed equals an unbroken one, bit for bit."""

import pytest
import torch

from model.config import resolve
from model.training.trainer import Trainer
from model.version.tensor_files import CheckpointError

BASE = {"horizontal_flip": True, "revive_after": 2, "history_snapshots": 2, "steps": 4}
RUNS = {
    "ppl-stills": {},
    "ppl-clips": {"mode": "clips", "augmentation": 1.0, "features": "efficientnet_lite0"},
    "autolink-stills": {"method": "autolink"},
    "autolink-clips": {"method": "autolink", "mode": "clips"},
    "predefined-trained": {
        "keypoint_prior": "predefined",
        "keypoint_prior_trainable": True,
        "connectivity_prior": "predefined",
    },
    "predefined-frozen": {
        "keypoint_prior": "predefined",
        "connectivity_prior": "predefined",
        "connectivity_prior_trainable": False,
        "weight_decay": 0.1,
    },
}


@pytest.fixture(params=RUNS)
def start(request, images, tiny, clips, prior):
    """Return a function that starts the same run."""
    config = resolve("compact", {**tiny.to_dict(), **BASE, **RUNS[request.param]})
    given = {"clips": clips if config.mode == "clips" else None, "prior": prior if config.needs_prior else None}
    return lambda: Trainer(images, config, device="cpu", **given)


def _everything(trainer):
    """Return weights, buffers, moments and snapshots by name."""
    found = dict(trainer.model.state_dict())
    for index, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": value for name, value in state.items()}
    return found | {f"history.{name}": value for name, value in trainer.history.to_tensors().items()}


def _assert_same(ours, theirs):
    ours, theirs = _everything(ours), _everything(theirs)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_resuming_from_any_step_gives_the_unbroken_run(start, tmp_path):
    unbroken = start()
    unbroken.save_checkpoint(tmp_path / "0")
    for report in unbroken.run():
        unbroken.save_checkpoint(tmp_path / str(report.step))
    for stop in range(5):
        resumed = start()
        assert resumed.load_checkpoint(tmp_path / str(stop))
        assert [report.step for report in resumed.run()] == list(range(stop + 1, 5))
        _assert_same(unbroken, resumed)


def test_run_in_pieces_of_one_step_gives_the_unbroken_run(start, tmp_path):
    unbroken = start()
    list(unbroken.run())
    for _ in range(4):
        piece = start()
        piece.load_checkpoint(tmp_path)
        next(piece.run())
        piece.save_checkpoint(tmp_path)
    _assert_same(unbroken, piece)


def test_run_on_clips_does_not_go_on_as_one_on_stills(images, tiny, clips, tmp_path):
    Trainer(images, tiny, device="cpu", clips=clips).save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="was trained on clips; these are stills"):
        Trainer(images, tiny, device="cpu").load_checkpoint(tmp_path)

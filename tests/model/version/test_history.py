import json

import numpy as np
import pytest
import torch

from model.config import resolve
from model.training.trainer import Trainer
from model.version.prior import History, PosePrior


def _config(tiny, **values):
    return resolve("compact", {**tiny.to_dict(), **values})


def _exported(trainer, folder):
    folder.mkdir()
    trainer.export(folder)
    return json.loads((folder / "history.json").read_text())


@pytest.mark.parametrize(
    ("steps", "snapshots", "due"),
    [
        (100, 3, [0, 25, 50, 75, 100]),
        (100, 0, [0, 100]),
        (4, 50, [0, 1, 2, 3, 4]),
        (1, 50, [0, 1]),
        (7, 2, [0, 2, 5, 7]),
    ],
)
def test_snapshots_are_due_at_the_first_the_last_and_evenly_between(steps, snapshots, due):
    assert sorted(History(steps, snapshots).due) == due


def test_history_begins_before_the_first_step_and_ends_with_the_exported_prior(images, tiny, tmp_path):
    trainer = Trainer(images, _config(tiny, history_snapshots=1), device="cpu")
    start = PosePrior.from_model(trainer.model)
    list(trainer.run())
    history = _exported(trainer, tmp_path / "v")
    prior = json.loads((tmp_path / "v" / "prior.json").read_text())
    assert history["format"] == 1
    assert [snapshot["step"] for snapshot in history["snapshots"]] == [0, 3, 6]
    assert all(np.shape(snapshot["keypoint_prior"]) == (5, 2) for snapshot in history["snapshots"])
    assert all(np.shape(snapshot["link_weights"]) == (10,) for snapshot in history["snapshots"])
    first, middle, last = history["snapshots"]
    np.testing.assert_array_equal(first["keypoint_prior"], start.keypoint_prior.numpy())
    np.testing.assert_array_equal(first["link_weights"], start.link_weights.numpy())
    assert last["keypoint_prior"] == prior["keypoint_prior"]
    assert last["link_weights"] == [prior["connectivity_prior"][i][j] for i in range(5) for j in range(i + 1, 5)]
    assert middle["keypoint_prior"] not in (first["keypoint_prior"], last["keypoint_prior"])


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resumed_run_loses_and_doubles_no_snapshot(images, tiny, tmp_path, stop):
    config = _config(tiny, history_snapshots=2)
    unbroken = Trainer(images, config, device="cpu")
    list(unbroken.run())
    stopped = Trainer(images, config, device="cpu")
    for report in stopped.run():
        if report.step == stop:
            stopped.save_checkpoint(tmp_path)
            break
    resumed = Trainer(images, config, device="cpu")
    resumed.load_checkpoint(tmp_path)
    list(resumed.run())
    whole, parts = _exported(unbroken, tmp_path / "a"), _exported(resumed, tmp_path / "b")
    assert [snapshot["step"] for snapshot in parts["snapshots"]] == [0, 2, 4, 6]
    assert parts == whole


def test_export_on_the_way_closes_with_the_prior_as_it_is_and_keeps_nothing(images, tiny, tmp_path):
    trainer = Trainer(images, _config(tiny, history_snapshots=0), device="cpu")
    for report in trainer.run():
        if report.step == 4:
            early = _exported(trainer, tmp_path / "early")
    assert [snapshot["step"] for snapshot in early["snapshots"]] == [0, 4]
    late = _exported(trainer, tmp_path / "late")
    assert [snapshot["step"] for snapshot in late["snapshots"]] == [0, 6]


def test_autolink_has_links_but_no_keypoint_prior_to_follow(images, tiny, tmp_path):
    config = _config(tiny, method="autolink", history_snapshots=2)
    trainer = Trainer(images, config, device="cpu")
    list(trainer.run())
    trainer.save_checkpoint(tmp_path)
    resumed = Trainer(images, config, device="cpu")
    resumed.load_checkpoint(tmp_path)
    for run, name in ((trainer, "a"), (resumed, "b")):
        snapshots = _exported(run, tmp_path / name)["snapshots"]
        assert [snapshot["step"] for snapshot in snapshots] == [0, 2, 4, 6]
        assert all(snapshot["keypoint_prior"] is None for snapshot in snapshots)
        assert snapshots[0]["link_weights"] != snapshots[-1]["link_weights"]


def test_snapshots_do_not_follow_the_model_they_were_taken_of(images, tiny):
    config = _config(tiny, keypoint_prior="random", keypoint_prior_trainable=True)
    trainer = Trainer(images, config, device="cpu")
    kept = trainer.history.snapshots[0].keypoint_prior.clone()
    list(trainer.run())
    assert torch.equal(trainer.history.snapshots[0].keypoint_prior, kept)
    assert not torch.equal(trainer.model.own_prior, kept)

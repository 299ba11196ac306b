"""Two processes on the CPU against one with the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import SettingError, resolve
from model.data import Batches
from model.predictor import Predictor
from model.process_group import Group
from model.training.distributed import main, pick_rank_device
from model.training.trainer import Trainer
from model.version import tensor_files
from model.version.prior import PosePrior
from tests.support import ranks
from tests.support.forks import Fork

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
EVERY_LOSS = {"link_regularization_weight": 1.0, "occlusion_weight": 1.0, "refinement_weight": 1.0}
EVERY_LOSS |= {"occlusion_start": 0.0, "horizontal_flip": True, "revive_after": 2, "steps": 6}


def _order(tmp_path, images, tiny, **changes):
    """Write pictures and clips to files; return the order that both sides follow."""
    np.save(tmp_path / "images.npy", images)
    clips = changes.pop("clips", None)
    if clips is not None:
        np.save(tmp_path / "clips.npy", clips)
    order = {"images": str(tmp_path / "images.npy"), "settings": {**tiny.to_dict(), **EVERY_LOSS}, **changes}
    return {**order, "clips": str(tmp_path / "clips.npy")} if clips is not None else order


def _by_two(folder, order):
    """Train with two processes; return the checkpoint folder and the reported losses of each."""
    folder.mkdir()
    order = {**order, "meeting": f"file://{folder}/meeting", "out": str(folder)}
    (folder / "order.json").write_text(json.dumps(order))
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = [Fork(log, ENVIRONMENT, ranks.work, folder / "order.json", rank, 2) for rank, log in enumerate(logs)]
    try:
        codes = [process.wait(100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    return [folder / "0", folder / "1"], [json.loads((folder / str(r) / "losses.json").read_text()) for r in range(2)]


def _tensors(folder):
    return tensor_files.load(folder / "checkpoint.safetensors")[0]


@pytest.mark.parametrize("of", ["stills", "clips"])
def test_two_processes_take_the_steps_of_one_with_the_same_batch(images, clips, tiny, tmp_path, of):
    """Start from a checkpoint of one process, so that poses differ and codes do not depend on rounding.

    Only the order of float32 sums differs, 1e-7 of a value: measured after the four steps are 3e-7 of a weight and
    3e-6 of a loss, and ten times that is allowed. Adam's epsilon is raised for it: with 1e-8 a bias whose true
    gradient is zero (that of the attention, before the softmax) goes a whole step the way rounding points. The
    optimiser's moments, which are the gradients, are compared as well; 4e-6 apart on one kind of processor.
    """
    order = _order(tmp_path, images, tiny, clips=clips if of == "clips" else None, eps=1e-3)
    order["settings"].update(steps=100, batch_size=8, learning_rate=1e-4, seed=2)
    first, _ = ranks.train({**order, "stop": 20})
    first.save_checkpoint(tmp_path / "first")
    order.update(resume=str(tmp_path / "first"), stop=24)
    one, losses = ranks.train(order)
    one.save_checkpoint(tmp_path / "one")
    folders, reported = _by_two(tmp_path / "two", order)
    before, ours, theirs, others = (_tensors(folder) for folder in (tmp_path / "first", tmp_path / "one", *folders))
    assert all(torch.equal(theirs[name], others[name]) for name in theirs), "the processes agree bit for bit"
    assert reported[0] == reported[1]
    assert len(losses) == 4
    for expected, got in zip(losses, reported[0], strict=True):
        assert got == pytest.approx(expected, rel=3e-5, abs=1e-7)
        assert {"reconstruction", "boundary", "link_regularization", "memory", "occlusion", "refinement"} < set(got)
    for name, expected in ours.items():
        rtol, atol = (1e-3, 1e-5) if name.startswith("optimizer.") else (1e-5, 3e-6)
        torch.testing.assert_close(theirs[name], expected, rtol=rtol, atol=atol, msg=lambda s, n=name: f"{n}: {s}")
    names = [name for name in before if name.startswith("model.")]
    moved = {name: (ours[name].double() - before[name].double()).abs().max() for name in names}
    assert moved["model.memory.codebook"] > 1e-2
    assert moved["model.reconstructor.stem.weight"] > 1e-4
    assert moved["model.link_logits"] > 1e-5


def test_memory_is_filled_by_the_tokens_of_both_processes(images, tiny, tmp_path):
    order = _order(tmp_path, images, tiny, stop=1)
    one, losses = ranks.train(order)
    one.save_checkpoint(tmp_path / "one")
    folders, reported = _by_two(tmp_path / "two", order)
    for name in ("codebook", "sums", "hits", "use_counts", "idle_steps"):
        ours, theirs = (_tensors(folder)[f"model.memory.{name}"] for folder in (tmp_path / "one", folders[0]))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert reported[0] == [pytest.approx(losses[0], rel=1e-4, abs=1e-6)]


def test_run_goes_on_with_another_number_of_processes(images, tiny, tmp_path):
    """From one process to two and back to one, without frozen batch statistics."""
    order = _order(tmp_path, images, tiny, frozen=False)
    one, _ = ranks.train({**order, "stop": 2})
    one.save_checkpoint(tmp_path / "one")
    folders, reported = _by_two(tmp_path / "two", {**order, "resume": str(tmp_path / "one"), "stop": 4})
    assert len(reported[0]) == 2
    ours, theirs = (_tensors(folder) for folder in folders)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "running statistics too"
    last, losses = ranks.train({**order, "resume": str(folders[0])})
    assert (last.step, len(losses)) == (6, 2)
    assert last.history.snapshots[-1].step == 6
    last_half = _order(tmp_path, images, tiny, frozen=False, resume=str(folders[1]))
    again, repeated = ranks.train(last_half)
    assert repeated == losses
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in last.model.state_dict().items())


def test_torchrun_trains_on_a_folder(images, tiny, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number}.png")
    changed = {**tiny.to_dict(), "steps": 3}
    settings = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "model.training.distributed"),
            *(str(tmp_path / "pictures"), str(tmp_path / "version"), "--device", "cpu", *settings),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads(line)["step"] for line in run.stdout.splitlines()] == [1, 2, 3], "only rank 0 reports"
    assert Predictor.load(tmp_path / "version", "cpu").predict(images).keypoints.shape == (10, 5, 2)


@pytest.fixture
def command(images, tiny, tmp_path, capsys):
    """Run the command in this process on the ten pictures; return its exit status and its standard error."""
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number}.png")

    def _run(version, *options, **changes):
        settings = {**tiny.to_dict(), "steps": 3, "checkpoint_every": 1, **changes}
        settings = {name: value for name, value in settings.items() if value is not None}
        given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        code = main([str(tmp_path / "pictures"), str(version), "--device", "cpu", *map(str, options), *given])
        return code, capsys.readouterr().err

    return _run


def test_command_starts_from_a_prior(command, prior, tmp_path):
    (tmp_path / "prior.json").write_text(json.dumps(prior.to_json()))
    changes = {"keypoint_prior": "predefined", "connectivity_prior": "predefined", "num_keypoints": None}
    assert command(tmp_path / "version", "--prior", tmp_path / "prior.json", **changes) == (0, "")
    made = PosePrior.from_json(json.loads((tmp_path / "version" / "prior.json").read_text()))
    assert made.keypoint_names == prior.keypoint_names
    assert torch.equal(made.keypoint_prior, prior.keypoint_prior)


def test_command_goes_on_with_a_run_that_was_killed(command, images, tiny, tmp_path):
    started = Trainer(images, resolve("compact", {**tiny.to_dict(), "steps": 3, "checkpoint_every": 1}), "cpu")
    next(started.run())
    started.save_checkpoint(tmp_path / "kept")
    (tmp_path / "stopped").mkdir()  # what else a killed run leaves behind
    assert command(tmp_path / "whole") == (0, "")
    assert command(tmp_path / "stopped", "--checkpoint", tmp_path / "kept") == (0, "")
    ours, theirs = (tensor_files.load(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "stopped"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    code, said = command(tmp_path / "whole")
    assert (code, "is there already and not empty" in said) == (2, True)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ((), {"keypoint_prior": "predefined"}, "no prior is given"),
        (("--prior", "absent.json"), {}, "absent.json"),
        ((), {"mode": "clips"}, "no clips are given"),
        (("--clips",), {"mode": "stills"}, "mode is stills, but clips are given"),
        (("--perceptual-weights", "absent.pt"), {}, "absent.pt can't be read"),
        (("--checkpoint", "kept"), {"steps": 4}, "trained with other settings: steps"),
    ],
)
def test_command_refuses_in_a_line_and_leaves_no_folder(
    command, images, tiny, tmp_path, monkeypatch, options, changes, message
):
    monkeypatch.chdir(tmp_path)
    Trainer(images, tiny, "cpu").save_checkpoint(tmp_path / "kept")
    code, said = command(tmp_path / "version", *options, **changes)
    assert (code, said.count("\n")) == (2, 1)
    assert message in said
    assert not (tmp_path / "version").exists()


def test_batch_that_processes_cannot_share_evenly_is_refused(images, tiny):
    with pytest.raises(SettingError, match="batch_size is 4; it must be a multiple of 3"):
        Trainer(images, tiny, "cpu", group=Group(0, 3))


def test_shares_are_parts_of_the_batch_of_one_process(images, clips):
    whole = Batches(images, 6, seed=1, horizontal_flip=True, clips=clips)
    parts = [Batches(images, 6, seed=1, horizontal_flip=True, clips=clips, group=Group(r, 3)) for r in range(3)]
    for at in ("at", "references_at"):
        shares = [getattr(part, at)(5) for part in parts]
        np.testing.assert_array_equal(np.stack(shares, axis=1).reshape(6, 32, 32, 3), getattr(whole, at)(5))


@pytest.mark.parametrize(("device", "processes"), [("cpu", 4), ("cpu", 1)])
def test_processes_share_the_cpu(device, processes):
    assert pick_rank_device(device, processes - 1, processes) == "cpu"

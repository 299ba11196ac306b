"""A training that goes on from a version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.config import SHAPING, parse, resolve, settings
from model.network.pose_prior_learner import PosePriorLearner
from model.version import tensor_files
from model.version.tensor_files import CheckpointError
from service.contract.jobs.job import Continued
from service.contract.jobs.store import JobStatus


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the version that the first test trains."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def base(desk: SimpleNamespace, kept: Path) -> str:
    """A version of a few steps, trained by the first test that asks and copied for the others."""
    if not list(kept.iterdir()):
        job = desk.prepared(desk.tiny(steps=20))
        desk.runner.run(job.id)
        version = desk.jobs.get(job.id).version
        assert version
        shutil.copytree(desk.store.path("dog", version), kept / version)
        return version
    (folder,) = kept.iterdir()
    with desk.store.staging("dog", folder.name) as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        desk.store.publish(draft, "dog", folder.name)
    return folder.name


@pytest.fixture
def continuing(desk: SimpleNamespace, base: str) -> Callable[..., str]:
    """A job that goes on from it, as the gateway makes one."""

    def make(steps: int = 6) -> str:
        job = desk.prepared(desk.tiny(steps=steps))
        names = [f"part {number}" for number in range(4)]
        lineage = [f"dog@{base}"]

        def note(record) -> None:
            record.job.continued_from = Continued(category="dog", version=base, keypoint_names=names, lineage=lineage)

        desk.jobs.update(job.id, note)
        shutil.copy(desk.store.weights_path("dog", base), desk.files.start(job.id))
        return job.id

    return make


def weights(desk: SimpleNamespace, version: str) -> dict[str, torch.Tensor]:
    return tensor_files.load(desk.store.path("dog", version) / "weights.safetensors")[0]


def test_it_starts_from_the_versions_weights(desk, base, continuing, during) -> None:
    job_id = continuing()
    seen: dict[str, torch.Tensor] = {}
    during(1, lambda trainer: seen.update({n: p.detach().clone() for n, p in trainer.model.named_parameters()}))
    desk.runner.run(job_id)
    before, fresh = weights(desk, base), PosePriorLearner(desk.tiny()).state_dict()
    learned = [name for name in seen if name != "link_logits"]  # these learn faster
    assert max((seen[name] - before[name]).abs().max().item() for name in learned) < 0.005  # one step away
    assert max((seen[name] - fresh[name]).abs().max().item() for name in learned) > 0.1


def test_its_version_says_where_it_comes_from_and_keeps_the_names(desk, base, continuing) -> None:
    job_id = continuing()
    desk.runner.run(job_id)
    job = desk.jobs.get(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    info = desk.store.info("dog", job.version)
    assert info["training"]["continued_from"] == {"category": "dog", "version": base, "lineage": [f"dog@{base}"]}
    assert desk.store.prior("dog", job.version)["keypoint_names"] == [f"part {number}" for number in range(4)]
    assert desk.store.history("dog", job.version)["snapshots"][0]["step"] == 0


def test_stopped_and_resumed_it_goes_on_from_its_checkpoint_not_from_the_version(desk, continuing, during) -> None:
    whole, stopped = continuing(), continuing()
    desk.runner.run(whole)
    during(3, lambda trainer: desk.stop.request())
    desk.runner.run(stopped)
    desk.stop.requested = False
    during()
    desk.runner.run(stopped)
    one, two = (weights(desk, desk.jobs.get(job_id).version) for job_id in (whole, stopped))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0)


def test_it_does_better_than_a_fresh_start_of_as_many_steps(desk, base, continuing) -> None:
    fresh, on = desk.prepared(desk.tiny(steps=6)).id, continuing(6)
    for job_id in (fresh, on):
        desk.runner.run(job_id)
    losses = [desk.jobs.get(job_id).metrics["total"] for job_id in (fresh, on)]
    assert losses[1] < losses[0]


def test_weights_of_another_shape_are_refused(desk, base, tmp_path) -> None:
    from model.training.trainer import Trainer
    from worker.training.runner import load_training_input

    job = desk.prepared()
    trainer = Trainer(load_training_input(desk.files, job.id).images, desk.tiny(num_keypoints=5), "cpu")
    with pytest.raises(CheckpointError):
        trainer.load_weights(desk.store.weights_path("dog", base))


def test_lost_or_damaged_weights_fail_the_job(desk, continuing) -> None:
    lost, damaged = continuing(), continuing()
    desk.files.start(lost).unlink()
    desk.files.start(damaged).write_bytes(b"junk")
    for job_id in (lost, damaged):
        desk.runner.run(job_id)
        job = desk.jobs.get(job_id)
        assert job.status is JobStatus.FAILED
        assert job.error
        assert str(desk.files.start(job_id)) not in job.error.detail


OTHER = {
    "int": lambda value: value + 16,
    "float": lambda value: value / 2 + 1e-5,
    "bool": lambda value: not value,
}


def test_settings_that_do_not_shape_the_model_leave_its_weights_as_they_are(desk) -> None:
    """So none is missing in SHAPING that would make weights of another shape."""
    config = desk.tiny()
    shapes = {name: value.shape for name, value in PosePriorLearner(config).state_dict().items()}
    for name, (kind, allowed) in settings().items():
        if name in SHAPING:
            continue
        value = config.to_dict()[name]
        if allowed.choices:
            other = next(choice for choice in allowed.choices if choice != value)
        else:
            other = OTHER[kind](value)
            if allowed.high is not None and kind != "bool":
                other = min(other, allowed.high)
        changed = resolve("compact", {**config.to_dict(), name: parse(name, other)})
        found = {key: tensor.shape for key, tensor in PosePriorLearner(changed).state_dict().items()}
        assert found == shapes, name

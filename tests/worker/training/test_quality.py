"""What becomes of a version whose quality is failed, and the previews of a run."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from model.predictor import Predictor
from model.training.trainer import Trainer
from service.contract.jobs.files import PREVIEW
from service.contract.jobs.progress import EventKind, EventLog
from worker.training import runner

GOOD = {
    "verdict": "good",
    "advice": "look at it",
    "score": 0.6,
    "agreement": 0.6,
    "consistency": 0.7,
    "movement_percent": 8.0,
    "explained": 0.1,
    "idle_keypoints": [2],
    "mean_score": 0.8,
    "pictures": 9,
}


@pytest.fixture
def ended(desk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """ended(verdict, activate) runs a job whose version gets this verdict."""

    def run(verdict: str, activate: object):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(runner, "measure_quality", lambda model, images: {**GOOD, "verdict": verdict})
        job = desk.prepared()
        desk.jobs.update(job.id, lambda record: setattr(record.job, "activate", activate))
        desk.runner.run(job.id)
        return desk.jobs.get(job.id)

    return run


@pytest.mark.parametrize(
    ("verdict", "activate", "active"),
    [
        ("good", True, True),
        ("doubtful", True, True),
        ("failed", True, False),
        ("failed", "always", True),
        ("good", False, False),
    ],
)
def test_failed_versions_become_active_only_if_told(
    desk: SimpleNamespace, ended, redis_client, verdict, activate, active
) -> None:  # type: ignore[no-untyped-def]
    job = ended(verdict, activate)
    assert job.status == "succeeded"
    assert desk.store.active("dog") == (job.version if active else None)
    assert job.quality is not None
    assert job.quality.model_dump() == {**GOOD, "verdict": verdict} == desk.store.info("dog", job.version)["quality"]
    logs = [e.data["message"] for e in EventLog(redis_client).page(job.id, 0, 500).items if e.kind is EventKind.LOG]
    assert ("does not become active" in " ".join(logs)) == (verdict == "failed" and activate is True)
    assert f'ppl_training_versions_total{{verdict="{verdict}"}} 1.0' in desk.metrics.text()
    assert 'ppl_training_quality{name="consistency"} 0.7' in desk.metrics.text()


def test_a_run_is_measured_and_previewed(desk: SimpleNamespace, redis_client) -> None:  # type: ignore[no-untyped-def]
    job, seen = desk.prepared(), []

    def look(model: object, images: object) -> dict[str, object]:  # before the job's files are removed
        seen.append(desk.files.preview(job.id).read_bytes())
        return measured(model, images)

    measured = runner.measure_quality
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "measure_quality", look)
        desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.quality is not None
    assert done.quality.pictures == 9
    steps = [e.data["step"] for e in EventLog(redis_client).page(job.id, 0, 500).items if e.kind is EventKind.PREVIEW]
    assert steps[-1] == 6, "the last checkpoint"
    assert steps == sorted(set(steps))
    kept = desk.store.path("dog", done.version) / PREVIEW
    assert kept.read_bytes() == seen[0]
    assert Image.open(io.BytesIO(seen[0])).format == "PNG"


def test_a_version_of_a_running_job_can_be_estimated_from(desk: SimpleNamespace, redis_client) -> None:  # type: ignore[no-untyped-def]
    job, polled = desk.prepared(), runner.HeldJob.check

    def check(held: runner.HeldJob) -> None:  # after each step
        polled(held)
        if not desk.jobs.get(job.id).checkpoint_versions and not held.publish_requested:
            desk.jobs.request_publish(job.id)
            held.publish_requested = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.HeldJob, "check", check)
        desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    (made,) = done.checkpoint_versions
    assert (done.status, made.step, made.version.endswith("-step2")) == ("succeeded", 2, True)
    assert not desk.jobs.record(job.id).publish_wanted
    assert desk.store.versions("dog") == sorted((made.version, done.version), reverse=True)
    assert desk.store.active("dog") == done.version == desk.store.find_by_job("dog", job.id)
    info = desk.store.info("dog", made.version)
    assert (info["training"]["steps"], info["job_id"]) == (2, job.id)
    assert info["quality"]["pictures"] == 9
    poses = Predictor.load(desk.store.path("dog", made.version), "cpu").predict(np.zeros((1, 32, 32, 3), np.uint8))
    assert np.isfinite(poses.keypoints).all()
    assert desk.store.list_staged() == []


def test_a_checkpoint_of_other_processes_can_be_looked_at(desk: SimpleNamespace) -> None:
    trained, looking = (Trainer(np.zeros((9, 32, 32, 3), np.uint8), desk.tiny(), "cpu") for _ in range(2))
    for _ in range(2):
        next(trained.run())
    folder = desk.files.create("0123456789")
    trained.save_checkpoint(folder)
    looking.show_checkpoint(folder)
    assert looking.step == 0
    for name, value in trained.model.state_dict().items():
        assert (looking.model.state_dict()[name] == value).all(), name
    steps = [[snapshot.step for snapshot in trainer.history.snapshots] for trainer in (trained, looking)]
    assert steps[0] == steps[1] != [0]

"""Jobs that several processes train, on the CPU: real ones where they succeed, else forks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.predictor import Predictor
from model.training.trainer import StepReport, TrainingDivergedError
from model.version.tensor_files import load
from service.contract.jobs.store import JobStatus
from tests.support.forks import PipedFork
from worker.jobs import explain_failure
from worker.training import rank, rank_processes
from worker.training.rank_processes import RankError, RankProcesses, rank_instructions, rebuild_error
from worker.training.training_run import TrainingRun

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def ranks() -> list[int]:
    """The training processes that are children of this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
            except OSError:
                continue
            if b"worker.training.rank" in line and int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(folder.name))
    return sorted(found)


@pytest.fixture
def pair(desk: SimpleNamespace) -> SimpleNamespace:
    """The desk of a worker that trains with two processes."""
    desk.settings = desk.settings.model_copy(update={"training_processes": 2})
    desk.runner.settings = desk.settings
    return desk


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Fork the training processes, as importing torch takes each seconds; forked() returns those that run."""
    forks: list[PipedFork] = []

    def start(command: list[str], **_: object) -> PipedFork:
        assert command == [sys.executable, "-m", "worker.training.rank"]
        forks.append(PipedFork(rank.main))
        return forks[-1]

    process = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(rank_processes, "subprocess", process)
    return lambda: [fork.pid for fork in forks if fork.poll() is None]


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """after(step, act) does something once that step was reported."""

    def arrange(step: int, act: Callable[[], object]) -> None:
        report_step = TrainingRun._report_step

        def watched(run: TrainingRun, report: StepReport) -> None:
            report_step(run, report)
            if report.step == step:
                act()

        monkeypatch.setattr(TrainingRun, "_report_step", watched)

    return arrange


def test_job_of_two_processes_succeeds_and_leaves_none(pair: SimpleNamespace, after: Any) -> None:
    seen: list[int] = []
    after(3, lambda: seen.extend(ranks()))
    job = pair.prepared()
    pair.runner.run(job.id)
    done = pair.jobs.get(job.id)
    assert (done.status, done.error) == (JobStatus.SUCCEEDED, None)
    assert (done.progress.step, done.version) == (6, pair.store.active("dog"))
    assert done.metrics["total"] > 0
    assert len(seen) == 2
    assert ranks() == []
    info = pair.store.info("dog", done.version)
    assert info["training"]["steps"] == 6
    memory = Predictor.load(pair.store.path("dog", done.version), "cpu").model.memory
    assert memory.use_counts.sum() == 6 * 4 * 3, "a code in each of three banks for all four pictures of six steps"


def test_cancel_stops_the_processes(pair: SimpleNamespace, after: Any, forked: Any) -> None:
    job = pair.prepared(pair.tiny(steps=100_000))
    seen: list[int] = []

    def cancel() -> None:
        seen.extend(forked())
        pair.jobs.cancel(job.id)

    after(5, cancel)
    pair.runner.run(job.id)
    assert pair.jobs.get(job.id).status is JobStatus.CANCELLED
    assert len(seen) == 2
    assert forked() == []
    assert pair.store.categories() == []


def test_stopped_job_goes_on_with_one_process(pair: SimpleNamespace, after: Any, forked: Any) -> None:
    job = pair.prepared()
    after(3, pair.stop.request)
    pair.runner.run(job.id)
    paused = pair.jobs.record(job.id)
    assert (paused.job.status, paused.checkpointed, paused.starts) == (JobStatus.QUEUED, 3, 0)
    assert forked() == []
    assert load(pair.files.checkpoint(job.id) / "checkpoint.safetensors")[1]["step"] == 3
    pair.stop.requested = False
    pair.runner.settings = pair.settings.model_copy(update={"training_processes": 1})
    pair.runner.run(job.id)
    assert pair.jobs.get(job.id).status is JobStatus.SUCCEEDED


def test_job_goes_on_from_its_checkpoint_after_a_process_was_killed(
    pair: SimpleNamespace, after: Any, forked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(forked()[1])
            os.kill(killed[0], signal.SIGKILL)

    job = pair.prepared()
    after(3, kill)
    pair.runner.run(job.id)
    left = pair.jobs.record(job.id)
    assert (left.job.status, left.starts) == (JobStatus.RUNNING, 1)
    assert not pair.jobs.is_leased(job.id)
    assert "of 2 (signal 9) ended without a report" in caplog.text
    assert forked() == []
    assert load(pair.files.checkpoint(job.id) / "checkpoint.safetensors")[1]["step"] == 2
    pair.runner.run(job.id)
    assert pair.jobs.get(job.id).status is JobStatus.SUCCEEDED


def test_error_of_a_process_is_raised_with_its_reason(pair: SimpleNamespace, tmp_path: Path, forked: Any) -> None:
    job = pair.prepared()
    pair.files.pictures(job.id).unlink()
    order = {
        **rank_instructions(job.id, pair.tiny(), pair.settings, cropped=False),
        "meeting": f"file://{tmp_path}/meeting",
    }
    with RankProcesses(order, lambda: None) as both:
        both.send("step")
        with pytest.raises(RankError, match=r"of 2: TrainingFailed: .* were deleted"):
            both.receive("step")
    assert forked() == []


@pytest.mark.parametrize(
    ("kind", "text", "number", "type_"),
    [
        ("TrainingDivergedError", "the total loss is nan at step 3", None, TrainingDivergedError),
        ("OutOfMemoryError", "CUDA out of memory", None, MemoryError),
        ("OSError", "No space left on device", errno.ENOSPC, OSError),
        ("SafetensorError", "I/O error: No space left on device (os error 28)", None, RankError),
    ],
)
def test_failure_of_a_process_has_the_same_code_as_of_one_alone(
    kind: str, text: str, number: int | None, type_: type[Exception]
) -> None:
    error = rebuild_error({"kind": kind, "error": text, "errno": number}, "training process 2 of 2")
    assert type(error) is type_
    code = (
        {"T": "training_diverged", "O": "disk_full", "S": "disk_full"}[kind[0]] if kind != "OutOfMemoryError" else None
    )
    assert code is None or explain_failure(error).code == code
    assert code is not None or "out of memory" in explain_failure(error).detail


def test_batch_that_two_processes_cannot_share_is_refused(pair: SimpleNamespace) -> None:
    job = pair.prepared(pair.tiny(batch_size=5))
    pair.runner.run(job.id)
    done = pair.jobs.get(job.id)
    assert done.status is JobStatus.FAILED
    assert "batch_size is 5; it must be a multiple of 2" in done.error.detail

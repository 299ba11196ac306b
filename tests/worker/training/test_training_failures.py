from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from model.training.trainer import Trainer
from service.contract.errors import TooFewPictures
from service.contract.jobs.record import MAX_CRASHES_WITHOUT_PROGRESS
from service.contract.jobs.store import Job, JobRecord, JobStatus
from worker.jobs import explain_failure


def error_of(desk: SimpleNamespace, job: Job) -> tuple[str, str]:
    failed = desk.jobs.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.finished_at is not None
    assert failed.progress.eta_s is None
    assert desk.files.ids() == []
    assert not desk.jobs.is_leased(job.id)
    return failed.error.code, failed.error.detail


def test_nan_fails_the_job_and_leaves_the_active_version(desk: SimpleNamespace, during: Callable[..., None]) -> None:
    good, bad = desk.prepared(), desk.prepared()
    desk.runner.run(good.id)
    active = desk.store.active("dog")

    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            next(trainer.model.reconstructor.parameters()).fill_(float("nan"))

    during(3, poison)
    desk.runner.run(bad.id)
    code, detail = error_of(desk, bad)
    assert code == "training_diverged"
    assert "nan at step 4" in detail
    assert desk.store.active("dog") == active
    assert desk.store.versions("dog") == [active]


def test_nan_of_the_last_step_is_found_before_anything_is_published(
    desk: SimpleNamespace, during: Callable[..., None]
) -> None:
    job = desk.prepared()

    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.link_logits.fill_(float("nan"))

    during(6, poison)
    desk.runner.run(job.id)
    assert error_of(desk, job)[0] == "training_diverged"
    assert desk.store.categories() == []


def test_missing_weights_fail_the_job_and_say_what_to_do(desk: SimpleNamespace) -> None:
    job = desk.prepared(desk.tiny(perceptual="vgg16"))
    object.__setattr__(desk.settings, "perceptual_weights", Path("/nonexistent/vgg16.pth"))
    desk.runner.run(job.id)
    code, detail = error_of(desk, job)
    assert code == "weights_unavailable"
    assert "vgg16.pth" in detail


def test_full_disk_fails_the_job_with_a_clear_reason(desk: SimpleNamespace, during: Callable[..., None]) -> None:
    job = desk.prepared()

    def full(trainer: Trainer) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    during(2, full)
    desk.runner.run(job.id)
    code, detail = error_of(desk, job)
    assert code == "disk_full"
    assert "/secret" not in detail


def test_full_disk_is_known_from_the_words_of_a_library_too() -> None:
    # as safetensors 0.8 says it on a full tmpfs
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain_failure(error).code == "disk_full"


def test_unexpected_error_fails_the_job_without_telling_its_trace(
    desk: SimpleNamespace, during: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.prepared()

    def surprise(trainer: Trainer) -> None:
        raise KeyError("an inner secret")

    during(2, surprise)
    desk.runner.run(job.id)
    code, detail = error_of(desk, job)
    assert code == "training_failed"
    assert "secret" not in detail
    assert "an inner secret" in caplog.text
    assert job.id in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "training_failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "training_failed"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "training_failed"),
        (TooFewPictures("3 of 4"), "too_few_pictures"),
    ],
)
def test_each_failure_has_its_own_code(error: Exception, code: str) -> None:
    reason = explain_failure(error)
    assert reason.code == code
    assert code != "training_failed" or "batch_size" in reason.detail


def test_settings_of_another_release_fail_the_job_by_name(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.jobs.update(job.id, lambda record: record.job.settings.update(of_a_later_release=1))
    desk.runner.run(job.id)
    assert "of_a_later_release" in error_of(desk, job)[1]


def test_job_that_kills_every_worker_fails_in_the_end(desk: SimpleNamespace) -> None:
    job = desk.prepared()

    def died(record: JobRecord) -> None:
        record.move(JobStatus.RUNNING)
        record.starts = MAX_CRASHES_WITHOUT_PROGRESS + 1

    desk.jobs.update(job.id, died)
    desk.runner.run(job.id)
    code, detail = error_of(desk, job)
    assert code == "abandoned"
    assert "crashed 10 times" in detail


def test_prepared_pictures_that_are_gone_fail_the_job(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.files.pictures(job.id).unlink()
    desk.runner.run(job.id)
    assert "send the job again" in error_of(desk, job)[1]

"""Jobs whose lease expired while their worker could not reach Redis: the worker keeps them and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from model.training.trainer import Trainer
from service.contract.jobs.store import JobStatus
from service.contract.routing import lease_key
from worker import jobs

_LEASE_S = 600


@pytest.fixture
def lapse(desk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobStatus]:
    """lapse(job_id, meanwhile=None) lets a lease run out, with all that happens then, and gives it back again."""
    # a busy machine may take longer than a lease lasts; renewing it meanwhile would undo the lapse
    acquire = desk.jobs.acquire
    monkeypatch.setattr(desk.jobs, "acquire", lambda job_id, holder: acquire(job_id, holder, ttl_s=_LEASE_S))

    def run_out(job_id: str, meanwhile: Callable[[], object] | None = None) -> JobStatus:
        time.sleep(3 * jobs._PERIOD_S)  # all reports so far have been written
        token = desk.jobs._redis.getdel(lease_key(job_id))
        if meanwhile:
            meanwhile()
        desk.jobs.reconcile(lambda job_id: None)
        desk.jobs._redis.set(lease_key(job_id), token, ex=_LEASE_S)
        return desk.jobs.get(job_id).status

    return run_out


def test_it_goes_on(desk: SimpleNamespace, during: Callable[..., None], lapse: Callable[..., JobStatus]) -> None:
    job, seen = desk.prepared(), []

    def wait(trainer: Trainer) -> None:
        deadline = time.monotonic() + 200
        while desk.jobs.get(job.id).status is JobStatus.QUEUED and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append(desk.jobs.get(job.id).status)

    during(3, lambda trainer: seen.append(lapse(job.id)))
    during(4, wait)
    desk.runner.run(job.id)
    assert seen == [JobStatus.QUEUED, JobStatus.RUNNING]
    assert desk.jobs.get(job.id).status is JobStatus.SUCCEEDED


def test_stopped_before_that_was_written_it_waits_with_its_checkpoint(
    desk: SimpleNamespace, during: Callable[..., None], lapse: Callable[..., JobStatus]
) -> None:
    job, seen = desk.prepared(), []

    def lapse_and_stop(trainer: Trainer) -> None:
        seen.append(lapse(job.id))
        desk.stop.request()

    during(3, lapse_and_stop)
    desk.runner.run(job.id)
    record = desk.jobs.record(job.id)
    assert seen == [JobStatus.QUEUED]
    assert (record.job.status, record.ahead, record.checkpointed) == (JobStatus.QUEUED, True, 3)
    assert record.job.progress.step == 3
    assert record.job.progress.stage is None
    during()
    desk.stop.requested = False
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("stopped", [False, True])
def test_its_owners_pause_holds(
    desk: SimpleNamespace, during: Callable[..., None], lapse: Callable[..., JobStatus], stopped: bool
) -> None:
    job, seen = desk.prepared(desk.tiny(steps=100_000, checkpoint_every=100_000)), []

    def lapse_and_pause(trainer: Trainer) -> None:
        seen.append(lapse(job.id, lambda: desk.jobs.pause(job.id)))
        if stopped:
            desk.stop.request()

    during(3, lapse_and_pause)
    desk.runner.run(job.id)
    record = desk.jobs.record(job.id)
    assert seen == [JobStatus.PAUSED]
    assert record.job.status is JobStatus.PAUSED
    assert 3 <= record.checkpointed == record.job.progress.step < 1000
    assert record.job.progress.stage is None
    assert not desk.jobs.is_leased(job.id)


def test_job_that_had_published_its_version_succeeds(
    desk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, lapse: Callable[..., JobStatus]
) -> None:
    job, seen = desk.prepared(), []
    publish = desk.store.publish

    def publish_and_lapse(*args: object) -> None:
        publish(*args)
        seen.append(lapse(job.id, lambda: desk.jobs.pause(job.id)))

    monkeypatch.setattr(desk.store, "publish", publish_and_lapse)
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert seen == [JobStatus.PAUSED]
    assert done.status is JobStatus.SUCCEEDED
    assert desk.store.active("dog") == done.version


def test_failure_is_written_although_the_job_was_paused(
    desk: SimpleNamespace, during: Callable[..., None], lapse: Callable[..., JobStatus]
) -> None:
    job = desk.prepared()

    def lapse_and_fail(trainer: Trainer) -> None:
        assert lapse(job.id, lambda: desk.jobs.pause(job.id)) is JobStatus.PAUSED
        raise RuntimeError("CUDA error: out of memory")

    during(3, lapse_and_fail)
    desk.runner.run(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None


def test_one_cancelled_meanwhile_stays_so(
    desk: SimpleNamespace, during: Callable[..., None], lapse: Callable[..., JobStatus]
) -> None:
    job = desk.prepared()

    def lapse_and_stop(trainer: Trainer) -> None:
        assert lapse(job.id, lambda: desk.jobs.cancel(job.id)) is JobStatus.CANCELLED
        desk.stop.request()

    during(3, lapse_and_stop)
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.CANCELLED
    assert not desk.jobs.is_leased(job.id)

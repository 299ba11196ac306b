"""Events are written with the change that they describe: none lost, none twice, numbered without gaps."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import redis

from service.contract import routing
from service.contract.errors import Diverged, UnknownJob
from service.contract.jobs.job import Checkpoint
from service.contract.jobs.progress import MAX_EVENTS, PROGRESS_EVENTS, EventKind, EventLog, JobEvent
from service.contract.jobs.store import Job, JobRecord, JobStatus, JobStore, NewJob


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


@pytest.fixture
def log(redis_client: redis.Redis) -> EventLog:
    return EventLog(redis_client)


def make(store: JobStore, steps: int = 1000, *statuses: JobStatus) -> Job:
    job = store.create(NewJob("dog", {"steps": steps}, steps))
    for status in statuses:
        store.update(job.id, lambda record, status=status: record.move(status))
    return job


def everything(log: EventLog, job_id: str) -> list[JobEvent]:
    return log.page(job_id, 0, 10_000).items


def at_step(step: int):
    def change(record: JobRecord) -> None:
        record.job.progress.step = step
        record.job.metrics.update(images=9, total=1.0 / step, steps_per_s=2.0)

    return change


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, saved_at=datetime.now(UTC), size_bytes=10 * step, losses={"total": 1.5})


def test_events_describe_a_job_from_creation_to_end(store: JobStore, log: EventLog) -> None:
    job = make(store, 1000, JobStatus.QUEUED, JobStatus.RUNNING)
    store.update(job.id, at_step(500))

    def finish(record: JobRecord) -> None:
        record.checkpoint(checkpoint(1000), 3.0)
        record.move(JobStatus.SUCCEEDED)
        record.job.version = "v1"
        record.job.progress.step = 1000

    store.update(job.id, finish)
    events = everything(log, job.id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events] == [
        *["status"] * 3,
        "progress",
        "metric",
        "checkpoint",
        "progress",
        "metric",
        "status",
        "completed",
    ]
    assert [event.data["status"] for event in events if event.kind is EventKind.STATUS] == [
        "validating",
        "queued",
        "running",
        "succeeded",
    ]
    assert events[4].data == {"step": 500, "total": 0.002, "steps_per_s": 2.0}, "counts are no losses"
    assert events[-1].data == {"status": "succeeded", "version": "v1", "error": None}


def test_failure_is_completed_with_its_reason(store: JobStore, log: EventLog) -> None:
    job = make(store)
    store.update(job.id, lambda record: record.fail(Diverged("loss is nan at step 3")))
    assert everything(log, job.id)[-1].data == {
        "status": "failed",
        "version": None,
        "error": {"code": "training_diverged", "detail": "loss is nan at step 3"},
    }


def test_refused_change_writes_no_event(store: JobStore, log: EventLog) -> None:
    job = make(store)

    def change(record: JobRecord) -> None:
        record.log("never")
        record.move(JobStatus.SUCCEEDED)

    with pytest.raises(Exception, match="can't change to"):
        store.update(job.id, change)
    assert len(everything(log, job.id)) == 1


def test_repeated_write_writes_its_event_once(store: JobStore, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store._redis.eval

    def twice(*args: object) -> object:
        real(*args)  # redis-py's own retry after a connection that broke behind the write
        return real(*args)

    monkeypatch.setattr(store._redis, "eval", twice)
    job = make(store, 10, JobStatus.QUEUED)
    assert [event.data["status"] for event in everything(log, job.id)] == ["validating", "queued"]


def test_writers_side_by_side_leave_no_hole(store: JobStore, log: EventLog) -> None:
    job = make(store)

    def write() -> None:
        for _ in range(20):
            store.update(job.id, lambda record: record.log("a line, ☃ 😀"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = everything(log, job.id)
    assert [event.id for event in events] == list(range(1, 82))
    assert events[-1].data == {"message": "a line, ☃ 😀"}


def test_progress_of_a_long_run_is_thinned(store: JobStore, log: EventLog) -> None:
    job = make(store, 10 * PROGRESS_EVENTS, JobStatus.QUEUED, JobStatus.RUNNING)
    for step in range(1, 61):
        store.update(job.id, at_step(step))
    steps = [event.data["step"] for event in everything(log, job.id) if event.kind is EventKind.PROGRESS]
    assert steps == [10, 20, 30, 40, 50, 60]


def test_oldest_events_are_dropped_beyond_the_bound(
    store: JobStore, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.contract.jobs.progress.KEPT_EVENTS", 200)
    job = make(store)

    def many(record: JobRecord) -> None:
        for number in range(500):
            record.log(str(number))

    for _ in range(2):
        store.update(job.id, many)
    events = everything(log, job.id)
    assert 200 <= len(events) < 400
    assert [event.id for event in events] == list(range(1002 - len(events), 1002)), "the rest keeps its numbers"


def test_pages_go_on_where_they_ended(store: JobStore, log: EventLog) -> None:
    job = make(store)
    store.update(job.id, lambda record: [record.log(str(number)) for number in range(10)])
    seen: list[int] = []
    after = 0
    while True:
        page = log.page(job.id, after, 4)
        seen += [event.id for event in page.items]
        after = page.next
        if not page.has_more:
            break
    assert seen == list(range(1, 12))
    assert log.page(job.id, 11).next == 11
    assert log.page(job.id, 99).items == []


def test_checkpoints_are_listed_newest_first_and_each_once(store: JobStore, log: EventLog) -> None:
    job = make(store)
    for step in (10, 10, 20, 20):
        store.update(job.id, lambda record, step=step: record.checkpoint(checkpoint(step), 1.0))
    found = log.checkpoints(job.id).items
    assert [(item.step, item.size_bytes, item.losses) for item in found] == [
        (20, 200, {"total": 1.5}),
        (10, 100, {"total": 1.5}),
    ]


def test_nothing_is_left_of_a_deleted_job(store: JobStore, log: EventLog, redis_client: redis.Redis) -> None:
    job = make(store)
    store.update(job.id, lambda record: record.checkpoint(checkpoint(1), 1.0))
    store.cancel(job.id)
    store.delete(job.id)
    assert list(redis_client.scan_iter("ppl:job:*")) == []
    for read in (log.page, log.checkpoints):
        with pytest.raises(UnknownJob):
            read(job.id)


def test_job_of_the_first_release_has_no_events_yet(store: JobStore, log: EventLog, redis_client: redis.Redis) -> None:
    job = make(store)
    redis_client.delete(routing.events_key(job.id))
    redis_client.hdel(routing.job_key(job.id), "events")
    assert everything(log, job.id) == []
    store.update(job.id, lambda record: record.move(JobStatus.QUEUED))
    assert [event.id for event in everything(log, job.id)] == [1]
    assert MAX_EVENTS > 1

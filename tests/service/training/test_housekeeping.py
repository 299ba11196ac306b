"""Records of jobs that ended are removed, beyond those kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import redis

from service.contract import routing
from service.contract.jobs import record as record_module
from service.contract.jobs.store import Job, JobRecord, JobStatus, JobStore, NewJob
from service.training.retention import trim_jobs
from tests.support.clocks import set_clock


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def make(store: JobStore, **kwargs: object) -> Job:
    return store.create(NewJob("dog", {"preset": "compact", "steps": 10}, 10, **kwargs))  # type: ignore[arg-type]


def to(status: JobStatus):
    return lambda record: record.move(status)


def test_oldest_that_ended_are_trimmed(store: JobStore, redis_client: redis.Redis) -> None:
    waiting = make(store)
    ended = [make(store) for _ in range(5)]
    notifying = make(store, webhook_url="https://example.org/hook")
    for job in (*ended, notifying):
        store.update(job.id, to(JobStatus.FAILED))
    assert trim_jobs(redis_client, store, 6, 0) == []
    assert trim_jobs(redis_client, store, 3, 60) == [], "they ended less than a minute ago"
    assert trim_jobs(redis_client, store, 3, 0) == [job.id for job in ended[:3]]
    assert {job.id for job in store.page().items} == {waiting.id, notifying.id, ended[3].id, ended[4].id}
    # a job whose webhook is due stays, even if it is the oldest
    assert trim_jobs(redis_client, store, 0, 0) == [job.id for job in ended[3:]]
    assert {job.id for job in store.page().items} == {waiting.id, notifying.id}
    assert [key for key in redis_client.scan_iter() if ended[0].id.encode() in key] == []


def test_trimming_leaves_what_it_cannot_read(store: JobStore, redis_client: redis.Redis) -> None:
    odd, plain = make(store), make(store)
    for job in (odd, plain):
        store.update(job.id, to(JobStatus.FAILED))
    record = json.loads(redis_client.hget(routing.job_key(odd.id), "record"))
    record["job"]["status"] = "archived"  # of a later release
    redis_client.hset(routing.job_key(odd.id), "record", json.dumps(record))
    empty = make(store)
    store.update(empty.id, to(JobStatus.FAILED))
    redis_client.hset(routing.job_key(empty.id), "record", "{}")
    assert trim_jobs(redis_client, store, 0, 0) == [plain.id]


def test_those_that_ended_first_are_trimmed_whenever_they_were_made(store: JobStore, redis_client: redis.Redis) -> None:
    long, *short = (make(store) for _ in range(4))

    def end(days_ago: int):
        def change(record: JobRecord) -> None:
            record.move(JobStatus.FAILED)
            record.job.finished_at = datetime.now(UTC) - timedelta(days=days_ago)

        return change

    for job, days_ago in zip((*short, long), (30, 20, 10, 0), strict=True):
        store.update(job.id, end(days_ago))
        redis_client.hdel(routing.job_key(job.id), "ended_at")  # as an earlier release left them
    assert trim_jobs(redis_client, store, 2, 86_400) == [short[0].id, short[1].id]
    assert trim_jobs(redis_client, store, 0, 86_400) == [short[2].id], "the one that has just ended stays"


@pytest.mark.parametrize("offset_days", [-30, 30])
def test_clocks_of_workers_and_gateways_decide_nothing(
    store: JobStore, redis_client: redis.Redis, offset_days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(store), make(store)
    for job in (first, second):
        with monkeypatch.context() as elsewhere:  # on a machine of another clock
            set_clock(elsewhere, offset_days * 86_400.0, record_module)
            store.update(job.id, to(JobStatus.FAILED))
        offset_days = -offset_days
    assert trim_jobs(redis_client, store, 0, 60) == []
    assert trim_jobs(redis_client, store, 1, 0) == [first.id]

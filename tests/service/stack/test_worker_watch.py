"""What the stack reads and removes of its workers in Redis."""

from __future__ import annotations

import os

import redis

from service.contract import routing
from service.contract.jobs.store import JobStatus, JobStore, NewJob
from service.stack.worker_watch import WorkerWatch
from worker.heartbeat import Heartbeat, new_worker_id


def heartbeat(client: redis.Redis, worker_id: str) -> Heartbeat:
    return Heartbeat(client, "training", worker_id, "cpu", lambda: "", lambda: True)


def test_heartbeats_of_a_process_are_found_and_removed(redis_client: redis.Redis, redis_url: str) -> None:
    watch, pid = WorkerWatch(redis_url, "training"), os.getpid()
    assert watch.last_beat(pid) is None
    own, other = new_worker_id(), new_worker_id().replace(f"-{pid}-", f"-{pid}0-")
    heartbeat(redis_client, other).run_once()
    assert watch.last_beat(pid) is None
    heartbeat(redis_client, own).run_once()
    first = watch.last_beat(pid)
    assert first is not None
    heartbeat(redis_client, own).run_once()
    second = watch.last_beat(pid)
    assert second is not None
    assert second > first
    watch.forget(pid)
    assert watch.last_beat(pid) is None
    assert redis_client.zrange(routing.workers_key("training"), 0, -1) == [other.encode()]
    assert redis_client.exists(routing.worker_key("training", other))
    assert not redis_client.exists(routing.worker_key("training", own))


def test_jobs_of_an_ended_worker_are_free_at_once_and_others_are_not(redis_client: redis.Redis, redis_url: str) -> None:
    jobs, pid = JobStore(redis_client), os.getpid()
    mine, another = (jobs.create(NewJob("dog", {}, 5)) for _ in range(2))
    for job in (mine, another):
        jobs.update(job.id, lambda record: record.move(JobStatus.QUEUED))
        jobs.update(job.id, lambda record: record.move(JobStatus.RUNNING))
    held = jobs.acquire(mine.id, new_worker_id())
    assert held
    assert jobs.acquire(another.id, new_worker_id().replace(f"-{pid}-", f"-{pid}0-"))
    WorkerWatch(redis_url, "training").forget(pid)
    assert not jobs.is_leased(mine.id)
    assert jobs.is_leased(another.id)
    sent: list[str] = []
    jobs.reconcile(sent.append)
    assert sent == [mine.id]
    assert jobs.get(another.id).status is JobStatus.RUNNING


def test_a_redis_that_is_away_is_no_error() -> None:
    watch = WorkerWatch("redis://127.0.0.1:1/0", "inference")
    assert watch.last_beat(1) is None
    watch.forget(1)

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime

import pytest
import redis

from service.contract import routing
from service.contract.errors import (
    BadCursor,
    Conflict,
    Diverged,
    JobNotActive,
    JobNotEnded,
    QueueFull,
    TooManyJobs,
    UnknownJob,
)
from service.contract.jobs.job import TRANSITIONS, Checkpoint
from service.contract.jobs.progress import EventLog
from service.contract.jobs.record import MAX_CRASHES_WITHOUT_PROGRESS
from service.contract.jobs.store import Job, JobRecord, JobSource, JobStatus, JobStore, LeaseLost, NewJob, new_job_id
from service.contract.quotas import JobLimits

SHAPE = {
    "id",
    "category",
    "status",
    "created_at",
    "started_at",
    "finished_at",
    "progress",
    "metrics",
    "version",
    "error",
    "settings",
    "evaluation",
    "quality",
    "activate",
    "dataset",
    "created_by",
    "queue_position",
    "webhook",
    "continued_from",
    "checkpoint_versions",
    "warnings",
}


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def make(store: JobStore, **kwargs: object) -> Job:
    return store.create(NewJob("dog", {"preset": "compact", "steps": 10}, 10, **kwargs))  # type: ignore[arg-type]


def made(step: int) -> Checkpoint:
    return Checkpoint(step=step, saved_at=datetime.now(UTC), size_bytes=10, losses={"total": 1.5})


def to(status: JobStatus):
    return lambda record: record.move(status)


def enqueue(client: redis.Redis, job_id: str) -> None:
    client.lpush(routing.queue_key("training"), json.dumps({"body": "", "headers": {"id": job_id}}))


def test_new_job_has_the_documented_shape(store: JobStore) -> None:
    shown = json.loads(make(store).model_dump_json())
    assert set(shown) == SHAPE
    assert set(shown["progress"]) == {"step", "total_steps", "fraction", "eta_s", "stage"}
    assert shown["status"] == "validating"
    assert shown["created_at"].endswith("Z")
    assert shown["settings"] == {"preset": "compact", "steps": 10}


def test_job_survives_a_round_trip(store: JobStore) -> None:
    job = make(store, source=JobSource(kind="folder", folder="imports/dogs"))
    record = store.record(job.id)
    assert record.source.folder == "imports/dogs"
    assert record.job.model_dump_json() == job.model_dump_json()


def test_unknown_job_is_named(store: JobStore) -> None:
    with pytest.raises(UnknownJob, match="abc"):
        store.get("abc")


def test_ids_sort_by_creation() -> None:
    made = [new_job_id() for _ in range(1000)]
    assert made == sorted(set(made))


@pytest.mark.parametrize("status", list(JobStatus))
def test_only_listed_transitions_happen(store: JobStore, status: JobStatus) -> None:
    for target in JobStatus:
        record = JobRecord(job=make(store).model_copy(update={"status": status}))
        if target in TRANSITIONS[status]:
            record.move(target)
            assert record.job.status is target
        else:
            with pytest.raises(Conflict):
                record.move(target)


def test_failed_transition_writes_nothing(store: JobStore) -> None:
    job = make(store)
    with pytest.raises(Conflict):
        store.update(job.id, to(JobStatus.SUCCEEDED))
    assert store.get(job.id).status is JobStatus.VALIDATING


def test_ended_job_leaves_the_active_set_and_has_a_finish_time(store: JobStore) -> None:
    job = make(store)
    store.update(job.id, lambda record: record.fail(Diverged("loss is nan at step 3")))
    ended = store.get(job.id)
    assert store.list_unfinished() == []
    assert ended.finished_at is not None
    assert ended.error is not None
    assert (ended.error.code, ended.error.detail) == ("training_diverged", "loss is nan at step 3")


def test_concurrent_updates_lose_nothing(store: JobStore) -> None:
    job = make(store)

    def count() -> None:
        def add(record: JobRecord) -> None:
            record.job.metrics["n"] = record.job.metrics.get("n", 0) + 1

        for _ in range(25):
            store.update(job.id, add)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(job.id).metrics["n"] == 100


def test_update_whose_answer_was_lost_is_not_applied_twice(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make(store)
    store.update(job.id, to(JobStatus.QUEUED))
    real = store._redis.eval
    calls = []

    def twice(*args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            real(*args)  # redis-py's own retry after a connection that broke behind the write
        return real(*args)

    monkeypatch.setattr(store._redis, "eval", twice)
    assert store.update(job.id, to(JobStatus.RUNNING)).job.status is JobStatus.RUNNING


def test_lease_has_one_holder_at_a_time(store: JobStore) -> None:
    job = make(store)
    lease = store.acquire(job.id, "a")
    assert lease is not None
    assert store.acquire(job.id, "b") is None
    lease.release()
    assert store.acquire(job.id, "b") is not None


def test_lease_expires_unless_renewed_and_can_be_taken_up_again(store: JobStore) -> None:
    job = make(store)
    lease = store.acquire(job.id, "a", ttl_s=0.05)
    assert lease is not None
    time.sleep(0.08)
    assert not store.is_leased(job.id)
    assert lease.renew()
    time.sleep(0.08)
    other = store.acquire(job.id, "b")
    assert other is not None
    assert not lease.renew()
    lease.release()
    assert store.is_leased(job.id), "releasing what is another's must change nothing"


def test_writer_without_its_lease_is_refused(store: JobStore) -> None:
    job = make(store)
    lease = store.acquire(job.id, "a", ttl_s=0.05)
    assert lease is not None
    store.update(job.id, to(JobStatus.QUEUED), lease)
    time.sleep(0.08)
    assert store.acquire(job.id, "b") is not None
    with pytest.raises(LeaseLost):
        store.update(job.id, to(JobStatus.RUNNING), lease)
    assert store.get(job.id).status is JobStatus.QUEUED


def test_holder_learns_that_its_job_ended(store: JobStore) -> None:
    job = make(store)
    lease = store.acquire(job.id, "a", ttl_s=0.05)
    time.sleep(0.08)
    assert store.cancel(job.id).status is JobStatus.CANCELLED
    assert lease is not None
    assert lease.renew()
    with pytest.raises(LeaseLost):
        store.update(job.id, lambda record: record.job.metrics.update(loss=1.0), lease)


QUEUED, RUNNING, PAUSED = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED


@pytest.mark.parametrize("steps", [(), (QUEUED,), (QUEUED, RUNNING), (QUEUED, PAUSED)])
def test_cancel_ends_a_job_without_a_worker(store: JobStore, steps: tuple[JobStatus, ...]) -> None:
    job = make(store)
    for status in steps:
        store.update(job.id, to(status))
    assert store.cancel(job.id).status is JobStatus.CANCELLED
    assert not store.is_cancel_requested(job.id)


def test_cancel_of_a_leased_job_sets_the_flag_only(store: JobStore, redis_client: redis.Redis) -> None:
    job = make(store)
    lease = store.acquire(job.id, "a")
    assert store.cancel(job.id).status is JobStatus.VALIDATING
    assert store.is_cancel_requested(job.id)
    assert redis_client.ttl(routing.cancel_key(job.id)) > 3600, "a worker may take long to come back"
    store.update(job.id, to(JobStatus.CANCELLED), lease)
    assert not store.is_cancel_requested(job.id)


@pytest.mark.parametrize("wanted", ["pause", "stop"])
def test_cancel_that_came_while_the_worker_set_the_job_aside_is_not_lost(store: JobStore, wanted: str) -> None:
    job = make(store)
    for status in (QUEUED, RUNNING):
        store.update(job.id, to(status))
    lease = store.acquire(job.id, "a")
    assert lease
    if wanted == "pause":
        store.pause(job.id)
    assert store.cancel(job.id).status is RUNNING  # its worker has the job, and is about to set it aside
    store.update(job.id, JobRecord.requeue, lease)
    lease.release()
    sent: list[str] = []
    assert store.reconcile(sent.append) == set()
    assert store.get(job.id).status is JobStatus.CANCELLED
    assert (sent, store.list_unfinished(), store.is_cancel_requested(job.id)) == ([], [], False)


def test_cancel_of_an_ended_job_says_how_it_ended(store: JobStore) -> None:
    job = make(store)
    store.cancel(job.id)
    with pytest.raises(JobNotActive, match="already been cancelled"):
        store.cancel(job.id)


def test_pause_of_a_queued_job_is_at_once_and_again_no_harm(store: JobStore) -> None:
    job = make(store)
    store.update(job.id, to(QUEUED))
    for _ in range(2):
        assert store.pause(job.id).status is PAUSED
    assert not store.record(job.id).pause_wanted
    assert store.is_pause_requested(job.id), "a worker that has it after all must stop"
    assert [record.job.id for record in store.list_unfinished()] == [job.id], "its files and its record stay"


def test_pause_of_a_validating_job_waits_for_its_pictures(store: JobStore) -> None:
    job = make(store)
    assert store.pause(job.id).status is JobStatus.VALIDATING
    record = store.record(job.id)
    record.move(QUEUED)
    assert record.pause_if_requested()
    assert record.job.status is PAUSED


def test_pause_of_a_leased_job_is_left_to_its_worker(store: JobStore) -> None:
    job = make(store)
    for status in (QUEUED, RUNNING):
        store.update(job.id, to(status))
    lease = store.acquire(job.id, "a")
    assert store.pause(job.id).status is RUNNING
    assert store.is_pause_requested(job.id)
    store.update(job.id, JobRecord.requeue, lease)
    assert (store.get(job.id).status, store.record(job.id).pause_wanted) == (PAUSED, False)


def test_resume_before_the_worker_saw_the_pause_takes_the_wish_back(store: JobStore) -> None:
    job = make(store)
    for status in (QUEUED, RUNNING):
        store.update(job.id, to(status))
    lease = store.acquire(job.id, "a")
    store.pause(job.id)
    assert store.resume(job.id).status is RUNNING
    store.update(job.id, JobRecord.requeue, lease)  # it had seen the pause just before
    assert store.get(job.id).status is QUEUED


def test_paused_job_is_sent_again_only_once_it_is_resumed(store: JobStore) -> None:
    job = make(store)
    store.update(job.id, to(QUEUED))
    store.pause(job.id)
    sent: list[str] = []
    assert store.reconcile(sent.append) == set()
    assert store.resume(job.id).status is QUEUED
    assert store.reconcile(sent.append) == {job.id}


def test_pause_and_resume_of_an_ended_job_say_how_it_ended(store: JobStore) -> None:
    job = make(store)
    store.cancel(job.id)
    for act in (store.pause, store.resume):
        with pytest.raises(JobNotActive, match="already been cancelled"):
            act(job.id)


def test_record_of_the_first_release_is_read_and_written(store: JobStore, redis_client: redis.Redis) -> None:
    job = make(store)
    old = json.loads(store.record(job.id).model_dump_json())
    del old["pause_wanted"]
    redis_client.delete(*redis_client.scan_iter("ppl:*"))
    redis_client.hset(routing.job_key(job.id), mapping={"rev": 1, "record": json.dumps(old)})
    redis_client.sadd(routing.ACTIVE_JOBS, job.id)
    redis_client.zadd(routing.JOBS, {job.id: 0})
    store.update(job.id, to(QUEUED))
    assert store.pause(job.id).status is PAUSED


def test_delete_removes_ended_jobs_only(store: JobStore, redis_client: redis.Redis) -> None:
    job = make(store)
    with pytest.raises(JobNotEnded):
        store.delete(job.id)
    store.cancel(job.id)
    store.delete(job.id)
    with pytest.raises(UnknownJob):
        store.get(job.id)
    assert list(redis_client.scan_iter("ppl:*")) == []


def test_pages_hold_every_job_once_newest_first(store: JobStore) -> None:
    made = [make(store, job_id=f"{n:022x}").id for n in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = store.page(limit=3, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        make(store)  # newer ones don't shift the pages that follow
    assert seen == made[::-1]


def test_room_is_counted_in_all_and_for_each_owner(store: JobStore) -> None:
    limits = JobLimits(total=3, per_owner=1)
    make(store, owner="a")
    store.check_room("b", limits)
    with pytest.raises(TooManyJobs):
        store.check_room("a", limits)
    for owner in "bc":
        make(store, owner=owner)
    with pytest.raises(QueueFull):
        store.check_room("d", limits)


def test_full_last_page_has_no_cursor(store: JobStore) -> None:
    for _ in range(2):
        make(store)
    assert store.page(limit=2).next_cursor is None


@pytest.mark.parametrize("cursor", ["", "[", "a b", "zzz", "x" * 65, "a" * 65, "é", "0123456789abcdef\n"])
def test_cursor_from_elsewhere_is_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(BadCursor):
        store.page(cursor=cursor)


def test_reconcile_resends_what_was_lost_and_only_that(store: JobStore, redis_client: redis.Redis) -> None:
    ids = {name: make(store).id for name in ("validating", "lost", "waiting", "held", "orphan", "trained", "ended")}
    for name in ("lost", "waiting", "held", "orphan", "trained", "ended"):
        store.update(ids[name], to(JobStatus.QUEUED))
    for name in ("orphan", "trained"):
        store.update(ids[name], to(JobStatus.RUNNING))
    enqueue(redis_client, ids["waiting"])
    store.acquire(ids["held"], "a")
    store.acquire(ids["trained"], "a")
    store.cancel(ids["ended"])
    sent: list[str] = []
    assert store.reconcile(sent.append) == {ids["lost"], ids["orphan"]}
    assert sorted(sent) == sorted([ids["lost"], ids["orphan"]])


def test_job_whose_worker_is_gone_waits_at_the_head_of_the_queue(store: JobStore, redis_client: redis.Redis) -> None:
    older, newer, waiting, held = (make(store).id for _ in range(4))
    for job_id in (older, newer, waiting, held):
        store.update(job_id, to(QUEUED))
    for job_id in (older, newer, held):
        store.update(job_id, to(JobStatus.RUNNING))
        store.update(job_id, lambda record: setattr(record.job.progress, "eta_s", 40.0))
    store.acquire(held, "a")
    enqueue(redis_client, waiting)
    assert store.reconcile(lambda job_id: enqueue(redis_client, job_id)) == {older, newer}
    assert store.waiting_order() == [older, newer, waiting]
    for job_id in (older, newer):
        job = store.get(job_id)
        assert (job.status, job.progress.eta_s) == (QUEUED, None)
        assert "the worker is lost" in str(EventLog(redis_client).page(job_id))
    assert store.get(held).status is JobStatus.RUNNING
    assert store.reconcile(lambda job_id: pytest.fail("sent already")) == set()


def test_job_that_was_to_be_paused_is_once_its_worker_is_gone(store: JobStore) -> None:
    job = make(store)
    for status in (QUEUED, JobStatus.RUNNING):
        store.update(job.id, to(status))
    lease = store.acquire(job.id, "a")
    assert lease is not None
    assert store.pause(job.id).status is JobStatus.RUNNING
    lease.release()
    assert store.reconcile(lambda job_id: pytest.fail("no message may be sent")) == set()
    assert store.get(job.id).status is PAUSED
    store.resume(job.id)
    assert not store.record(job.id).ahead, "its owner let others go before it"


def test_exclusive_reconcile_runs_once_within_its_period(store: JobStore) -> None:
    store.update(make(store).id, to(JobStatus.QUEUED))
    sent: list[str] = []
    assert len(store.reconcile(sent.append, exclusive=True)) == 1
    assert store.reconcile(sent.append, exclusive=True) == set()


def test_job_whose_workers_keep_dying_fails(store: JobStore) -> None:
    record = JobRecord(job=make(store))
    record.move(JobStatus.QUEUED)
    for _ in range(MAX_CRASHES_WITHOUT_PROGRESS + 1):
        assert record.count_start()
    assert not record.count_start()
    assert record.job.status is JobStatus.FAILED
    assert record.job.error is not None
    assert record.job.error.code == "abandoned"


def test_progress_between_deaths_forgives_them(store: JobStore) -> None:
    record = JobRecord(job=make(store))
    record.move(JobStatus.QUEUED)
    record.move(JobStatus.RUNNING)
    for step in range(1, 10):
        assert record.count_start()
        assert record.count_start()
        record.checkpoint(made(step), trained_s=1.0)


def test_the_same_checkpoint_again_forgives_no_deaths(store: JobStore) -> None:
    record = JobRecord(job=make(store))
    for _ in range(MAX_CRASHES_WITHOUT_PROGRESS + 1):
        assert record.count_start()
        record.checkpoint(made(0), trained_s=0.0)
    assert not record.count_start()


def test_stop_in_good_order_is_no_death(store: JobStore) -> None:
    record = JobRecord(job=make(store))
    record.move(JobStatus.QUEUED)
    for _ in range(10):
        record.move(JobStatus.RUNNING)
        assert record.count_start()
        record.requeue()


@pytest.mark.parametrize("suffix", [":lease", ":cancel", "\n", "x", "/../y"])
def test_what_cannot_be_an_id_is_an_unknown_job_and_never_part_of_a_key(
    store: JobStore, redis_client: redis.Redis, suffix: str
) -> None:
    job = make(store)
    assert store.acquire(job.id, "worker") is not None
    redis_client.set(routing.cancel_key(job.id), "1")
    keys = set(redis_client.keys())
    acts = [store.get, store.record, store.cancel, store.delete, store.is_leased, store.is_cancel_requested]
    for act in (*acts, lambda name: store.acquire(name, "w"), lambda name: store.update(name, lambda record: None)):
        with pytest.raises(UnknownJob):
            act(job.id + suffix)
    assert set(redis_client.keys()) == keys

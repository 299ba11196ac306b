"""A job's place among those that wait, and how long it will take."""

from __future__ import annotations

import json
import time

import pytest

from service.contract import routing
from service.contract.jobs.progress import Pace, PaceBook
from service.contract.jobs.store import JobStatus, JobStore, NewJob
from service.training.job_intake import JobQueue

SETTINGS = {"preset": "compact", "steps": 100, "occlusion_start": 0.75}


@pytest.fixture
def jobs(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def make(jobs, redis_client):
    """A job; its message is in the queue as kombu puts it there."""

    def job(status: JobStatus = JobStatus.QUEUED, eta_s: float | None = None, *, sent: bool = True) -> str:
        made = jobs.create(NewJob("dog", SETTINGS, 100))

        def move(record) -> None:
            for step in (JobStatus.QUEUED, JobStatus.RUNNING):
                if record.job.status is not status:
                    record.move(step)
            record.job.progress.eta_s = eta_s

        jobs.update(made.id, move)
        if status is JobStatus.QUEUED and sent:
            redis_client.lpush(routing.queue_key("training"), json.dumps({"headers": {"id": made.id}}))
        return made.id

    return job


def places(jobs, redis_client, workers: int = 1) -> dict[str, tuple[int | None, float | None]]:
    queue = JobQueue(jobs, PaceBook(redis_client), lambda: workers)
    return {job.id: (job.queue_position, job.progress.eta_s) for job in queue.add_positions(jobs.page().items)}


def test_jobs_are_counted_in_the_order_of_their_messages(jobs, redis_client, make):
    unsent = make(sent=False)
    validating = make(JobStatus.VALIDATING)
    first, second = make(), make()
    running = make(JobStatus.RUNNING, 7.0)
    # the one without a message goes behind those that have one
    found = {job_id: position for job_id, (position, _) in places(jobs, redis_client).items()}
    assert found == {first: 1, second: 2, unsent: 3, validating: 4, running: None}


def test_resumed_job_goes_behind_those_that_wait(jobs, redis_client, make):
    first, second = make(), make()
    queue = routing.queue_key("training")
    message = redis_client.rpop(queue)
    jobs.pause(first)
    jobs.resume(first)
    redis_client.lpush(queue, message)
    found = places(jobs, redis_client)
    assert (found[second][0], found[first][0]) == (1, 2)


def test_time_is_that_of_those_before_and_its_own(jobs, redis_client, make):
    PaceBook(redis_client).note(SETTINGS, Pace(0.1, 2.0))  # 12.5 s a job
    first, second = make(), make()
    assert places(jobs, redis_client)[second] == (2, 25.0)
    running = make(JobStatus.RUNNING, 40.0)
    found = places(jobs, redis_client)
    assert found[first] == (1, 52.5)
    assert found[second] == (2, 65.0)
    assert found[running] == (None, 40.0)
    # of two workers one is free at once
    found = places(jobs, redis_client, workers=2)
    assert (found[first], found[second]) == ((1, 12.5), (2, 25.0))


def test_nothing_is_promised_where_nothing_is_known(jobs, redis_client, make):
    first, second = make(), make()
    assert places(jobs, redis_client)[first] == (1, None)
    PaceBook(redis_client).note(SETTINGS, Pace(0.1, 2.0))
    assert places(jobs, redis_client, workers=0)[first] == (1, None)  # no worker would begin
    make(JobStatus.RUNNING, None)
    assert places(jobs, redis_client)[second] == (2, None)


async def test_it_stands_in_every_answer(http, redis_client, publish):
    from .test_train_jobs import GOOD

    answers = [
        await http.post("/train-jobs", data={"category": "dog"}, files={"archive": ("a.zip", GOOD)}) for _ in range(2)
    ]
    ids = [answer.json()["id"] for answer in answers]
    assert [answer.json()["queue_position"] for answer in answers] == [1, 2]
    listed = (await http.get("/train-jobs")).json()["items"]
    assert {job["id"]: job["queue_position"] for job in listed} == dict(zip(ids, (1, 2), strict=True))
    assert (await http.get(f"/train-jobs/{ids[1]}")).json()["queue_position"] == 2
    ended = (await http.post(f"/train-jobs/{ids[0]}/cancel")).json()
    assert ended["queue_position"] is None
    assert (await http.get(f"/train-jobs/{ids[1]}")).json()["queue_position"] == 1


def test_many_are_not_counted_anew_for_each_look(jobs, redis_client, make, monkeypatch):
    ids = [make() for _ in range(60)]
    looks = []
    list_unfinished = jobs.list_unfinished
    monkeypatch.setattr(jobs, "list_unfinished", lambda: looks.append(1) or time.sleep(0.05) or list_unfinished())
    queue = JobQueue(jobs, PaceBook(redis_client), lambda: 1)
    for job_id in ids:
        assert queue.add_position(jobs.get(job_id)).queue_position == ids.index(job_id) + 1
    assert len(looks) == 1
    new = make()  # is not known yet
    assert queue.add_position(jobs.get(new)).queue_position == 61
    assert len(looks) == 2
    jobs.cancel(ids[0])
    time.sleep(20 * 0.06 + 0.2)
    assert queue.add_position(jobs.get(new)).queue_position in (60, 61)
    deadline = time.monotonic() + 10
    while queue.add_position(jobs.get(new)).queue_position == 61:
        assert time.monotonic() < deadline
        time.sleep(0.1)

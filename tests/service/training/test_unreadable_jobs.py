"""A job whose record a later release wrote, in a service that went back to this one."""

from __future__ import annotations

import json
import logging
import os

import pytest

from service.contract import routing
from service.contract.jobs.store import JobStatus, JobStore
from service.training.retention import remove_stale_jobs

from .test_train_jobs import GOOD


def let_a_later_release_write(job_id: str, redis_client) -> None:
    record = json.loads(redis_client.hget(routing.job_key(job_id), "record"))
    record["job"]["status"] = "shared"
    redis_client.hset(routing.job_key(job_id), "record", json.dumps(record))


@pytest.fixture
def train(http):
    async def post(**fields: str) -> str:
        fields = {"category": "dog", **fields}
        body = {"json": fields} if "dataset" in fields else {"data": fields, "files": {"archive": ("a.zip", GOOD)}}
        answer = await http.post("/train-jobs", **body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    return post


async def test_it_says_what_is_wrong_and_hides_no_other(http, train, redis_client, problem):
    plain, odd, newest = [await train() for _ in range(3)]
    let_a_later_release_write(odd, redis_client)
    found = problem(await http.get(f"/train-jobs/{odd}"), 500, "store_corrupt")
    assert odd in found["detail"]
    assert "job.status: Input should be 'validating'" in found["detail"]
    assert "later release" in found["detail"]
    problem(await http.post(f"/train-jobs/{odd}/cancel"), 500, "store_corrupt")
    listed = (await http.get("/train-jobs", params={"limit": 2})).json()
    assert [job["id"] for job in listed["items"]] == [newest]
    rest = (await http.get("/train-jobs", params={"limit": 2, "cursor": listed["next_cursor"]})).json()
    assert [job["id"] for job in rest["items"]] == [plain]
    assert http.gateway.job_counts.count()[JobStatus.VALIDATING] == 2


async def test_other_jobs_are_sent_again_and_it_is_logged_once(http, train, redis_client, caplog):
    odd, plain = await train(), await train()
    let_a_later_release_write(odd, redis_client)
    store, sent = JobStore(redis_client), []
    store.update(plain, lambda record: record.move(JobStatus.QUEUED))
    with caplog.at_level(logging.ERROR):
        assert store.reconcile(sent.append) == {plain}
        store.reconcile(sent.append)
    assert sent == [plain, plain]
    assert [odd in record.message for record in caplog.records if "job skipped" in record.message] == [True]


async def test_its_files_and_its_dataset_stay(http, train, redis_client, problem):
    dataset = (await http.post("/datasets", files={"archive": ("a.zip", GOOD)})).json()["id"]
    odd = await train(dataset=dataset)
    let_a_later_release_write(odd, redis_client)
    folder = http.gateway.files.folder(odd)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (0, 0))
    assert remove_stale_jobs(http.gateway.files, http.gateway.jobs, 1) == []
    assert folder.exists()
    assert odd in problem(await http.delete(f"/datasets/{dataset}"), 500, "store_corrupt")["detail"]

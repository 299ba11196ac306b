"""Requests to train that are sent again under a key of their sender's."""

from __future__ import annotations

import asyncio

import pytest

from service.contract import routing
from service.contract.jobs import JobStatus

from .test_train_jobs import GOOD, move, zip_of


@pytest.fixture
def post(http):
    async def send(key: str | None = "one", archive: bytes = GOOD, **fields: str):
        return await http.post(
            "/train-jobs",
            data={"category": "dog", **fields},
            files={"archive": ("pictures.zip", archive)},
            headers={"Idempotency-Key": key} if key is not None else {},
        )

    return send


def ids(http) -> list[str]:
    return [job.id for job in http.gateway.jobs.page().items]


async def test_same_request_gives_the_same_job(http, post):
    first, second = await post(), await post()
    assert (first.status_code, second.status_code) == (202, 202)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert ids(http) == [first.json()["id"]] == [second.json()["id"]]
    left = [folder.name for folder in http.gateway.files.folder(first.json()["id"]).parent.iterdir()]
    assert left == [first.json()["id"]]  # the second upload is gone, the first one's is not


async def test_answer_is_the_job_as_it_stands_now(http, post):
    job_id = (await post()).json()["id"]
    move(http, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
    assert (await post()).json()["status"] == "running"


@pytest.mark.parametrize(
    "other",
    [
        {"steps": "77"},
        {"category": "cat"},
        {"activate": "false"},
        {"archive": zip_of({"a.png": b"another"})},
    ],
    ids=lambda value: next(iter(value)),
)
async def test_another_request_of_the_same_key_is_refused(http, post, problem, other):
    first = (await post()).json()["id"]
    found = problem(await post(**other), 422, "idempotency_key_reused")
    assert found["job_id"] == first
    assert ids(http) == [first]


async def test_settings_said_or_left_to_their_defaults_are_the_same_request(http, post):
    first = (await post()).json()["id"]
    assert (await post(preset="compact", activate="true")).json()["id"] == first


async def test_requests_at_once_make_one_job(http, post):
    answers = await asyncio.gather(*(post() for _ in range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(ids(http)) == 1


async def test_without_a_key_or_with_another_one_each_request_is_a_job_of_its_own(http, post):
    assert len({(await post(key)).json()["id"] for key in (None, None, "one", "two")}) == 4


async def test_key_of_a_forgotten_job_is_free_again(http, post):
    first = (await post()).json()["id"]
    move(http, first, JobStatus.CANCELLED)
    assert (await http.delete(f"/train-jobs/{first}")).status_code == 204
    second = await post(steps="55")
    assert second.status_code == 202
    assert second.json()["id"] != first


async def test_key_is_forgotten_after_its_time(http, post, redis_client):
    await post("k" * 255)
    left = redis_client.ttl(routing.request_key("k" * 255))
    assert 0 < left <= http.gateway.settings.idempotency_ttl_s


async def test_failed_request_leaves_its_key_free(http, post, problem):
    problem(await post(archive=b"no archive"), 422, "bad_archive")
    assert (await post()).status_code == 202


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "caf\xe9"])
async def test_bad_key(http, problem, key):
    response = await http.post(
        "/train-jobs",
        data={"category": "dog"},
        files={"archive": ("a.zip", GOOD)},
        headers=[(b"Idempotency-Key", key.encode("latin-1"))],
    )
    assert problem(response, 422, "bad_request")["field"] == "Idempotency-Key"
    assert ids(http) == []


async def test_json_request(http, data_root):
    (data_root / "imports" / "dog").mkdir(parents=True)
    (data_root / "imports" / "dog" / "a.png").write_bytes(b"x")
    body = {"category": "dog", "folder": "imports/dog"}
    answers = [await http.post("/train-jobs", json=body, headers={"Idempotency-Key": "j"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]

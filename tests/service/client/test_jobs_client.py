"""Client and commands on running jobs, against a real gateway."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from service.client import APIError, Client, JobStatus
from service.client.types import EventKind
from service.contract.jobs.files import BOXES, PREVIEW, JobFiles
from service.contract.jobs.job import Checkpoint
from service.contract.jobs.record import JobRecord
from service.contract.jobs.store import JobStore, NewJob
from service.contract.versions.store import VersionStore
from tests.support.cli_process import CommandLine
from tests.support.jobs import move
from tests.support.live_gateway import live_gateway

Ppl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def settings(make_settings: Callable[..., Any]) -> Any:
    return make_settings()


@pytest.fixture
def url(settings: Any) -> Iterator[str]:
    with live_gateway(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def jobs(settings: Any) -> Iterator[JobStore]:
    """Return the job store as a worker opens it."""
    with redis.Redis.from_url(settings.redis_url) as connection:
        yield JobStore(connection)


@pytest.fixture
def job_id(url: str, jobs: JobStore) -> str:
    return jobs.create(NewJob("dog", {"steps": 10}, 10)).id


@pytest.fixture
def ppl(url: str, tmp_path: Path, command_line: CommandLine) -> Ppl:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return command_line.run(*arguments, cwd=tmp_path, PPL_URL=url)

    return run


def save(jobs: JobStore, job_id: str, step: int) -> None:
    made = Checkpoint(step=step, saved_at=datetime.now(UTC), size_bytes=3 * 2**20, losses={"total": 0.25})

    def saved(record: JobRecord) -> None:
        record.pending_events.append(("checkpoint", made.model_dump(mode="json")))

    jobs.update(job_id, saved)


def test_job_is_paused_and_resumed(client: Client, jobs: JobStore, job_id: str) -> None:
    move(jobs, job_id, JobStatus.QUEUED)
    assert client.pause(job_id).status is JobStatus.PAUSED
    assert [job.id for job in client.jobs(status=JobStatus.PAUSED)] == [job_id]
    assert list(client.jobs(status=JobStatus.QUEUED)) == []
    assert client.resume(job_id).status is JobStatus.QUEUED
    assert [job.id for job in client.jobs(category="dog")] == [job_id]
    assert list(client.jobs(category="cat")) == []


def test_existing_events_are_listed(client: Client, jobs: JobStore, job_id: str) -> None:
    move(jobs, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
    events = list(client.events(job_id, follow=False))
    assert [(event.id, event.data["status"]) for event in events] == [(1, "validating"), (2, "queued"), (3, "running")]
    assert [event.id for event in client.events(job_id, after=2, follow=False)] == [3]


def test_events_are_followed_to_the_end(client: Client, jobs: JobStore, job_id: str) -> None:
    def work() -> None:
        time.sleep(0.3)
        move(jobs, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
        time.sleep(0.3)
        move(jobs, job_id, JobStatus.SUCCEEDED)

    worker = threading.Thread(target=work)
    worker.start()
    events = list(client.events(job_id))
    worker.join()
    assert [event.id for event in events] == [1, 2, 3, 4, 5]
    assert (events[-1].kind, events[-1].data["status"]) == (EventKind.COMPLETED, "succeeded")
    assert list(client.events(job_id, after=5)) == []  # the job has ended


def test_checkpoints_newest_first(client: Client, jobs: JobStore, job_id: str) -> None:
    assert client.checkpoints(job_id) == []
    save(jobs, job_id, 4)
    save(jobs, job_id, 8)
    assert [made.step for made in client.checkpoints(job_id)] == [8, 4]


def test_preview_is_what_the_job_or_its_version_has(
    client: Client, jobs: JobStore, job_id: str, settings: Any, ppl: Ppl, tmp_path: Path
) -> None:
    with pytest.raises(APIError) as raised:
        client.preview(job_id)
    assert (raised.value.status, raised.value.code) == (404, "no_preview")
    files, store = JobFiles(settings.data_root), VersionStore(settings.data_root)
    files.create(job_id)
    files.preview(job_id).write_bytes(b"now")
    assert client.preview(job_id) == b"now"
    jobs.update(job_id, lambda record: record.preview(4))
    jobs.update(job_id, lambda record: record.preview(4))
    kinds = [(event.kind, event.data) for event in client.events(job_id, follow=False)]
    assert kinds.count((EventKind.PREVIEW, {"step": 4})) == 1
    files.remove(job_id)
    folder = store.path("dog", "v1")
    folder.mkdir(parents=True)
    (folder / PREVIEW).write_bytes(b"last")
    jobs.update(job_id, lambda record: setattr(record.job, "version", "v1"))
    assert "now.png" in ppl("job", job_id, "--preview", tmp_path / "now.png").stdout
    assert (tmp_path / "now.png").read_bytes() == b"last"


def test_boxes_are_those_of_the_job_or_its_version(
    client: Client, jobs: JobStore, job_id: str, settings: Any, ppl: Ppl, tmp_path: Path
) -> None:
    def refusal() -> str:
        with pytest.raises(APIError) as raised:
            client.boxes(job_id)
        assert (raised.value.status, raised.value.code) == (404, "no_boxes")
        return raised.value.detail

    assert "not prepared yet" in refusal()
    move(jobs, job_id, JobStatus.QUEUED)
    assert "taken whole: send boxes, or set locate to motion" in refusal()
    jobs.update(job_id, lambda record: record.job.metrics.update(located={"by": "motion"}))
    assert "deleted" in refusal()
    files, store = JobFiles(settings.data_root), VersionStore(settings.data_root)
    files.create(job_id)
    text = "image,x,y,width,height,confidence\nä.png,1.0,2.0,3.0,4.0,0.5\n"
    files.found_boxes(job_id).write_text(text, encoding="utf-8")
    assert client.boxes(job_id) == text
    files.remove(job_id)
    folder = store.path("dog", "v1")
    folder.mkdir(parents=True)
    (folder / BOXES).write_text(text, encoding="utf-8")
    jobs.update(job_id, lambda record: setattr(record.job, "version", "v1"))
    assert "found.csv" in ppl("job", job_id, "--boxes", tmp_path / "found.csv").stdout
    assert (tmp_path / "found.csv").read_text(encoding="utf-8") == text
    cancelled = jobs.create(NewJob("dog", {}, 5)).id
    client.cancel(cancelled)
    with pytest.raises(APIError, match="no boxes: it ended before it trained"):
        client.boxes(cancelled)


def test_version_of_a_running_job_is_made(client: Client, jobs: JobStore, job_id: str, ppl: Ppl) -> None:
    with pytest.raises(APIError, match="wait until it is running") as raised:
        client.publish(job_id)
    assert raised.value.status == 409
    move(jobs, job_id, JobStatus.QUEUED, JobStatus.RUNNING)

    def work() -> None:
        while not jobs.is_publish_requested(job_id):
            time.sleep(0.02)
        jobs.update(job_id, lambda record: record.publish_checkpoint(250, "v-step250"))

    for ask in (
        lambda: client.publish(job_id, poll_s=0.02),
        lambda: json.loads(ppl("publish", job_id, "--json").stdout)["version"],
    ):
        worker = threading.Thread(target=work)
        worker.start()
        assert ask() == "v-step250"
        worker.join()
    assert [made.step for made in client.job(job_id).checkpoint_versions] == [250, 250]
    with pytest.raises(TimeoutError):
        client.publish(job_id, poll_s=0.02, timeout_s=0.05)
    move(jobs, job_id, JobStatus.PAUSED)
    with pytest.raises(APIError, match="resume it first"):
        client.publish(job_id)
    client.cancel(job_id)
    with pytest.raises(APIError, match="already been cancelled"):
        client.publish(job_id)


def test_unknown_job_raises_also_when_followed(client: Client) -> None:
    for call in (
        client.pause,
        client.resume,
        client.checkpoints,
        client.preview,
        client.boxes,
        lambda job: list(client.events(job)),
    ):
        with pytest.raises(APIError) as raised:
            call("0" * 22)
        assert (raised.value.status, raised.value.code) == (404, "unknown_job")


def test_commands(ppl: Ppl, jobs: JobStore, job_id: str) -> None:
    move(jobs, job_id, JobStatus.QUEUED)
    assert "paused" in ppl("pause", job_id).stdout
    assert "queued" in ppl("resume", job_id).stdout
    save(jobs, job_id, 4)
    assert job_id in ppl("jobs", "--category", "dog", "--status", "queued").stdout
    assert job_id not in ppl("jobs", "--status", "paused").stdout
    table = ppl("checkpoints", job_id).stdout
    assert "3.0 MiB" in table
    assert "0.250" in table
    assert json.loads(ppl("checkpoints", job_id, "--json").stdout)["items"][0]["step"] == 4
    move(jobs, job_id, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    shown = ppl("events", job_id, "--follow").stdout.splitlines()
    assert shown[-1].split()[-2:] == ["completed", "succeeded"]
    lines = [json.loads(line) for line in ppl("events", job_id, "--after", 2, "--json").stdout.splitlines()]
    assert [line["id"] for line in lines] == list(range(3, 3 + len(lines)))


def test_commands_report_errors(ppl: Ppl, jobs: JobStore, job_id: str) -> None:
    move(jobs, job_id, JobStatus.CANCELLED)
    done = ppl("pause", job_id)
    assert done.returncode != 0
    assert "cancelled" in done.stderr

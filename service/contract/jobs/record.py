"""Training jobs as they are stored: their internal state, and every change of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from service.contract.errors import Abandoned, Conflict, JobNotActive, PPLError, UnreadableJob

from .job import (
    TRANSITIONS,
    Activate,
    Checkpoint,
    CheckpointVersion,
    Continued,
    Job,
    JobDataset,
    JobError,
    JobStatus,
    Setting,
)

Events = list[tuple[str, dict[str, Any]]]  # kind and data

MAX_CRASHES_WITHOUT_PROGRESS = 9
"""More than a worker is killed in a row by other causes than the job, before its next checkpoint."""


class JobSource(BaseModel):
    """The source of a job's pictures: an uploaded archive, or a folder below the data root.

    Attributes:
        name: file name of the upload; frames of an uploaded video are named after it.
        dataset: the dataset whose archive it is, if any.
    """

    kind: Literal["archive", "folder"] = "archive"
    folder: str | None = None
    name: str | None = None
    dataset: JobDataset | None = None


@dataclass(frozen=True)
class NewJob:
    """A job to create.

    Attributes:
        job_id: chosen at random unless given.
        owner: id of the API key that asks, if any.
        webhook_url: receives the end of the job.
        continued_from: the version whose weights training starts from.
    """

    category: str
    settings: dict[str, Setting]
    total_steps: int
    source: JobSource = field(default_factory=JobSource)
    job_id: str | None = None
    activate: Activate = True
    owner: str | None = None
    webhook_url: str | None = None
    continued_from: Continued | None = None


@dataclass(frozen=True)
class NamedRequest:
    """A request with an Idempotency-Key.

    Attributes:
        name: the key.
        fingerprint: hash of everything the request asks for; without spaces.
        ttl_s: how long the key is remembered.
    """

    name: str
    fingerprint: str
    ttl_s: int


class JobRecord(BaseModel):
    """A job with its internal state, as stored.

    Attributes:
        starts: number of starts by workers since its last progress.
        checkpointed: the step that training resumes from.
        trained_s: training time up to that step.
        previewed: the step of the last preview.
        pause_wanted: a pause was requested; reset when it is paused or resumed.
        publish_wanted: a version of what it has learned so far was requested; reset when it is made.
        publish_key: the Idempotency-Key of the last such request.
        ahead: its worker stopped or crashed, so it goes to the head of the queue.
        traceparent: the span of the request that created it.
        pending_events: to write beside those that a change itself implies; not stored.
    """

    job: Job
    source: JobSource = JobSource()
    starts: int = 0
    checkpointed: int = 0
    trained_s: float = 0.0
    previewed: int = -1
    pause_wanted: bool = False
    publish_wanted: bool = False
    publish_key: str | None = None
    ahead: bool = False
    traceparent: str | None = None
    pending_events: Events = Field(default_factory=list, exclude=True)

    def log(self, message: str) -> None:
        """Add a log line to the job's events."""
        self.pending_events.append(("log", {"message": message}))

    def move(self, status: JobStatus) -> None:
        """Change the status and the fields that depend on it.

        Raises:
            JobNotActive: it has ended.
            Conflict: the transition does not exist.
        """
        job = self.job
        if job.status.ended:
            ended = "been cancelled" if job.status is JobStatus.CANCELLED else job.status
            raise JobNotActive(f"job {job.id} has already {ended}")
        if status not in TRANSITIONS[job.status]:
            raise Conflict(f"job {job.id} is {job.status}, which can't change to {status}")
        job.status = status
        if status is not JobStatus.RUNNING:
            self._reset_progress()
        if status is JobStatus.PAUSED:
            self.pause_wanted = self.ahead = False
        if status is JobStatus.RUNNING and job.started_at is None:
            job.started_at = datetime.now(UTC)
        if status.ended:
            job.finished_at = datetime.now(UTC)

    def fail(self, error: PPLError) -> None:
        """End the job as failed."""
        if self.job.status is JobStatus.PAUSED:
            self.reclaim()
        self.move(JobStatus.FAILED)
        self.job.error = JobError(**error.to_dict())

    def count_start(self) -> bool:
        """Count a start. If the workers crash repeatedly without progress, fail the job and return False."""
        if self.starts > MAX_CRASHES_WITHOUT_PROGRESS:
            self.fail(
                Abandoned(
                    f"its worker crashed {self.starts} times at the same place (step {self.checkpointed}); see the "
                    "worker's log, lack of memory is the usual reason"
                )
            )
            return False
        self.starts += 1
        self.ahead = False
        return True

    def checkpoint(self, made: Checkpoint, trained_s: float) -> None:
        """Record a checkpoint. Progress resets the crash counter."""
        if made.step > self.checkpointed:
            self.starts = min(self.starts, 1)
            self.checkpointed, self.trained_s = made.step, trained_s
            self.pending_events.append(("checkpoint", made.model_dump(mode="json")))

    def preview(self, step: int) -> None:
        """Record that a preview of a step was drawn."""
        if step != self.previewed:
            self.previewed = step
            self.pending_events.append(("preview", {"step": step}))

    def requeue(self) -> None:
        """Put the job back into the queue, or pause it if requested, when its worker stops without a crash."""
        self._put_back()
        self.starts = 0

    def handle_lost_worker(self) -> None:
        """Put the job back into the queue, or pause it if requested, when its worker crashed or lost its lease."""
        if self.job.status is JobStatus.RUNNING:
            self.log("the worker is lost; the job waits for another one")
            self._put_back()

    def reclaim(self) -> None:
        """Continue as running: its worker was out of reach, and has the lease again."""
        if self.job.status is JobStatus.PAUSED:
            self.move(JobStatus.QUEUED)
        if self.job.status is JobStatus.QUEUED:
            self.ahead = False
            self.move(JobStatus.RUNNING)

    def _put_back(self) -> None:
        """Queue or pause the job; a job that was put back already stays as it is."""
        status = self.job.status
        self.ahead = self.ahead or status is JobStatus.RUNNING
        target = JobStatus.PAUSED if self.pause_wanted or status is JobStatus.PAUSED else JobStatus.QUEUED
        if status is target:
            self._reset_progress()
        else:
            self.move(target)

    def _reset_progress(self) -> None:
        self.job.progress.eta_s = self.job.progress.stage = None

    def request_pause(self) -> None:
        """Request a pause. Raises JobNotActive."""
        if self.job.status.ended:
            self.move(JobStatus.PAUSED)  # raises JobNotActive
        self.pause_wanted = self.job.status is not JobStatus.PAUSED

    def request_publish(self, key: str | None = None) -> None:
        """Request a version of what a running job has learned so far, once for a key. Raises JobNotActive, Conflict."""
        job = self.job
        if key and key == self.publish_key:
            return
        if job.status.ended:
            self.move(JobStatus.RUNNING)  # raises JobNotActive
        if job.status is not JobStatus.RUNNING:
            what = "resume it first" if job.status is JobStatus.PAUSED else "wait until it is running"
            raise Conflict(f"job {job.id} is {job.status}; a version is made of a job that trains: {what}")
        self.publish_wanted, self.publish_key = True, key

    def publish_checkpoint(self, step: int, version: str) -> None:
        """Record a version that was made of the state after a step."""
        self.publish_wanted = False
        self.job.checkpoint_versions.append(CheckpointVersion(step=step, version=version))
        self.log(f"version {version} is made of the state after step {step}")

    def pause_if_requested(self) -> bool:
        """Pause a queued or running job if requested. Return whether it is paused."""
        if self.pause_wanted and self.job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
            self.requeue()
        return self.job.status is JobStatus.PAUSED

    def resume(self) -> None:
        """Queue a paused job, or withdraw the request to pause it. Raises JobNotActive."""
        if self.job.status.ended:
            self.move(JobStatus.QUEUED)  # raises JobNotActive
        self.pause_wanted = False
        if self.job.status is JobStatus.PAUSED:
            self.move(JobStatus.QUEUED)


def parse_record(job_id: str, text: bytes) -> JobRecord:
    """Parse a job's record. Raises UnreadableJob."""
    try:
        return JobRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UnreadableJob(
            f"the record of job {job_id} can't be read ({where}: {first['msg']}); it may be of a later release: run "
            "that release to continue the job"
        ) from error

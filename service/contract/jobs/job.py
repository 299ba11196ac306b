"""The shape of a training job, and the states it goes through.

                   ┌──▶ paused ◀──┐
                   ▼              │
validating ──▶ queued ◀──▶ running ──▶ succeeded
    │            │            │
    └────────────┴────────────┴──────▶ failed, cancelled

A paused job goes back to the queue, or is cancelled; a queued one can be paused too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, PrivateAttr, ValidationError, field_serializer

from service.contract.errors import Abandoned, Conflict, JobNotActive, PPLError, UnknownJob, UnreadableJob

from .webhooks import Delivery

Setting = bool | int | float | str

MAX_DEATHS = 3  # of a job's workers without any progress between them
# among a job's metrics
_NOT_LOSSES = ("images", "skipped", "skipped_files", "held_out", "mode", "clips", "steps_per_s", "device")


class JobStatus(StrEnum):
    """Where a job stands."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


_ID = re.compile(r"[0-9a-f]{8,64}")


def is_job_id(text: str) -> bool:
    """Whether a job may be called so: anything else must not become part of a key or of a path."""
    return bool(_ID.fullmatch(text))


def check_job_id(text: str) -> str:
    """The id, if a job may be called so. Raises UnknownJob."""
    if not is_job_id(text):
        raise UnknownJob(f"no job {text[:80]!r}")
    return text


def losses_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The losses by name among a job's metrics."""
    return {name: value for name, value in metrics.items() if name not in _NOT_LOSSES}


class Progress(BaseModel):
    """How far training is.

    ``eta_s`` is how many seconds it takes to the end, those of the wait included; None until there is something to go
    by: the pace of now, or, of a job that waits, that of an earlier job of the same settings.

    ``stage`` is "training", or "evaluating" once all steps are done and the labels that came along are scored;
    None while no worker trains.
    """

    step: int = 0
    total_steps: int
    fraction: float = 0.0
    eta_s: float | None = None
    stage: Literal["training", "evaluating"] | None = None


class Checkpoint(BaseModel):
    """A state that training could go on from."""

    step: int
    saved_at: AwareDatetime
    size_bytes: int
    losses: dict[str, float] = Field(description="the losses of its step by name; total is their weighted sum")


class CheckpointList(BaseModel):
    """The checkpoints that a job wrote, the newest first."""

    items: list[Checkpoint]


class JobError(BaseModel):
    """Why a job failed, for its owner."""

    code: str
    detail: str


class JobDataset(BaseModel):
    """The dataset that a job trains on, as it was when the job was started.

    Attributes:
        digest: "sha256:" and the hash of the dataset's archive.
    """

    id: str
    digest: str
    name: str | None = None


class Continued(BaseModel):
    """The version that a job goes on from, as it was when the job was started.

    Attributes:
        keypoint_names: of its keypoints, which stay what they are; None where nobody named them.
        lineage: CATEGORY@VERSION of all versions that it came from, itself the last.
    """

    category: str
    version: str
    keypoint_names: list[str] | None = None
    lineage: list[str] = Field(default_factory=list)


class Job(BaseModel):
    """A training job as the API shows it.

    Attributes:
        metrics: "images", "skipped" and the first "skipped_files" ({"name", "reason"}) once
            prepared, with the "mode" taken (stills or clips) and the number of "clips", and where labels came
            how many pictures are "held_out" of the training; from then on the last losses by name ("total" is
            the weighted sum), "steps_per_s" and "device".
        version: the version it published.
        settings: every setting of the model, and "preset".
        activate: whether its version becomes the active one when it succeeds.
        dataset: that it trains on; None where its pictures came with it.
        queue_position: which it is among the jobs that wait, 1 for the next; None for one that does not wait.
        continued_from: the version whose weights its training starts from, if any.
        webhook: what becomes of telling its end, where that was asked for.
        created_by: id of the API key that asked for it; None where the server asks for none.
        evaluation: of a job with labels that succeeded: the errors by protocol, on how many pictures they were
            measured, and how these were split.
    """

    id: str
    category: str
    status: JobStatus
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    progress: Progress
    metrics: dict[str, Any] = Field(default_factory=dict)
    version: str | None = None
    error: JobError | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    activate: bool = True
    dataset: JobDataset | None = None
    created_by: str | None = None
    queue_position: int | None = None
    webhook: Delivery | None = None
    continued_from: Continued | None = None

    @field_serializer("created_at", "started_at", "finished_at")
    def _utc(self, value: datetime | None) -> str | None:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if value else None


class JobSource(BaseModel):
    """Where a job's pictures come from: its uploaded archive, or a folder below the data root.

    ``name`` is the uploaded file's, as its sender calls it: the frames of a video sent by itself are named after it.
    ``dataset`` says whose archive it is, where it was not sent for this job alone.
    """

    kind: Literal["archive", "folder"] = "archive"
    folder: str | None = None
    name: str | None = None
    dataset: JobDataset | None = None


class JobRecord(BaseModel):
    """A job with what only the platform needs to know.

    Attributes:
        starts: how often a worker started it since it last got further.
        checkpointed: the step that a start goes on from.
        trained_s: how long it had been trained by then.
        pause_wanted: its owner wants it paused; kept until it is, or until he wants it to go on.
        ahead: its worker stopped or died, so it goes before those that wait: it had its turn before.
    """

    job: Job
    source: JobSource = JobSource()
    starts: int = 0
    checkpointed: int = 0
    trained_s: float = 0.0
    pause_wanted: bool = False
    ahead: bool = False
    _happened: list[tuple[str, dict[str, Any]]] = PrivateAttr(default_factory=list)

    @property
    def happened(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and data of the events to write with this change, beside those that the change itself shows."""
        return self._happened

    def log(self, message: str) -> None:
        """A line for the job's owner, among its events."""
        self._happened.append(("log", {"message": message}))

    def move(self, status: JobStatus) -> None:
        """Change the status and what goes with it.

        Raises:
            JobNotActive: it has ended.
            Conflict: no such transition.
        """
        job = self.job
        if job.status.ended:
            raise JobNotActive(f"job {job.id} has already {_past(job.status)}")
        if status not in TRANSITIONS[job.status]:
            raise Conflict(f"job {job.id} is {job.status} and can't become {status}")
        job.status = status
        if status is not JobStatus.RUNNING:
            self._stand_still()
        if status is JobStatus.PAUSED:
            self.pause_wanted = self.ahead = False
        if status is JobStatus.RUNNING and job.started_at is None:
            job.started_at = datetime.now(UTC)
        if status.ended:
            job.finished_at = datetime.now(UTC)

    def fail(self, error: PPLError) -> None:
        """End as failed, with the reason that its owner sees."""
        if self.job.status is JobStatus.PAUSED:
            self.take_back()
        self.move(JobStatus.FAILED)
        self.job.error = JobError(**error.to_dict())

    def begin(self) -> bool:
        """Count a start; False, and failed, when its workers die again and again without getting further."""
        if self.starts > MAX_DEATHS:
            self.fail(
                Abandoned(
                    f"its worker died {self.starts} times at the same place (step {self.checkpointed}); "
                    "the worker's log may say why, and lack of memory is the usual reason"
                )
            )
            return False
        self.starts += 1
        self.ahead = False
        return True

    def checkpoint(self, made: Checkpoint, trained_s: float) -> None:
        """Note where training can go on from; getting further forgives earlier deaths."""
        if made.step > self.checkpointed:
            self.starts = min(self.starts, 1)
            self.checkpointed, self.trained_s = made.step, trained_s
            self._happened.append(("checkpoint", made.model_dump(mode="json")))

    def set_aside(self) -> None:
        """By a worker that stops in good order, which is no death: back to the queue, or paused where so wanted."""
        self._put_back()
        self.starts = 0

    def lose_worker(self) -> None:
        """Its worker died or is out of reach for long: it waits for another, or is paused where so wanted."""
        if self.job.status is JobStatus.RUNNING:
            self.log("its worker is gone; the job waits for another one")
            self._put_back()

    def take_back(self) -> None:
        """Its worker, given up for lost while it was out of reach, has it in hand after all."""
        if self.job.status is JobStatus.PAUSED:
            self.move(JobStatus.QUEUED)
        if self.job.status is JobStatus.QUEUED:
            self.ahead = False
            self.move(JobStatus.RUNNING)

    def _put_back(self) -> None:
        """One that was given up for lost has been put back already, and stays so."""
        status = self.job.status
        self.ahead = self.ahead or status is JobStatus.RUNNING
        wanted = JobStatus.PAUSED if self.pause_wanted or status is JobStatus.PAUSED else JobStatus.QUEUED
        if status is wanted:
            self._stand_still()
        else:
            self.move(wanted)

    def _stand_still(self) -> None:
        self.job.progress.eta_s = self.job.progress.stage = None

    def want_pause(self) -> None:
        """Its owner wants it paused; whoever has it in hand sees to it. Raises JobNotActive."""
        if self.job.status.ended:
            self.move(JobStatus.PAUSED)  # raises, and says how it ended
        self.pause_wanted = self.job.status is not JobStatus.PAUSED

    def pause_if_wanted(self) -> bool:
        """Paused, where its owner wants it and nothing is under way; whether it is."""
        if self.pause_wanted and self.job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
            self.set_aside()
        return self.job.status is JobStatus.PAUSED

    def resume(self) -> None:
        """Back to the queue where it is paused, and no longer to be paused where it is not. Raises JobNotActive."""
        if self.job.status.ended:
            self.move(JobStatus.QUEUED)  # raises, and says how it ended
        self.pause_wanted = False
        if self.job.status is JobStatus.PAUSED:
            self.move(JobStatus.QUEUED)


class JobPage(BaseModel):
    """A part of the list of jobs, the newest first."""

    items: list[Job]
    next_cursor: str | None = None


def _past(status: JobStatus) -> str:
    return "been cancelled" if status is JobStatus.CANCELLED else str(status)


def record_of(job_id: str, text: bytes) -> JobRecord:
    """A job's record from its JSON. Raises UnreadableJob."""
    try:
        return JobRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UnreadableJob(
            f"the record of job {job_id} can't be read ({where}: {first['msg']}), as one of a later release; the job "
            "stays as it is, and goes on once a release runs that knows it"
        ) from error

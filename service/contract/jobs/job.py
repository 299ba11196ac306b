"""Training jobs as the API shows them, and how their states change.

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

from pydantic import AwareDatetime, BaseModel, Field, field_serializer

from service.contract.errors import UnknownJob
from service.contract.versions.quality import Quality

from .warnings import PictureWarning
from .webhooks import Delivery

Setting = bool | int | float | str
Activate = bool | Literal["always"]

# metrics that are not losses
_NOT_LOSSES = ("images", "skipped", "skipped_files", "held_out", "mode", "clips", "located", "steps_per_s", "device")


class JobStatus(StrEnum):
    """The status of a job."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
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


# whether a text is a valid job id; others must not become part of a key or path
is_job_id = re.compile(r"[0-9a-f]{8,64}").fullmatch


def check_job_id(text: str) -> str:
    """Return a valid job id. Raises UnknownJob."""
    if not is_job_id(text):
        raise UnknownJob(f"no job {text[:80]!r}; GET /train-jobs lists them")
    return text


def select_losses(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the losses among a job's metrics."""
    return {name: value for name, value in metrics.items() if name not in _NOT_LOSSES}


class Progress(BaseModel):
    """The progress of a training.

    ``eta_s`` is the estimated time to the end, with the wait in the queue; None until the current pace, or that of an
    earlier job of the same settings, is known. ``stage`` is "training", or "evaluating" while the labels are scored
    after the last step; None while no worker trains.
    """

    step: int = 0
    total_steps: int
    fraction: float = 0.0
    eta_s: float | None = None
    stage: Literal["training", "evaluating"] | None = None


class Checkpoint(BaseModel):
    """A saved state that training can resume from."""

    step: int
    saved_at: AwareDatetime
    size_bytes: int
    losses: dict[str, float] = Field(description="the losses of its step by name; total is their weighted sum")


class CheckpointVersion(BaseModel):
    """A version that was made of a checkpoint while its job went on."""

    step: int
    version: str


class CheckpointList(BaseModel):
    """The checkpoints of a job, the newest first."""

    items: list[Checkpoint]


class JobError(BaseModel):
    """The reason why a job failed."""

    code: str
    detail: str


class JobDataset(BaseModel):
    """The dataset that a job trains on, as it was when the job was created.

    Attributes:
        digest: "sha256:" and the hash of the dataset's archive.
    """

    id: str
    digest: str
    name: str | None = None


class Continued(BaseModel):
    """The version that a job continues, as it was when the job was created.

    Attributes:
        keypoint_names: kept by the new version; None if the keypoints have no names.
        lineage: CATEGORY@VERSION of its ancestors and itself, the oldest first.
    """

    category: str
    version: str
    keypoint_names: list[str] | None = None
    lineage: list[str] = Field(default_factory=list)


class Job(BaseModel):
    """A training job as the API shows it.

    Attributes:
        metrics: once prepared "images", "skipped", the first "skipped_files" ({"name", "reason"}), "mode" (stills or
            clips), the number of "clips", how the thing was "located" ({"by", "side_px", "note"}: by "boxes",
            "motion" or "boxes and motion"; of both, the frames "sent", "found" and "corrected") unless pictures are
            taken whole, and with labels the number of pictures "held_out" of training; then the last losses by name
            ("total" is the weighted sum), "steps_per_s" and "device".
        version: the version it published.
        settings: every setting of the model, and "preset".
        activate: whether its version becomes the active one when it succeeds: not with the verdict "failed", unless
            it is "always".
        dataset: None if its pictures were uploaded with the job.
        queue_position: position among the waiting jobs, 1 for the next; None if it does not wait.
        continued_from: the version whose weights its training starts from, if any.
        webhook: the delivery of its end, if requested.
        created_by: id of the API key that created it; None on a server without keys.
        evaluation: errors of a successful job with labels by protocol, the number of pictures they were measured
            on, and how these were split.
        quality: of a successful job: how good its version is, measured without labels.
        checkpoint_versions: versions that were made of it while it trained (``POST /train-jobs/{id}/publish``).
        warnings: what seems wrong with its pictures, known once they are prepared.
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
    quality: Quality | None = None
    activate: Activate = True
    dataset: JobDataset | None = None
    created_by: str | None = None
    queue_position: int | None = None
    webhook: Delivery | None = None
    continued_from: Continued | None = None
    checkpoint_versions: list[CheckpointVersion] = Field(default_factory=list)
    warnings: list[PictureWarning] = Field(default_factory=list)

    @field_serializer("created_at", "started_at", "finished_at")
    def _utc(self, value: datetime | None) -> str | None:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if value else None


class JobPage(BaseModel):
    """A page of the list of jobs, the newest first."""

    items: list[Job]
    next_cursor: str | None = None

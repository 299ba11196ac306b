"""Limits on unfinished jobs and on estimates in the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import QueueFull, TooManyJobs

# what the Lua scripts in jobs/scripts.py answer
FULL, OWNER_FULL = "full", "owner full"

_JOB_RETRY_S = 30.0
_ESTIMATE_RETRY_S = 10.0


@dataclass(frozen=True)
class JobLimits:
    """Limits on the unfinished jobs when another is created; 0 for no limit.

    Attributes:
        total: limit for all owners together.
        per_owner: limit for one API key.
    """

    total: int = 0
    per_owner: int = 0


def check_job_limits(answer: str, owner: str | None, limits: JobLimits) -> None:
    """Raise QueueFull or TooManyJobs if a script answered FULL or OWNER_FULL."""
    if answer == FULL:
        raise QueueFull(
            f"{limits.total} jobs are unfinished, which is the limit; try again when one has ended, or cancel one",
            retry_after_s=_JOB_RETRY_S,
        )
    if answer == OWNER_FULL:
        raise TooManyJobs(
            f"API key {owner} has {limits.per_owner} unfinished jobs, which is the limit; try again when one has "
            "ended, or cancel one",
            retry_after_s=_JOB_RETRY_S,
        )


@dataclass(frozen=True)
class EstimateLimits:
    """Limits on estimates in the background.

    Attributes:
        total: unfinished estimates.
        per_owner: unfinished estimates of one API key, with those it is still uploading; ignored without keys.
        total_bytes: files of all unfinished estimates, with what was received of uploads.
        owner_bytes: the same of one API key.
    """

    total: int
    per_owner: int
    total_bytes: int
    owner_bytes: int


@dataclass(eq=False)
class PendingEstimate:
    """An estimate that waits, or is still being uploaded.

    Attributes:
        owner: id of the API key that sent it, if any.
        size_bytes: size of the files received so far.
    """

    owner: str | None
    size_bytes: int = 0


def check_estimate_limits(
    limits: EstimateLimits,
    waiting: Sequence[PendingEstimate],
    ahead: Sequence[PendingEstimate],
    estimate: PendingEstimate,
    more_bytes: int = 0,
) -> None:
    """Raise QueueFull unless one more estimate fits.

    Args:
        waiting: unfinished estimates.
        ahead: uploads that began before this one.
        more_bytes: bytes of the estimate that were not received yet.
    """
    if len(waiting) >= limits.total:
        raise _queue_full(f"{len(waiting)} estimates wait in the background, which is the limit; try again later")
    others = [*waiting, *ahead]
    own = [other for other in others if other.owner == estimate.owner]
    own_label = f"estimates of API key {estimate.owner}" if estimate.owner is not None else "estimates"
    if len(own) >= (limits.per_owner if estimate.owner is not None else limits.total):
        raise _queue_full(
            f"{len(own)} {own_label} wait in the background or are being uploaded, which is the limit; try again when "
            "some have ended, or cancel some"
        )
    size = estimate.size_bytes + more_bytes
    bounds = [("estimates", limits.total_bytes, others)]
    if estimate.owner is not None:
        bounds.append((own_label, limits.owner_bytes, own))
    for label, max_bytes, pending in bounds:
        pending_bytes = sum(other.size_bytes for other in pending)
        if pending_bytes + size > max_bytes:
            raise _queue_full(
                f"the files of {label} that wait or are being uploaded have {pending_bytes} bytes and this one has "
                f"{size}; together at most {max_bytes} are allowed, try again when some have ended"
            )


def _queue_full(detail: str) -> QueueFull:
    return QueueFull(detail, retry_after_s=_ESTIMATE_RETRY_S)

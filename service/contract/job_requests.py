"""What a request to train brings along beside its settings: a name of its own, and the limits that it meets."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import KeyReused, QueueFull, TooManyJobs
from .jobs import scripts

_ROOM_RETRY_S = 30.0


@dataclass(frozen=True)
class NamedRequest:
    """A request whose sender gave it a name, so that sending it twice does no harm.

    Attributes:
        fingerprint: of all that it asks for; without spaces.
        ttl_s: how long the name is remembered.
    """

    name: str
    fingerprint: str
    ttl_s: int


@dataclass(frozen=True)
class JobLimits:
    """How many jobs may not have ended when another is created.

    Attributes:
        in_all: whoever asked for them.
        of_owner: of the one who asks, where he is known.
    """

    in_all: int
    of_owner: int


def check_same(request: NamedRequest, made: str, fingerprint: str) -> None:
    if fingerprint != request.fingerprint:
        raise KeyReused(
            f"the Idempotency-Key {request.name!r} came with another request before, which made job {made}; send "
            "the same request again, or give this one a key of its own",
            extra={"job_id": made},
        )


def check_room(answer: str, owner: str | None, limits: JobLimits | None) -> None:
    """Raises what a script says of the room for another job."""
    if limits is None:
        return
    if answer == scripts.FULL:
        raise QueueFull(
            f"{limits.in_all} jobs have not ended, and no more may be; try again when one has, or cancel one",
            retry_after_s=_ROOM_RETRY_S,
        )
    if answer == scripts.OWNER_FULL:
        raise TooManyJobs(
            f"{limits.of_owner} jobs of the key {owner} have not ended, and no more may be; try again when one has, or "
            "cancel one",
            retry_after_s=_ROOM_RETRY_S,
        )

"""Requests on their way through the batches: what waits, what is in flight, and what a reply says of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from asgi_correlation_id import correlation_id
from numpy.typing import NDArray

from service.contract.errors import ContractMismatch, ModelFailed, PPLError
from service.contract.messages import BatchReply

log = logging.getLogger(__name__)

Square = NDArray[np.uint8]  # (S, S, 3)


class Group(NamedTuple):
    """What pictures must have in common to share a batch."""

    category: str
    version: str
    side: int
    refine_steps: int
    link_map: bool
    codes: bool = False


class Pose(NamedTuple):
    """What the model says about one picture, in the coordinates of its square."""

    keypoints: NDArray[np.float32]  # (K, 2)
    scores: NDArray[np.float32]  # (K,)
    trajectory: NDArray[np.float32]  # (T + 1, K, 2)
    link_map: NDArray[np.uint8] | None  # (S, S)
    surprise: float | None = None
    codes: NDArray[np.uint16] | None = None  # (M,)


@dataclass(eq=False)
class Ticket:
    """The pictures of one request on their way; ``poses`` fills up in any order."""

    group: Group
    squares: Sequence[Square]
    deadline: float  # unix time
    done: asyncio.Future[None]
    poses: dict[int, Pose] = field(default_factory=dict)
    model_ms: float = 0.0
    asked_at: float = field(default_factory=time.monotonic)
    request_id: str | None = field(default_factory=correlation_id.get)

    def fail(self, error: PPLError) -> None:
        """End with an error, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)


Waiting = deque[tuple[Ticket, int]]  # a ticket and the index of one of its pictures


@dataclass(eq=False)
class Flight:
    """A batch that was sent and not answered; one that is ``late`` holds no place in flight."""

    items: list[tuple[Ticket, int]]
    sent_at: float
    late: bool = False


def collect(waiting: dict[Group, Waiting], limit: int) -> tuple[Group, list[tuple[Ticket, int]]] | None:
    """Take the next batch out of what waits: the group whose first picture has waited longest.

    ``waiting`` keeps its groups in the order in which their first picture came; a group that is
    not emptied goes behind the others, so that a busy category does not starve a quiet one.
    """
    if not waiting:
        return None
    group = next(iter(waiting))
    queue = waiting.pop(group)
    items = [queue.popleft() for _ in range(min(limit, len(queue)))]
    if queue:
        waiting[group] = queue
    return group, items


def misfit(reply: BatchReply, flight: Flight) -> PPLError | None:
    arrays: list[NDArray[Any] | None] = [reply.keypoints, reply.scores, reply.trajectory]
    group = flight.items[0][0].group
    if group.link_map:
        arrays.append(reply.link_map)
    arrays += [array for array in (reply.surprises, reply.codes) if array is not None]
    if all(array is not None and len(array) == len(flight.items) for array in arrays):
        numbers = (*arrays[:3], reply.surprises)
        if all(np.isfinite(array).all() for array in numbers if array is not None):
            if group.codes and reply.codes is None:
                return ContractMismatch(
                    "the worker that answered is of an older release and says no codes; "
                    "leave codes out of include, or run gateway and workers of one release"
                )
            return None
        return ModelFailed("the model's poses are not numbers; this version of the category is broken, train it anew")
    log.error("the reply to batch %s does not fit it", reply.batch_id)
    return ModelFailed("the worker's reply does not fit the batch")


def pose_of(reply: BatchReply, row: int) -> Pose:
    assert reply.keypoints is not None  # _misfit has looked
    assert reply.scores is not None
    assert reply.trajectory is not None
    link_map = None if reply.link_map is None else reply.link_map[row]
    surprise = None if reply.surprises is None else float(reply.surprises[row])
    codes = None if reply.codes is None else reply.codes[row]
    return Pose(reply.keypoints[row], reply.scores[row], reply.trajectory[row], link_map, surprise, codes)

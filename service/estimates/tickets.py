"""Pictures that wait for their poses, and the batches that they are taken into."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from asgi_correlation_id import correlation_id
from numpy.typing import NDArray

from service.contract import routing, tracing
from service.contract.errors import PPLError

from .replies import Group, Pose

Square = NDArray[np.uint8]  # (S, S, 3)
URGENT, STREAMED, BACKGROUND = routing.PRIORITIES


@dataclass(eq=False)
class Ticket:
    """Squares of one request that wait for their poses, which arrive in any order.

    Attributes:
        deadline: monotonic time.
        priority: URGENT, STREAMED or BACKGROUND; lower ones go first.
        poses: the poses by index of the square.
        model_ms: the model's time on all batches that held a square.
    """

    group: Group
    squares: Sequence[Square]
    deadline: float
    done: asyncio.Future[None]
    priority: int = URGENT
    poses: dict[int, Pose] = field(default_factory=dict)
    model_ms: float = 0.0
    created_at: float = field(default_factory=time.monotonic)
    request_id: str | None = field(default_factory=correlation_id.get)
    traceparent: str | None = field(default_factory=tracing.traceparent)

    def fail(self, error: PPLError) -> None:
        """End with an error, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)


Item = tuple[Ticket, int]  # a ticket and the index of one of its squares


@dataclass(eq=False)
class Flight:
    """A batch without a reply. A late one no longer counts as in flight.

    Attributes:
        priority: that of its tickets, or URGENT if they have waited too long.
    """

    batch_id: str
    items: list[Item]
    priority: int
    sent_at: float
    late: bool = False

    @property
    def requests(self) -> list[str]:
        """The ids of its requests."""
        return sorted({ticket.request_id for ticket, _ in self.items if ticket.request_id})


def collect(waiting: dict[Group, deque[Item]], limit: int) -> list[Item]:
    """Take the next batch from the queue, of the group whose first picture has waited longest; empty if none waits.

    `waiting` keeps its groups in the order of their first picture; a group with pictures left goes to the end, so
    that a busy category does not starve a quiet one.
    """
    if not waiting:
        return []
    group = next(iter(waiting))
    queue = waiting.pop(group)
    items = [queue.popleft() for _ in range(min(limit, len(queue)))]
    if queue:
        waiting[group] = queue
    return items

"""Batches formed in the gateway: sent at once when nothing is in flight, collected while a batch is.

A request's pictures wait as a :class:`Ticket`; pictures of tickets with one :class:`Group` may share
a batch. As many batches are in flight as inference workers live. Where other pictures are being decoded, a batch waits
a little for them, until it holds half of all that are under way: what a batch costs by itself is shared then. What
waits is bounded, and every ticket ends: with its poses, or an error within the time that a request may take.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from service.contract.errors import EstimateTimeout, PPLError, QueueFull, WorkerUnavailable
from service.contract.messages import BatchReply, BatchRequest
from service.http.problems import redis_unavailable
from service.runtime.metrics import Metrics
from service.runtime.redis_clients import QUEUE_ERRORS
from service.runtime.threads import cancel_tasks

from .tickets import Flight, Group, Square, Ticket, Waiting, collect, misfit, pose_of

log = logging.getLogger(__name__)

Send = Callable[[BatchRequest, bytes | None], Awaitable[None]]

_RETRY_S = 5.0


class Coming:
    """Pictures that are being made ready and will wait soon; a context, which they leave with or without a ticket."""

    def __init__(self, batcher: Batcher, count: int) -> None:
        self._batcher, self._count = batcher, count

    def __enter__(self) -> Coming:
        self._batcher.count_coming(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self._count:
            self.arrive()
            self._batcher.pump()

    def arrive(self) -> None:
        """They wait now."""
        self._batcher.count_coming(-self._count)
        self._count = 0


class Batcher:
    """Carries pictures to the workers and their poses back. One event loop's; not for threads.

    Args:
        send: puts a batch and its pixels into the queue; without pixels, the message alone once more.
        reply_to: the list that replies come to; they are handed to :meth:`deliver`.
        batch_limit: pictures in a batch.
        queue_limit: pictures that may be under way.
        timeout_s: how long a ticket waits.
        late_s: a batch without reply for longer no longer counts as in flight (its worker may be
            dead, and it comes back only once the broker notices), and its message is sent again: one
            that the server handed to a dying connection is never delivered by itself. A message too
            many does no harm, as an answered batch has no pixels left.
        wait_s: how long a batch waits at most for pictures that are being made ready.
        live_workers: how many inference workers live, as far as is known.
    """

    def __init__(
        self,
        send: Send,
        reply_to: str,
        *,
        batch_limit: int,
        queue_limit: int,
        timeout_s: float,
        late_s: float,
        wait_s: float = 0.0,
        live_workers: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._send, self._reply_to = send, reply_to
        self._batch_limit, self._queue_limit = batch_limit, queue_limit
        self._timeout_s, self._late_s, self._wait_s = timeout_s, late_s, wait_s
        self._live_workers = live_workers
        self._metrics = metrics
        self._waiting: dict[Group, Waiting] = {}
        self._flights: dict[str, Flight] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._coming = 0
        self._waking: asyncio.TimerHandle | None = None
        self._picture_s = 0.05  # time between two pictures' answers, lately

    @property
    def pending(self) -> int:
        """Pictures under way: waiting or in flight."""
        return self._pending

    @property
    def waiting(self) -> int:
        """Pictures that are in no batch yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def in_flight(self) -> int:
        """Batches sent and not answered, the late ones included."""
        return len(self._flights)

    def check_room(self, count: int) -> None:
        """Raise QueueFull unless so many more pictures may wait; asked early, before they are decoded."""
        if self._pending + count > self._queue_limit:
            self._metrics.rejected.inc()
            wait_s = min(30.0, max(1.0, self._pending * self._picture_s))
            raise QueueFull(
                f"{self._pending} pictures are waiting and {self._queue_limit} may; "
                f"try again in {math.ceil(wait_s)} s, or send fewer at once",
                retry_after_s=wait_s,
            )

    def coming(self, count: int) -> Coming:
        """For so many pictures while they are being made ready; what is waiting may wait for them."""
        return Coming(self, count)

    def count_coming(self, count: int) -> None:
        """So many more are being made ready, or fewer."""
        self._coming += count

    async def estimate(self, group: Group, squares: Sequence[Square], coming: Coming | None = None) -> Ticket:
        """The poses of some squares, (S, S, 3) each; the ticket comes back with all of them.

        Args:
            coming: as what they were announced.

        Raises:
            QueueFull: too many pictures wait.
            EstimateTimeout, WorkerUnavailable, RedisUnavailable: no answer in time.
            PPLError: the worker's error.
        """
        self.check_room(len(squares))
        ticket = Ticket(group, squares, time.time() + self._timeout_s, asyncio.get_running_loop().create_future())
        self._pending += len(squares)
        self._waiting.setdefault(group, deque()).extend((ticket, index) for index in range(len(squares)))
        if coming:
            coming.arrive()
        self.pump()
        try:
            async with asyncio.timeout(self._timeout_s):
                await ticket.done
        except TimeoutError:
            raise self._timed_out() from None
        finally:
            self._pending -= len(squares)
            self._withdraw(ticket)
        return ticket

    def deliver(self, reply: BatchReply) -> None:
        """A reply as it came off the list; one that nobody waits for any more is dropped."""
        flight = self._flights.pop(reply.batch_id, None)
        if flight is None:
            self._metrics.late_replies.inc()
            return
        took_s = time.monotonic() - flight.sent_at
        self._picture_s += 0.2 * (took_s / len(flight.items) - self._picture_s)
        error = reply.error or misfit(reply, flight)
        if error:
            names = sorted({ticket.request_id for ticket, _ in flight.items if ticket.request_id})
            log.warning("batch %s, of requests %s: %s", reply.batch_id, ", ".join(names) or "-", error.detail)
        for row, (ticket, index) in enumerate(flight.items):
            if error:
                ticket.fail(error)
            elif not ticket.done.done():
                ticket.poses[index] = pose_of(reply, row)
                if len(ticket.poses) == len(ticket.squares):
                    ticket.done.set_result(None)
        for ticket in {ticket for ticket, _ in flight.items}:
            ticket.model_ms += reply.timing_ms.get("model", 0.0)
        self.pump()

    async def close(self) -> None:
        """End what is still being sent."""
        await cancel_tasks(self._sending)

    def pump(self) -> None:
        """Send batches while there are pictures to send and room in flight."""
        while self._has_room() and not self._holds() and (taken := collect(self._waiting, self._batch_limit)):
            group, items = taken
            batch_id = uuid.uuid4().hex
            self._flights[batch_id] = Flight(items, time.monotonic())
            self._metrics.batch_size.observe(len(items))
            self._start(self._launch(batch_id, group, items))
            loop = asyncio.get_running_loop()
            loop.call_later(self._late_s, self._late, batch_id)
            loop.call_later(self._timeout_s, self._expire, batch_id)

    def _holds(self) -> bool:
        """Whether the next batch waits for pictures that are being made ready."""
        if not self._coming or not self._waiting:
            return False
        first = next(iter(self._waiting.values()))
        if len(first) >= min(self._batch_limit, (self.waiting + self._coming) // 2):
            return False
        wait_s = first[0][0].asked_at + self._wait_s - time.monotonic()
        if wait_s <= 0:
            return False
        if self._waking:
            self._waking.cancel()
        self._waking = asyncio.get_running_loop().call_later(wait_s, self.pump)
        return True

    def _has_room(self) -> bool:
        on_time = sum(not flight.late for flight in self._flights.values())
        return on_time < max(1, self._live_workers())

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _late(self, batch_id: str) -> None:
        flight = self._flights.get(batch_id)
        if flight is None:
            return
        flight.late = True
        try:
            if any(not ticket.done.done() for ticket, _ in flight.items):
                self._start(self._launch_again(self._request(batch_id, flight.items[0][0].group, flight.items)))
        finally:
            self.pump()

    async def _launch_again(self, request: BatchRequest) -> None:
        log.warning("batch %s has no answer after %g s: its message is sent again", request.batch_id, self._late_s)
        try:
            await self._send(request, None)
        except QUEUE_ERRORS as error:  # the first message may still be answered
            log.warning("batch %s was not sent again: %s", request.batch_id, error)

    def _request(self, batch_id: str, group: Group, items: list[tuple[Ticket, int]]) -> BatchRequest:
        return BatchRequest(
            batch_id=batch_id,
            category=group.category,
            version=group.version,
            count=len(items),
            side=group.side,
            refine_steps=group.refine_steps,
            link_map=group.link_map,
            codes=group.codes,
            reply_to=self._reply_to,
            deadline=max(ticket.deadline for ticket, _ in items),
        )

    async def _launch(self, batch_id: str, group: Group, items: list[tuple[Ticket, int]]) -> None:
        try:
            pixels = np.stack([ticket.squares[index] for ticket, index in items])
            await self._send(self._request(batch_id, group, items), pixels.tobytes())
        except QUEUE_ERRORS as error:
            log.warning("batch %s was not sent: %s", batch_id, error)
            self._abandon(batch_id, items, redis_unavailable())
        except Exception:  # whatever it was, those who wait are told now and not after a timeout
            log.exception("batch %s was not sent", batch_id)
            self._abandon(batch_id, items, PPLError("the batch could not be sent; the gateway's log says why"))

    def _abandon(self, batch_id: str, items: list[tuple[Ticket, int]], error: PPLError) -> None:
        self._metrics.unsent.inc()
        self._flights.pop(batch_id, None)
        for ticket, _ in items:
            ticket.fail(error)
        self.pump()

    def _expire(self, batch_id: str) -> None:
        """Forget a batch that was never answered; those who waited have timed out by themselves."""
        if self._flights.pop(batch_id, None):
            self._metrics.lost.inc()
            self.pump()

    def _withdraw(self, ticket: Ticket) -> None:
        """Take the pictures of a ticket that ended out of the queue."""
        queue = self._waiting.get(ticket.group)
        if queue and len(ticket.poses) < len(ticket.squares):
            kept = deque(item for item in queue if item[0] is not ticket)
            if kept:
                self._waiting[ticket.group] = kept
            else:
                del self._waiting[ticket.group]

    def _timed_out(self) -> PPLError:
        if self._live_workers() < 1:
            return WorkerUnavailable(
                f"no inference worker is running; nothing answered within {self._timeout_s:g} s. "
                "Start one (`python -m worker inference`; `ppl up` starts it by itself)",
                retry_after_s=_RETRY_S,
            )
        return EstimateTimeout(
            f"no answer within {self._timeout_s:g} s; the workers are busy or being restarted, try again",
            retry_after_s=_RETRY_S,
        )

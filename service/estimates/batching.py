"""Batches of pictures, formed in the gateway and sent to the inference workers.

As many batches are in flight as workers live, divided by the gateways: if each counted on all workers, many gateways
would send many small batches. Full ones may exceed that share. Pictures that a request waits for go before streams and
videos, and these before the background: in the gateway, and in the workers' queue. A worker finishes the batch it has,
so less urgent batches are small while urgent ones come. As urgent ones may come without end, a less urgent batch takes
their place every half second. While other pictures are being decoded, a batch waits a moment for them, until it holds
half of all in progress. The queue is bounded, and every ticket ends in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from service.contract import routing, tracing
from service.contract.durable_files import is_disk_full
from service.contract.errors import EstimateTimeout, PPLError, QueueFull
from service.contract.messages import BatchReply, BatchRequest
from service.http.problems import disk_full, no_inference_worker, redis_unavailable
from service.runtime.concurrency import cancel_tasks
from service.runtime.metrics import Metrics
from service.runtime.redis_clients import QUEUE_ERRORS

from .replies import Group, check_reply, read_pose
from .tickets import URGENT, Flight, Item, Square, Ticket, collect

log = logging.getLogger(__name__)

Send = Callable[[BatchRequest, bytes | None], Awaitable[None]]
_RETRY_S = 5.0
_URGENT_S = 10.0  # after an urgent ticket, more are expected
_SMALL_BATCH_S = 0.02  # the model's time for a less urgent batch while urgent tickets are expected
_TURN_S = 0.5  # the longest time without a less urgent batch while such pictures wait


class Batcher:
    """A sender of squares to the workers in batches. For one event loop; not thread-safe.

    Args:
        send: queues a batch with its pixels; without pixels, sends its message again.
        reply_to: key of the list of replies, which are handed to :meth:`deliver`.
        batch_limit: pictures in a batch.
        queue_limit: pictures that may wait or be in flight.
        timeout_s: after which a ticket fails.
        late_s: after which a batch without reply no longer counts as in flight (its worker may have crashed) and its
            message is sent again (Redis may have handed the first one to a dying connection). A duplicate is harmless,
            as an answered batch has no pixels left.
        wait_s: longest time that a batch waits for announced pictures.
        live_workers: returns the number of live inference workers.
        live_gateways: returns the number of gateways that share them, this one included.
        workers_are_gone: returns whether none was seen for so long that waiting for one is useless.

    Attributes:
        pending: number of pictures that wait or are in flight.
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
        live_gateways: Callable[[], int] = lambda: 1,
        workers_are_gone: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        self._send, self._reply_to = send, reply_to
        self._batch_limit, self._queue_limit = batch_limit, queue_limit
        self._timeout_s, self._late_s, self._wait_s = timeout_s, late_s, wait_s
        self._live_workers, self._live_gateways, self._workers_are_gone = live_workers, live_gateways, workers_are_gone
        self._metrics = metrics
        self._queues: dict[int, dict[Group, deque[Item]]] = {priority: {} for priority in routing.PRIORITIES}
        self._flights: dict[str, Flight] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self.pending = 0
        self._announced = dict.fromkeys(routing.PRIORITIES, 0)
        self._urgent_at = float("-inf")
        self._turns = dict.fromkeys(routing.PRIORITIES, float("-inf"))  # when a batch of a priority was last sent
        self._model_s = 0.01  # moving average of the model's time for a picture
        self._timer: asyncio.TimerHandle | None = None
        self._picture_s = 0.05  # moving average of the time between two pictures' replies

    @property
    def waiting(self) -> int:
        """Number of pictures that are in no batch yet."""
        return sum(map(len, chain.from_iterable(queue.values() for queue in self._queues.values())))

    @property
    def in_flight(self) -> int:
        """Number of batches without a reply, late ones included."""
        return len(self._flights)

    def check_room(self, count: int) -> None:
        """Raise QueueFull unless `count` more pictures fit; call it before decoding them, too."""
        if self.pending + count > self._queue_limit:
            self._metrics.rejected.inc()
            wait_s = min(30.0, max(1.0, self.pending * self._picture_s))
            raise QueueFull(
                f"{self.pending} of at most {self._queue_limit} pictures are waiting; "
                f"try again in {math.ceil(wait_s)} s, or send fewer at once",
                retry_after_s=wait_s,
            )

    @contextmanager
    def announce(self, count: int, priority: int = URGENT) -> Iterator[Callable[[], None]]:
        """Announce pictures that are being decoded, which batches may wait for.

        Yields a function that ends the announcement; otherwise it ends with the block.
        """
        left = count
        self._announced[priority] += left

        def end() -> None:
            nonlocal left
            self._announced[priority] -= left
            left = 0

        try:
            yield end
        finally:
            if left:
                end()
                self.send_batches()

    async def estimate(
        self,
        group: Group,
        squares: Sequence[Square],
        on_queued: Callable[[], None] = lambda: None,
        priority: int = URGENT,
    ) -> Ticket:
        """Wait for the poses of some squares, (S, S, 3) each.

        Calls `on_queued` once they are in the queue.

        Raises:
            QueueFull: too many pictures wait.
            WorkerUnavailable: no worker was seen for a while.
            EstimateTimeout, WorkerUnavailable, RedisUnavailable: no reply in time.
            PPLError: the worker's error.
        """
        self.check_room(len(squares))
        done = asyncio.get_running_loop().create_future()
        ticket = Ticket(group, squares, time.monotonic() + self._timeout_s, done, priority)
        if priority == URGENT:
            self._urgent_at = time.monotonic()
        self.pending += len(squares)
        queue = self._queues[priority].setdefault(group, deque())
        queue.extend((ticket, index) for index in range(len(squares)))
        on_queued()
        self.send_batches()
        try:
            async with asyncio.timeout(self._timeout_s):
                await ticket.done
        except TimeoutError:
            within = f"within {self._timeout_s:g} s"
            if self._live_workers() < 1:
                raise no_inference_worker(f"none replied {within}") from None
            detail = f"no reply {within}; the workers are busy or being restarted, try again"
            raise EstimateTimeout(detail, retry_after_s=_RETRY_S) from None
        finally:
            self.pending -= len(squares)
            self._withdraw(ticket)
        return ticket

    def deliver(self, reply: BatchReply) -> None:
        """Hand the poses of a reply to their tickets; drop it if its batch has expired."""
        flight = self._flights.pop(reply.batch_id, None)
        if flight is None:
            self._metrics.late_replies.inc()
            return
        elapsed_s = time.monotonic() - flight.sent_at
        self._picture_s += 0.2 * (elapsed_s / len(flight.items) - self._picture_s)
        error = reply.error or check_reply(reply, flight.items[0][0].group, len(flight.items))
        if error:
            requests = ",".join(flight.requests)
            log.warning("batch failed: batch=%s request=%s: %s", reply.batch_id, requests, error.detail)
        for row, (ticket, index) in enumerate(flight.items):
            if error:
                ticket.fail(error)
            elif not ticket.done.done():
                ticket.poses[index] = read_pose(reply, row)
                if len(ticket.poses) == len(ticket.squares):
                    ticket.done.set_result(None)
        if model_ms := reply.timing_ms.get("model"):
            self._model_s += 0.2 * (model_ms / 1000 / len(flight.items) - self._model_s)
        for ticket in {ticket for ticket, _ in flight.items}:
            ticket.model_ms += reply.timing_ms.get("model", 0.0)
        self.send_batches()

    async def close(self) -> None:
        """Cancel what is being sent."""
        await cancel_tasks(self._sending)

    def fail_without_workers(self, since: float) -> None:
        """Fail tickets created before `since` (monotonic seconds) if no worker was seen for 15 s; run each second."""
        if self._workers_are_gone():
            waiting = chain.from_iterable(chain.from_iterable(queue.values() for queue in self._queues.values()))
            for ticket, _ in [*waiting, *chain.from_iterable(flight.items for flight in self._flights.values())]:
                if ticket.created_at < since:
                    ticket.fail(no_inference_worker("none was seen lately"))

    def send_batches(self) -> None:
        """Send batches while pictures wait and workers are free."""
        while (batch := self._next_batch())[0]:
            flight = Flight(uuid.uuid4().hex, *batch, time.monotonic())
            self._flights[flight.batch_id] = flight
            self._metrics.batch_size.observe(len(flight.items))
            self._start(self._launch(flight))
            loop = asyncio.get_running_loop()
            # by id: a timer must not keep the squares of an answered batch in memory
            loop.call_later(self._late_s, self._mark_late, flight.batch_id)
            loop.call_later(self._timeout_s, self._expire, flight.batch_id)

    def _next_batch(self) -> tuple[list[Item], int]:
        """Take the next batch, and its priority; empty if no picture waits or no worker is free.

        It is of the most urgent priority with pictures, or of one whose turn is overdue.
        """
        now, waiting = time.monotonic(), [priority for priority, queue in self._queues.items() if queue]
        if not waiting:
            return [], URGENT
        overdue = [priority for priority in waiting if priority != URGENT and self._next_turn(priority) <= now]
        chosen, urgency = (overdue[0], URGENT) if overdue else (waiting[0], waiting[0])
        if not self._has_free_worker(chosen, urgency) or self._hold_back(chosen):
            return [], URGENT
        limit = self._batch_limit
        if chosen != URGENT and now - self._urgent_at < _URGENT_S:
            limit = max(1, min(limit, int(_SMALL_BATCH_S / self._model_s)))
        self._turns[chosen] = now
        return collect(self._queues[chosen], limit), urgency

    def _next_turn(self, priority: int) -> float:
        """Return the time from which the pictures that wait with a priority are overdue."""
        since = min(queue[0][0].created_at for queue in self._queues[priority].values())
        return max(since, self._turns[priority]) + _TURN_S

    def _hold_back(self, priority: int) -> bool:
        """Return whether the next batch waits for announced pictures; if so, set a timer."""
        queue, announced = self._queues[priority], self._announced[priority]
        if not announced:
            return False
        first = next(iter(queue.values()))
        wait_s = first[0][0].created_at + self._wait_s - time.monotonic()
        if wait_s <= 0 or len(first) >= min(self._batch_limit, (sum(map(len, queue.values())) + announced) // 2):
            return False
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait_s, self.send_batches)
        return True

    def _has_free_worker(self, priority: int, urgency: int) -> bool:
        """Return whether batches in flight that are as urgent, or more, are fewer than this gateway's share."""
        ahead = sum(not flight.late and flight.priority <= urgency for flight in self._flights.values())
        is_full = len(next(iter(self._queues[priority].values()))) >= self._batch_limit
        return ahead < max(1, math.ceil(self._live_workers() / (1 if is_full else self._live_gateways())))

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _mark_late(self, batch_id: str) -> None:
        flight = self._flights.get(batch_id)
        if flight is None:
            return
        flight.late, flight.priority = True, URGENT  # more urgent ones may have come without cease
        try:
            if any(not ticket.done.done() for ticket, _ in flight.items):
                self._start(self._launch_again(flight))
        finally:
            self.send_batches()

    async def _launch_again(self, flight: Flight) -> None:
        log.warning("no reply after %g s, sending the message again: batch=%s", self._late_s, flight.batch_id)
        try:
            await self._send(self._request(flight), None)
        except QUEUE_ERRORS as error:  # the first message may still be answered
            log.warning("message not sent again: batch=%s: %s", flight.batch_id, error)

    async def _launch(self, flight: Flight) -> None:
        fault: PPLError
        try:
            pixels = np.stack([ticket.squares[index] for ticket, index in flight.items])
            parents = dict.fromkeys(ticket.traceparent for ticket, _ in flight.items)
            with tracing.span("send batch", list(parents), batch=flight.batch_id, pictures=len(flight.items)):
                await self._send(self._request(flight), pixels.tobytes())
            return
        except QUEUE_ERRORS as error:
            log.warning("batch not sent: batch=%s: %s", flight.batch_id, error)
            fault = redis_unavailable()
        except Exception as error:  # whatever it was, the tickets fail now and not after a timeout
            log.exception("batch not sent: batch=%s", flight.batch_id)
            unknown = PPLError("the batch could not be sent; see the gateway's log")
            fault = disk_full() if is_disk_full(error) else unknown
        self._metrics.unsent.inc()
        self._flights.pop(flight.batch_id, None)
        for ticket, _ in flight.items:
            ticket.fail(fault)
        self.send_batches()

    def _request(self, flight: Flight) -> BatchRequest:
        left_s = max(0.001, max(ticket.deadline for ticket, _ in flight.items) - time.monotonic())
        return BatchRequest(
            batch_id=flight.batch_id,
            count=len(flight.items),
            reply_to=self._reply_to,
            timeout_s=left_s,
            deadline=time.time() + left_s,
            requests=flight.requests,
            priority=flight.priority,
            traceparent=tracing.traceparent(),
            **flight.items[0][0].group._asdict(),
        )

    def _expire(self, batch_id: str) -> None:
        """Forget a batch without a reply; its tickets time out by themselves."""
        if self._flights.pop(batch_id, None):
            self._metrics.lost.inc()
            self.send_batches()

    def _withdraw(self, ticket: Ticket) -> None:
        """Remove the squares of a ticket that ended from the queue."""
        queue = (waiting := self._queues[ticket.priority]).get(ticket.group)
        if queue and len(ticket.poses) < len(ticket.squares):
            waiting[ticket.group] = deque(item for item in queue if item[0] is not ticket)
            if not waiting[ticket.group]:
                del waiting[ticket.group]

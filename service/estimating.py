"""Many pictures to poses, side by side and in order of completion; one that fails does not hinder the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from .batching import Group, Ticket
from .contract.errors import ContractMismatch, PPLError, QueueFull, TooManyPixels, Unavailable
from .contract.pictures import PictureLimits
from .errors import document_of
from .gateway import Gateway
from .images import Answer, Fitted, describe
from .query import Query
from .results import Outcome
from .settings import Settings
from .tasks import end
from .versions import Version

log = logging.getLogger(__name__)

_PAUSE_S = 0.5


class Source(Protocol):
    """A picture that waits to be looked at; both methods block."""

    @property
    def index(self) -> int:
        """Its place among the pictures."""

    def fit(self, side: int, limits: PictureLimits) -> list[Fitted]:
        """Its squares, one a box. Raises PPLError."""

    def read(self) -> bytes:
        """Its file, for drawing on it."""


class Estimator:
    """The poses of the pictures of one request.

    Args:
        patient: whether to wait for as long as it takes while no worker lives or too many pictures wait, rather than
            to give up after the time that a request may take.
    """

    def __init__(self, gateway: Gateway, query: Query, version: Version, *, patient: bool = False) -> None:
        self._gateway = gateway
        self._query = query
        self._version = version
        self._patient = patient
        self._group = group_of(query, version)
        self._drawn_pixels = 0
        self._down: Unavailable | None = None

    async def outcomes(self, sources: AsyncIterator[Source]) -> AsyncIterator[Outcome]:
        """What came of each picture, as it comes. No more are under way than fill a batch.

        What ``sources`` raises of PPLError ends them, and is the last outcome, of no index.
        """
        window = self._gateway.settings.batch_limit
        running: set[asyncio.Task[Outcome]] = set()
        pull: asyncio.Task[Source | None] | None = asyncio.create_task(_next(sources))
        failure: PPLError | None = None
        try:
            while pull or running:
                waited: set[asyncio.Task[Any]] = {*running}
                if pull and len(running) < window:
                    waited.add(pull)
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if pull in done:
                    try:
                        source = pull.result()
                    except PPLError as error:
                        source, failure = None, error
                    pull = None
                    if source is not None:
                        running.add(asyncio.create_task(self._one(source)))
                        pull = asyncio.create_task(_next(sources))
                for task in done & running:
                    running.discard(task)
                    yield task.result()
            if failure:
                yield Outcome(None, error=document_of(failure))
        finally:
            await end((*running, pull) if pull else running)

    async def _one(self, source: Source) -> Outcome:
        started = time.perf_counter()
        try:
            if self._down:
                raise self._down
            fitted = await self._gateway.compute(source.fit, self._version.side, self._gateway.picture_limits)
            self._count_drawn(fitted)
            queued = time.perf_counter()
            ticket = await self._ask([item.square for item in fitted])
            answered = time.perf_counter()
            poses = await self._gateway.compute(self._described, source, fitted, ticket)
        except PPLError as error:
            if isinstance(error, Unavailable):
                self._down = error  # the others need not wait as long for the same answer
            return Outcome(source.index, error={**document_of(error), "index": source.index})
        except Exception:  # a fault of ours with one picture; the log says more, the others go on
            log.exception("picture %d of a request failed", source.index)
            fault = PPLError("an unexpected fault of the server; its log says more about it")
            return Outcome(source.index, error={**document_of(fault), "index": source.index})
        waited = max(0.0, 1e3 * (answered - queued) - ticket.model_ms)
        return Outcome(source.index, poses, timing_ms=(1e3 * (queued - started), waited, ticket.model_ms))

    async def _ask(self, squares: list[Any]) -> Ticket:
        """The poses of some squares, asked for again where there was no room for them."""
        deadline = time.monotonic() + self._gateway.settings.estimate_timeout_s
        while True:
            try:
                return await self._gateway.batcher.estimate(self._group, squares)
            except (QueueFull, Unavailable) as error:
                passing = isinstance(error, QueueFull) or (self._patient and not isinstance(error, ContractMismatch))
                if not passing or (not self._patient and time.monotonic() > deadline):
                    raise
            await asyncio.sleep(_PAUSE_S)

    def _described(self, source: Source, fitted: list[Fitted], ticket: Ticket) -> list[Answer]:
        include, limits = self._query.include, self._gateway.picture_limits
        return [
            describe(source.read, item, ticket.poses[place], self._version, include, limits)
            for place, item in enumerate(fitted)
        ]

    def _count_drawn(self, fitted: list[Fitted]) -> None:
        self._drawn_pixels += drawn_pixels(self._query, fitted)
        check_drawn(self._gateway.settings, self._drawn_pixels)


def group_of(query: Query, version: Version) -> Group:
    """What pictures must have in common to share a batch with these."""
    return Group(
        version.category,
        version.name,
        version.side,
        query.refine_steps,
        "link_map" in query.include,
        "codes" in query.include,
    )


def drawn_pixels(query: Query, fitted: list[Fitted]) -> int:
    """Pixels that are drawn for some poses."""
    return query.kinds_drawn * sum(item.width * item.height for item in fitted)


def check_drawn(settings: Settings, pixels: int) -> None:
    """Raises TooManyPixels where so many would be drawn for one request."""
    if pixels > settings.max_drawn_pixels:
        raise TooManyPixels(
            f"the pictures to draw would have {pixels} pixels and {settings.max_drawn_pixels} are allowed in one "
            "request; send fewer or smaller pictures, or leave link_map and overlay out of include"
        )


async def each(sources: Iterable[Source]) -> AsyncIterator[Source]:
    """Pictures that are all there already."""
    for source in sources:
        yield source


async def _next(sources: AsyncIterator[Source]) -> Source | None:
    return await anext(sources, None)

"""The one pipeline from pictures to poses: decode and fit, wait for the poses in batches, describe them in pixels."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from service.contract.errors import PPLError, QueueFull, TooManyPixels, Unavailable
from service.contract.media.pictures import PictureLimits
from service.http.problems import problem_document
from service.runtime.concurrency import Threads, cancel_tasks
from service.runtime.metrics import Metrics
from service.runtime.settings import Settings
from service.versions.landmarks import LandmarkMaps
from service.versions.reader import Version

from .batching import Batcher
from .pictures import Answer, FittedBox, Source, Upload, describe_pose
from .replies import Group, Pose
from .request import Query
from .results import Outcome
from .tickets import BACKGROUND, STREAMED, URGENT, Square, Ticket

log = logging.getLogger(__name__)

# a few poses are described on the event loop; more, and drawn pictures, in threads
INLINE_POSES = 4
_PAUSE_S = 0.5
# boxes whose directions are tried at once: one is cut out while another is in the queue, which has room for others
_TRIED_AT_ONCE = 2


@dataclass(frozen=True)
class Pipeline:
    """The parts of the gateway that turn pictures into poses."""

    settings: Settings
    threads: Threads
    batcher_of: Callable[[str], Batcher]  # by category
    metrics: Metrics


class FoundPoses(NamedTuple):
    """The poses of some pictures, in the order of pictures and boxes."""

    fitted: list[FittedBox]
    poses: list[Pose]
    timing_ms: tuple[float, float, float]  # decode, queue, model; of all pictures together


class Estimator:
    """An estimate of the poses of one request's pictures.

    Args:
        patient: wait for as long as no worker answers, for estimates in the background.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        query: Query,
        version: Version,
        landmarks: LandmarkMaps | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self._settings, self._threads = pipeline.settings, pipeline.threads
        self._batcher, self._metrics = pipeline.batcher_of(version.category), pipeline.metrics
        self._limits = PictureLimits.of(pipeline.settings)
        self._query, self._version, self._landmarks = query, version, landmarks
        self._group = Group(
            version.category,
            version.name,
            version.side,
            query.refine_steps,
            "link_map" in query.include,
            "codes" in query.include,
            "reconstructions" in query.include,
        )
        self._patient = patient
        self._priority = BACKGROUND if patient else URGENT
        self._drawn_pixels = 0
        self._outage: Unavailable | None = None
        self._trying = asyncio.Semaphore(_TRIED_AT_ONCE)

    async def estimate(self, sources: Sequence[Source]) -> list[Outcome]:
        """Return the outcomes of all pictures, or raise the first error.

        Raises:
            QueueFull: there is no room for all of them now.
            PPLError: a picture can't be used, or no worker answers.
        """
        self._batcher.check_room(self._query.num_poses)
        return await self._describe(sources, await self.find_poses(sources))

    async def stream(self, sources: AsyncGenerator[Source] | Iterable[Source]) -> AsyncGenerator[Outcome]:
        """Yield the outcome of each picture in order of completion; a failed picture does not affect the others.

        At most as many pictures as fill a batch are in progress. If a video ends early, the last outcome says why.
        """
        self._priority = max(self._priority, STREAMED)
        unread = sources if isinstance(sources, AsyncGenerator) else _iterate(sources)
        reading: set[asyncio.Task[Any]] = set()
        running: set[asyncio.Task[Any]] = set()
        more, damage = True, None
        try:
            while more or running:
                if more and not reading and len(running) < self._settings.batch_limit:
                    reading = {asyncio.ensure_future(anext(unread, None))}
                done, _ = await asyncio.wait(reading | running, return_when=asyncio.FIRST_COMPLETED)
                for task in done & reading:
                    reading.clear()
                    try:
                        source = task.result()
                    except PPLError as error:
                        if "index" not in error.extra:  # nothing could be read
                            raise
                        source, damage = None, error
                    more = source is not None
                    if more:
                        running.add(asyncio.create_task(self._estimate_one(source)))
                for task in done & running:
                    running.remove(task)
                    yield task.result()
            if damage is not None:
                yield Outcome(damage.extra["index"], error=problem_document(damage))
        finally:
            await cancel_tasks(reading | running)
            await unread.aclose()

    async def estimate_video(self, frames: AsyncGenerator[Source]) -> list[Outcome]:
        """Return the outcomes of a video's frames in order.

        Raises:
            Unavailable: no worker answered, and no frame has a pose.
            PPLError: the file can't be read at all.
        """
        outcomes: list[Outcome] = []
        async with aclosing(self.stream(frames)) as stream:
            async for outcome in stream:
                outcomes.append(outcome)
                if self._outage and all(each.error for each in outcomes):
                    raise self._outage
        return sorted(outcomes, key=lambda outcome: outcome.index)

    async def find_poses(self, sources: Sequence[Source], retry_s: float = 0.0) -> FoundPoses:
        """Return the poses of some pictures as the model found them, or raise the first error.

        Args:
            retry_s: how long to retry while the queue is full; if infinite, during outages too.
        """
        started = time.perf_counter()
        with self._batcher.announce(len(sources), self._priority) as end_announcement:
            fitted = await self._fit(sources)
            self._count_drawn(fitted)
            decoded = time.perf_counter()
            if not retry_s:
                self._metrics.decode_seconds.observe(decoded - started)
            model_ms, by_index = 0.0, {source.index: source for source in sources}
            for place, box in enumerate(fitted):
                source = by_index[box.index]
                if box.is_undirected and isinstance(source, Upload):
                    fitted[place], tried_ms = await self._find_direction(source, box, end_announcement, retry_s)
                    model_ms += tried_ms
            ticket = await self._wait(self._group, [box.square for box in fitted], end_announcement, retry_s)
        waited_ms, model_ms = 1e3 * (time.perf_counter() - decoded), model_ms + ticket.model_ms
        timing_ms = (1e3 * (decoded - started), max(0.0, waited_ms - model_ms), model_ms)
        return FoundPoses(fitted, [ticket.poses[place] for place in range(len(fitted))], timing_ms)

    async def _fit(self, sources: Sequence[Source]) -> list[FittedBox]:
        """Decode side by side; the first error cancels the rest."""
        decode, more = self._threads.decode, (self._version.side, self._limits, self._query.is_aligned)
        tasks = [asyncio.ensure_future(decode(source.fit, *more)) for source in sources]
        try:
            return list(chain.from_iterable(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()

    async def _find_direction(
        self, source: Upload, box: FittedBox, end_announcement: Callable[[], None], retry_s: float
    ) -> tuple[FittedBox, float]:
        """Return a box in its most probable direction, and the model's time in ms."""
        group = Group(self._version.category, self._version.name, self._version.side, 0, False)
        if self._trying.locked():
            end_announcement()  # batches must not wait for squares that come later
        async with self._trying:
            if self._outage:
                raise self._outage
            directions = await self._threads.decode(source.fit_directions, box, self._version.side, self._limits)
            poses, model_ms, at_once = list[Pose](), 0.0, self._settings.queue_limit
            for first in range(0, len(directions), at_once):
                squares = [each.square for each in directions[first : first + at_once]]
                ticket = await self._wait(group, squares, end_announcement, retry_s)
                poses += [ticket.poses[place] for place in range(len(squares))]
                model_ms += ticket.model_ms
        return FittedBox.choose_direction(directions, poses), model_ms

    async def _wait(
        self, group: Group, squares: list[Square], end_announcement: Callable[[], None], retry_s: float
    ) -> Ticket:
        deadline = time.monotonic() + retry_s
        while True:
            try:
                return await self._batcher.estimate(group, squares, end_announcement, self._priority)
            except QueueFull:
                if time.monotonic() >= deadline:
                    raise
                end_announcement()  # batches must not wait for squares that do not fit
            except Unavailable:
                if deadline < math.inf:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _estimate_one(self, source: Source) -> Outcome:
        try:
            if self._outage:
                raise self._outage
            retry_s = math.inf if self._patient else self._settings.estimate_timeout_s
            found = await self.find_poses([source], retry_s)
            return (await self._describe([source], found))[0]
        except PPLError as error:
            if isinstance(error, Unavailable):
                self._outage = error  # the other pictures need not wait as long for the same answer
            problem = problem_document(error)
        except Exception:  # a bug that one picture triggers; the others continue
            log.exception("unexpected error: index=%d", source.index)
            problem = problem_document(PPLError("an unexpected error of the server; see its log"))
        return Outcome(source.index, error={**problem, "index": source.index, **source.extra})

    async def _describe(self, sources: Sequence[Source], found: FoundPoses) -> list[Outcome]:
        by_index = {source.index: source for source in sources}

        def describe(box: FittedBox, pose: Pose) -> Answer:
            source, include = by_index[box.index], self._query.include
            return describe_pose(source, box, pose, self._version, include, self._limits, self._landmarks)

        if len(found.poses) <= INLINE_POSES and not self._query.has_pictures:
            answers = list(map(describe, found.fitted, found.poses))
        else:
            decoding = map(partial(self._threads.decode, describe), found.fitted, found.poses)
            answers = await asyncio.gather(*decoding)
        decode, queue, model = (stage_ms / len(sources) for stage_ms in found.timing_ms)
        return [
            Outcome(index, [answer for answer in answers if answer["index"] == index], None, (decode, queue, model))
            for index in by_index
        ]

    def _count_drawn(self, fitted: list[FittedBox]) -> None:
        """Raise TooManyPixels if too much would be drawn for the request."""
        self._drawn_pixels += self._query.num_drawings * sum(box.width * box.height for box in fitted)
        limit = self._settings.max_drawn_pixels
        if self._drawn_pixels > limit:
            raise TooManyPixels(
                f"the pictures to draw have {self._drawn_pixels} pixels and {limit} are allowed in one request; "
                "send fewer or smaller pictures, or leave link_map and overlay out of include"
            )


async def _iterate(sources: Iterable[Source]) -> AsyncGenerator[Source]:
    for source in sources:
        yield source

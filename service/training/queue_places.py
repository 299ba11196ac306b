"""Which jobs go before one that waits, and how long it will take until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.contract.jobs.paces import PaceBook
from service.contract.jobs.store import Job, JobRecord, JobStatus, JobStore

# all unfinished jobs are read to tell the places: where they are many, for no more than one in so many seconds
_FEW = 50
_REST = 20

_WAITING = (JobStatus.VALIDATING, JobStatus.QUEUED)


@dataclass(frozen=True)
class _Place:
    position: int
    eta_s: float | None


class Queue:
    """The jobs that wait for a training worker, in the order in which workers take them.

    That is the order of their messages; a job that is still validated has none yet, and goes behind.

    Args:
        workers: how many training workers live.
    """

    def __init__(self, jobs: JobStore, paces: PaceBook, workers: Callable[[], int]) -> None:
        self._jobs = jobs
        self._paces = paces
        self._workers = workers
        self._known: dict[str, _Place] = {}
        self._known_until = 0.0

    def placed(self, job: Job) -> Job:
        """A job with its place, where it waits."""
        return self.all_placed([job])[0]

    def all_placed(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs with their places, those that wait; where many do, as they were a second or so ago."""
        waiting = [job.id for job in jobs if job.status in _WAITING]
        if not waiting:
            return list(jobs)
        places = self._known
        if time.monotonic() > self._known_until or not all(job_id in places for job_id in waiting):
            started = time.monotonic()
            places = self._places()
            ended = time.monotonic()
            kept_s = _REST * (ended - started) if len(places) > _FEW else 0.0
            self._known, self._known_until = places, ended + kept_s
        return [self._with(job, places.get(job.id)) for job in jobs]

    def _with(self, job: Job, place: _Place | None) -> Job:
        if place is None or job.status not in _WAITING:
            return job
        progress = job.progress.model_copy(update={"eta_s": place.eta_s})
        return job.model_copy(update={"queue_position": place.position, "progress": progress})

    def _places(self) -> dict[str, _Place]:
        unfinished = self._jobs.unfinished()
        order = {job_id: place for place, job_id in enumerate(self._jobs.waiting_order())}
        waiting = [record for record in unfinished if record.job.status in _WAITING]
        # whose message comes in a moment
        ends = {record.job.id: -1 if record.ahead else len(order) for record in waiting}
        waiting.sort(key=lambda record: (order.get(record.job.id, ends[record.job.id]), record.job.id))
        running = [record for record in unfinished if record.job.status is JobStatus.RUNNING]
        # when each worker is free, in seconds from now; None from the first job on of which nothing is known
        free: list[float] | None = self._busy(running)
        places = {}
        for position, record in enumerate(waiting, 1):
            takes_s = self._takes_s(record) if free else None
            if free and takes_s is not None:
                free[0] += takes_s
                places[record.job.id] = _Place(position, round(free[0], 1))
                free.sort()
            else:
                free = None
                places[record.job.id] = _Place(position, None)
        return places

    def _busy(self, running: list[JobRecord]) -> list[float] | None:
        etas = [record.job.progress.eta_s for record in running]
        workers = max(self._workers(), len(running))
        if not workers or any(eta_s is None for eta_s in etas):
            return None
        return sorted([*(eta_s for eta_s in etas if eta_s is not None), *[0.0] * (workers - len(etas))])

    def _takes_s(self, record: JobRecord) -> float | None:
        pace = self._paces.of(record.job.settings)
        return pace.seconds(record.job.settings, record.checkpointed) if pace else None

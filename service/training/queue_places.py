"""Compute the queue positions of waiting jobs, and estimate when each will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.contract.jobs.job import Job, JobRecord, JobStatus
from service.contract.jobs.progress import PaceBook
from service.contract.jobs.store import JobStore

# Positions need the records of all unfinished jobs. With many jobs, reading them takes at most 1 / _IDLE_RATIO of
# the time: the result is reused for _IDLE_RATIO times as long as it took.
_FEW_JOBS = 50
_IDLE_RATIO = 20

_WAITING = (JobStatus.VALIDATING, JobStatus.QUEUED)


@dataclass(frozen=True)
class _Place:
    position: int
    eta_s: float | None


class JobQueue:
    """The jobs that wait for a training worker, in the order in which workers take them.

    That is the order of their messages. A job that is still being validated has no message and goes last.

    Args:
        count_workers: returns the number of live training workers.
    """

    def __init__(self, jobs: JobStore, paces: PaceBook, count_workers: Callable[[], int]) -> None:
        self._jobs = jobs
        self._paces = paces
        self._count_workers = count_workers
        self._places: dict[str, _Place] = {}
        self._expires = 0.0

    def add_position(self, job: Job) -> Job:
        """Return a job with its queue position and ETA, if it waits."""
        return self.add_positions([job])[0]

    def add_positions(self, jobs: Sequence[Job]) -> list[Job]:
        """Return jobs with the queue positions and ETAs of those that wait; with many, about a second old."""
        waiting = [job.id for job in jobs if job.status in _WAITING]
        places = self._places
        if waiting and (time.monotonic() > self._expires or not all(job_id in places for job_id in waiting)):
            started = time.monotonic()
            self._places = places = self._compute_places()
            ended = time.monotonic()
            self._expires = ended + (_IDLE_RATIO * (ended - started) if len(places) > _FEW_JOBS else 0.0)
        return [_add_place(job, places.get(job.id)) for job in jobs]

    def _compute_places(self) -> dict[str, _Place]:
        unfinished = self._jobs.list_unfinished()
        order = {job_id: place for place, job_id in enumerate(self._jobs.waiting_order())}
        waiting = [record for record in unfinished if record.job.status in _WAITING]
        # a message that is about to be sent goes to the head of the queue if `ahead`, else to its end
        ends = {record.job.id: -1 if record.ahead else len(order) for record in waiting}
        waiting.sort(key=lambda record: (order.get(record.job.id, ends[record.job.id]), record.job.id))
        # seconds until each worker is free; None from the first job on whose duration is unknown
        free = self._busy_s([record for record in unfinished if record.job.status is JobStatus.RUNNING])
        places = {}
        for position, record in enumerate(waiting, 1):
            duration_s = self._duration_s(record) if free else None
            if free and duration_s is not None:
                free[0] += duration_s
                places[record.job.id] = _Place(position, round(free[0], 1))
                free.sort()
            else:
                free = None
                places[record.job.id] = _Place(position, None)
        return places

    def _busy_s(self, running: list[JobRecord]) -> list[float] | None:
        """Return the seconds until each worker is free, sorted; None if unknown."""
        etas = [record.job.progress.eta_s for record in running]
        workers = max(self._count_workers(), len(running))
        if not workers or any(eta_s is None for eta_s in etas):
            return None
        return sorted([*(eta_s for eta_s in etas if eta_s is not None), *[0.0] * (workers - len(etas))])

    def _duration_s(self, record: JobRecord) -> float | None:
        pace = self._paces.of(record.job.settings)
        return pace.seconds(record.job.settings, record.checkpointed) if pace else None


def _add_place(job: Job, place: _Place | None) -> Job:
    if place is None or job.status not in _WAITING:
        return job
    progress = job.progress.model_copy(update={"eta_s": place.eta_s})
    return job.model_copy(update={"queue_position": place.position, "progress": progress})

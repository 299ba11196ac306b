# Generated from service/client/aio/jobs.py by service.client.generate: change it there.
"""What the client does with a job once it is there: wait for it, pause, resume and cancel it, follow its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from service.client.errors import APIError, Unreachable
from service.client.paths import quoted
from service.contract.jobs.events import MAX_EVENTS, EventKind, EventPage, JobEvent
from service.contract.jobs.job import Checkpoint, CheckpointList, Job, JobStatus

from .concurrency import sleep
from .transport import GRACE_S, Transport

_AGAIN_S = 1.0
_SILENCE_S = 60.0  # heartbeats come more often


class JobCalls(Transport):
    """The part of :class:`service.client.Client` that is about one job."""

    def job(self, job_id: str) -> Job:
        """The job as it stands."""
        return self._job("GET", f"/train-jobs/{quoted(job_id)}")

    def jobs(self, category: str | None = None, status: JobStatus | None = None) -> Iterator[Job]:
        """All jobs, the newest first; only those of a category or of a status where such is given."""
        wanted = {"category": category, "status": status}
        return self._pages("/train-jobs", Job, {name: value for name, value in wanted.items() if value is not None})

    def cancel(self, job_id: str) -> Job:
        """Asks for the job to be stopped; a running one stops at its next step."""
        return self._job("POST", f"/train-jobs/{quoted(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        """Removes the record of a job that ended."""
        self._send("DELETE", f"/train-jobs/{quoted(job_id)}")

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> Job:
        """Waits for the end of a job, whatever it is, and returns it.

        A server that is away for less than a minute (a restart) is waited for.

        Raises:
            TimeoutError: the job goes on after ``timeout_s``.
        """

        def look() -> Job:
            job = self.job(job_id)
            if on_progress is not None:
                on_progress(job)
            return job

        return self._until(look, lambda job: job.status.ended, f"job {job_id}", poll_s, timeout_s)

    def pause(self, job_id: str) -> Job:
        """Sets a job aside until it is resumed; a running one writes a checkpoint at its next step first."""
        return self._job("POST", f"/train-jobs/{quoted(job_id)}/pause")

    def resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue."""
        return self._job("POST", f"/train-jobs/{quoted(job_id)}/resume")

    def webhook_secret(self) -> str:
        """What the webhooks of jobs are signed with."""
        response = self._send("GET", "/webhooks/secret")
        with self._expected(response.status_code):
            return str(response.json()["secret"])

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints that a job wrote, the newest first."""
        return self._read(CheckpointList, self._send("GET", f"/train-jobs/{quoted(job_id)}/checkpoints")).items

    def events(self, job_id: str, after: int = 0, *, follow: bool = True) -> Iterator[JobEvent]:
        """What happened to a job and, unless told otherwise, what happens until its end, each event once.

        A connection that breaks is made again where it broke off, while the server is away for less than a minute.

        Args:
            after: only events later than this id.
            follow: False gives only the events that are there.
        """
        if follow:
            yield from self._followed(job_id, after)
            return
        while True:
            params = {"after": after, "limit": MAX_EVENTS}
            page = self._read(EventPage, self._send("GET", f"/train-jobs/{quoted(job_id)}/events", params=params))
            yield from page.items
            after = page.next
            if not page.has_more:
                return

    def _followed(self, job_id: str, after: int) -> Iterator[JobEvent]:
        seen = time.monotonic()
        while True:
            try:
                with self._stream(job_id, after) as response:
                    if response.status_code == 204:  # it ended, and nothing later will come
                        return
                    if not response.is_success:
                        response.read()
                        raise APIError.of(response)
                    seen = time.monotonic()
                    for event in _events_of(response):
                        after, seen = event.id, time.monotonic()
                        yield event
                        if event.kind is EventKind.COMPLETED:
                            return
            except (httpx.TransportError, APIError) as error:
                away = isinstance(error, httpx.TransportError) or error.status in (502, 503, 504)
                if not away:
                    raise
                if time.monotonic() - seen > GRACE_S or isinstance(error, httpx.UnsupportedProtocol):
                    reason = f"{self.base_url} gave no answer: {error or type(error).__name__}"
                    raise error if isinstance(error, APIError) else Unreachable(reason) from error
            sleep(_AGAIN_S)

    def _stream(self, job_id: str, after: int) -> Any:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        given = self._http.timeout
        timeout = httpx.Timeout(connect=given.connect, read=_SILENCE_S, write=given.write, pool=given.pool)
        return self._http.stream("GET", f"/train-jobs/{quoted(job_id)}/events", headers=headers, timeout=timeout)

    def _job(self, method: str, path: str, **content: Any) -> Job:
        return self._read(Job, self._send(method, path, **content))


def _events_of(response: httpx.Response) -> Iterator[JobEvent]:
    """The events of a stream, until it ends. Each has its data in one line, and nothing else is needed of it."""
    rest = b""
    for data in response.iter_bytes():  # not its lines: JSON may hold what counts as an end of line elsewhere
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield JobEvent.model_validate_json(line.removeprefix(b"data: "))

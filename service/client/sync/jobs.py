# Generated from service/client/aio/jobs.py by service.client.generate: change it there.
"""Calls on training jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx

from service.client.connection import api_path, is_outage
from service.client.errors import APIError, Unreachable
from service.client.types import Checkpoint, EventKind, Job, JobEvent, JobStatus
from service.contract.jobs.job import CheckpointList
from service.contract.jobs.progress import MAX_EVENTS, EventPage

from .concurrency import sleep
from .transport import OUTAGE_S, Transport

_RECONNECT_S = 1.0
_STREAM_READ_TIMEOUT_S = 60.0  # heartbeats come more often


class JobCalls(Transport):
    """The part of the client that calls training jobs."""

    def job(self, job_id: str) -> Job:
        """Return the job's current state."""
        return self.request(Job, "GET", api_path("train-jobs", job_id))

    def jobs(self, category: str | None = None, status: JobStatus | None = None) -> Iterator[Job]:
        """Iterate over the jobs, newest first, optionally of one category or status."""
        filters = {"category": category, "status": status}
        return self.pages("/train-jobs", Job, {name: value for name, value in filters.items() if value is not None})

    def cancel(self, job_id: str) -> Job:
        """Request that the job stops; a running one stops at its next step."""
        return self.request(Job, "POST", api_path("train-jobs", job_id, "cancel"))

    def delete(self, job_id: str) -> None:
        """Delete the record of a job that has ended."""
        self.send("DELETE", api_path("train-jobs", job_id))

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> Job:
        """Wait until the job has ended, with whatever status, and return it. Survive outages of less than a minute.

        Raises:
            TimeoutError: the job has not ended after ``timeout_s``.
        """
        path = api_path("train-jobs", job_id)
        return self.poll(Job, path, lambda job: job.status.ended, on_progress, poll_s, timeout_s)

    def pause(self, job_id: str) -> Job:
        """Pause the job; a running one writes a checkpoint at its next step first."""
        return self.request(Job, "POST", api_path("train-jobs", job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue."""
        return self.request(Job, "POST", api_path("train-jobs", job_id, "resume"))

    def webhook_secret(self) -> str:
        """Return the secret that webhooks are signed with."""
        with self._map_parse_errors():
            return str((self.get_json("/webhooks/secret"))["secret"])

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return the job's checkpoints, newest first."""
        return (self.request(CheckpointList, "GET", api_path("train-jobs", job_id, "checkpoints"))).items

    def events(self, job_id: str, after: int = 0, *, follow: bool = True) -> Iterator[JobEvent]:
        """Iterate over the job's events, each once, until the job has ended. Reconnect after outages under a minute.

        Args:
            after: skip events up to this id.
            follow: False stops after the events that exist now.
        """
        path = api_path("train-jobs", job_id, "events")
        if follow:
            for event in self._follow_events(path, after):
                yield event
            return
        while True:
            page = self.request(EventPage, "GET", path, params={"after": after, "limit": MAX_EVENTS})
            for item in page.items:
                yield item
            after = page.next
            if not page.has_more:
                return

    def _follow_events(self, path: str, after: int) -> Iterator[JobEvent]:
        timeout = httpx.Timeout(**{**self._http.timeout.as_dict(), "read": _STREAM_READ_TIMEOUT_S})
        connected = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            try:
                answer = self.send("GET", path, stream=True, headers=headers, timeout=timeout)
                connected = time.monotonic()
                with closing(answer) as response:
                    with self._map_connection_errors():
                        for event in _parse_events(response):
                            after, connected = event.id, time.monotonic()
                            yield event
                            if event.kind is EventKind.COMPLETED:
                                return
                if response.status_code == 204:  # the job has ended, no later event will come
                    return
            except (Unreachable, APIError) as error:
                if not is_outage(error) or time.monotonic() - connected > OUTAGE_S:
                    raise
            sleep(_RECONNECT_S)


def _parse_events(response: httpx.Response) -> Iterator[JobEvent]:
    rest = b""
    # not aiter_lines(): it also splits at U+2028 and others, which may stand in JSON
    for data in response.iter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):  # each event has its data in one line
                yield JobEvent.model_validate_json(line.removeprefix(b"data: "))

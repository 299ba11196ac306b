# Generated from service/client/aio/client.py by service.client.generate: change it there.
"""The client: calls on jobs and priors here, on estimates, datasets and versions in the other modules."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx

from service.client.connection import OnProgress, api_path, given, is_outage
from service.client.errors import APIError, InputError, Unreachable
from service.client.retries import RETRIES, new_idempotency_key
from service.client.types import (
    Checkpoint,
    EventKind,
    History,
    Job,
    JobEvent,
    JobStatus,
    KeypointNames,
    Memory,
    Prior,
    PriorEntry,
    Readiness,
)
from service.client.uploads import AnyPath, open_archive, training_files, training_settings
from service.contract.jobs.job import Activate, CheckpointList
from service.contract.jobs.progress import MAX_EVENTS, EventPage

from .concurrency import sleep, to_thread
from .estimate import EstimateCalls
from .resources import AliasCalls, DatasetCalls, LandmarkCalls, VersionCalls
from .transport import OUTAGE_S

_RECONNECT_S = 1.0
_STREAM_READ_TIMEOUT_S = 60.0  # heartbeats come more often


class Client(EstimateCalls):
    """A client of one server. Not thread-safe.

    Args:
        base_url: the server's URL; PPL_URL or http://127.0.0.1:8000 by default.
        timeout_s: time limit for each read and write, not for a whole request.
        api_key: PPL_API_KEY by default; without either, no key is sent.
        retries: how often to send a request again, if :mod:`service.client.retries` allows it.

    Attributes:
        versions, aliases, datasets, landmarks: calls on these; see :mod:`service.client.aio.resources`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
        api_key: str | None = None,
        retries: int = RETRIES,
    ) -> None:
        super().__init__(base_url, retries)
        self._http = httpx.Client(transport=transport, **self._http_options(timeout_s, api_key))
        self.versions = VersionCalls(self)
        self.aliases = AliasCalls(self)
        self.datasets = DatasetCalls(self)
        self.landmarks = LandmarkCalls(self)

    def __enter__(self) -> Client:
        return self

    def train(
        self,
        category: str,
        pictures: AnyPath | None = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        labels: AnyPath | None = None,
        boxes: AnyPath | None = None,
        prior: AnyPath | Mapping[str, Any] | None = None,
        prior_from: str | None = None,
        activate: Activate = True,
        dataset: str | None = None,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        continue_from: str | None = None,
    ) -> Job:
        """Start a training job on uploaded pictures or on a dataset; return it without waiting.

        Args:
            pictures: a zip, tar or tar.gz, a video, or a folder, which is packed into a temporary file first.
            preset: "compact" or "paper"; the server's default if None.
            settings: model settings by name.
            labels: a file of keypoints: CSV, DeepLabCut, SLEAP, Label Studio or COCO. Never for training.
            boxes: a file of where the thing is in each picture: CSV (image,x,y,width,height), COCO or MegaDetector's
                JSON; training sees these parts alone.
            prior: to start from: a JSON file, or the JSON values of :meth:`prior`.
            prior_from: CATEGORY or CATEGORY@VERSION whose prior to start from.
            activate: whether the version becomes the active one when the job succeeds: not with the verdict "failed",
                unless this is "always".
            dataset: id of a dataset, instead of pictures.
            idempotency_key: the same key gives the same job; random by default.
            webhook_url: receives a signed POST when the job has ended; check it with
                :func:`service.client.webhook_signature.verify_webhook`.
            continue_from: a version or alias of the category, or CATEGORY@VERSION, whose weights to start from.
        """
        if (pictures is None) == (dataset is None):
            raise InputError("training takes either pictures or a dataset; give one of them")
        options = {
            "preset": preset,
            "prior_from": prior_from,
            "continue_from": continue_from,
            "webhook_url": webhook_url,
        }
        fields = {"category": category, **given(**options), **training_settings(settings, activate)}
        with ExitStack() as stack:
            files = training_files(dataset, labels, boxes, prior, stack)
            if pictures is not None:
                files["archive"] = to_thread(stack.enter_context, open_archive([Path(pictures)]))
            # the key makes a retry safe when the response was lost
            headers = new_idempotency_key(idempotency_key)
            return self.request(Job, "POST", "/train-jobs", data=fields, files=files, headers=headers)

    def job(self, job_id: str) -> Job:
        """Return the job's current state."""
        return self.request(Job, "GET", api_path("train-jobs", job_id))

    def jobs(self, category: str | None = None, status: JobStatus | None = None) -> Iterator[Job]:
        """Iterate over the jobs, newest first, optionally of one category or status."""
        return self.pages("/train-jobs", Job, given(category=category, status=status))

    def preview(self, job_id: str) -> bytes:
        """Return the job's last preview as a PNG: training pictures with poses and reconstructions, and the prior."""
        return (self.send("GET", api_path("train-jobs", job_id, "preview"))).content

    def boxes(self, job_id: str) -> str:
        """Return where the thing was found in the job's pictures, as CSV that :meth:`train` takes as ``boxes``."""
        return (self.send("GET", api_path("train-jobs", job_id, "boxes"))).text

    def cancel(self, job_id: str) -> Job:
        """Request that the job stops; a running one stops at its next step."""
        try:
            return self.request(Job, "POST", api_path("train-jobs", job_id, "cancel"))
        except APIError as error:
            if error.status == 409 and error.repeated and (job := self.job(job_id)).status is JobStatus.CANCELLED:
                return job
            raise

    def delete(self, job_id: str) -> None:
        """Delete the record of a job that has ended."""
        self.delete_path(api_path("train-jobs", job_id))

    def wait(
        self, job_id: str, on_progress: OnProgress[Job] = None, poll_s: float = 0.5, timeout_s: float | None = None
    ) -> Job:
        """Wait until the job has ended; survive outages under a minute. Raises TimeoutError after ``timeout_s``."""
        return self.poll(Job, api_path("train-jobs", job_id), on_progress, poll_s, timeout_s)

    def pause(self, job_id: str) -> Job:
        """Pause the job; a running one writes a checkpoint at its next step first."""
        return self.request(Job, "POST", api_path("train-jobs", job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue."""
        return self.request(Job, "POST", api_path("train-jobs", job_id, "resume"))

    def publish(self, job_id: str, poll_s: float = 0.5, timeout_s: float | None = None) -> str:
        """Make a version of what a running job has learned so far and return its name; the job trains on.

        Return the job's own version if it ended meanwhile. Raises InputError if it ended without one, and TimeoutError
        after ``timeout_s``.
        """
        path = api_path("train-jobs", job_id)
        before = len((self.request(Job, "GET", path)).checkpoint_versions)
        self.request(Job, "POST", f"{path}/publish", headers=new_idempotency_key())
        started = time.monotonic()
        while True:
            job = self.request(Job, "GET", path)
            if len(job.checkpoint_versions) > before:
                return job.checkpoint_versions[-1].version
            if job.status.ended:
                if job.version is None:
                    raise InputError(f"job {job_id} has {job.status} before a version was made of it")
                return job.version
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(f"no version was made of {path} after {timeout_s:g} s")
            sleep(poll_s)

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

    def priors(self) -> Iterator[PriorEntry]:
        """Iterate over the categories that have been trained."""
        return self.pages("/priors", PriorEntry)

    def prior(self, category: str, version: str | None = None, *, all_links: bool = False) -> Prior:
        """Return the pose prior of a category, with the links that one would draw or with all."""
        params = given(version=version, include="links" if all_links else None)
        return self.read(Prior, self.send("GET", api_path("priors", category), params=params))

    def memory(
        self, category: str, version: str | None = None, *, bank: int | None = None, prototype: int | None = None
    ) -> Memory:
        """Return the memory of a version and its prototypes.

        With `bank`, also what it varies: `prototype`, or the keypoint prior, with each vector of that bank.
        """
        params = given(version=version, bank=bank, prototype=prototype)
        return self.read(Memory, self.send("GET", api_path("priors", category, "memory"), params=params))

    def history(self, category: str, version: str | None = None) -> History:
        """Return the snapshots of a prior during its training."""
        return self.read(History, self._get_prior(category, version, "history"))

    def keypoint_names(self, category: str, version: str | None = None) -> KeypointNames:
        """Return the keypoint names of a version."""
        return self.read(KeypointNames, self._get_prior(category, version, "keypoint-names"))

    def name_keypoints(self, category: str, names: Sequence[str], version: str | None = None) -> KeypointNames:
        """Replace the keypoint names of a version; give all, in the order of the keypoints."""
        current = self._get_prior(category, version, "keypoint-names")
        params, headers = {"version": self.read(KeypointNames, current).version}, {"If-Match": current.headers["ETag"]}
        path, content = api_path("priors", category, "keypoint-names"), {"names": list(names)}
        try:
            return self.request(KeypointNames, "PUT", path, params=params, headers=headers, json=content)
        except APIError as error:
            now = self.keypoint_names(category, version) if error.status == 412 and error.repeated else None
            if now and now.names == list(names):
                return now
            raise

    def link_map(self, category: str, version: str | None = None) -> bytes:
        """Return the prior's link map as a PNG."""
        return (self._get_prior(category, version, "link-map")).content

    def readiness(self) -> Readiness:
        """Return the state of each part of the server: "ok" or what is wrong.

        Raises APIError with status 503 and all parts in ``problem["checks"]`` if one is missing that estimates need.
        """
        return self.request(Readiness, "GET", "/readyz")

    def _get_prior(self, category: str, version: str | None, *part: str) -> httpx.Response:
        return self.send("GET", api_path("priors", category, *part), params=given(version=version))

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

"""The client; its calls on jobs, estimates, datasets and versions are in the other modules."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from service.client.connection import api_path, version_params
from service.client.errors import InputError
from service.client.retries import RETRIES
from service.client.types import History, Job, KeypointNames, Memory, Prior, PriorEntry, Readiness
from service.client.uploads import AnyPath, open_archive, training_fields, training_files

from .concurrency import to_thread
from .datasets import DatasetCalls
from .estimate import EstimateCalls
from .jobs import JobCalls
from .versions import AliasCalls, LandmarkCalls, VersionCalls


class AsyncClient(JobCalls, EstimateCalls):
    """A client of one server. Not thread-safe.

    Args:
        base_url: of the server; PPL_URL or http://127.0.0.1:8000 by default.
        timeout_s: for each read and write, not for a whole request.
        api_key: PPL_API_KEY by default; without either, no key is sent.
        retries: how often to send a request again, where :mod:`service.client.retries` allows it.

    Attributes:
        versions: calls on the versions of a category.
        aliases: calls on the names that point to versions.
        datasets: calls on uploaded datasets.
        landmarks: calls on user-defined points computed from keypoints.
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
        retries: int = RETRIES,
    ) -> None:
        super().__init__(base_url, retries)
        self._http = httpx.AsyncClient(transport=transport, **self._http_options(timeout_s, api_key))
        self.versions = VersionCalls(self)
        self.aliases = AliasCalls(self)
        self.datasets = DatasetCalls(self)
        self.landmarks = LandmarkCalls(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def train(
        self,
        category: str,
        pictures: AnyPath | None = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        labels: AnyPath | None = None,
        prior: AnyPath | Mapping[str, Any] | None = None,
        prior_from: str | None = None,
        activate: bool = True,
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
            labels: a CSV or COCO JSON file of keypoints, used for evaluation and never for training.
            prior: to start from: a JSON file, or the JSON values of :meth:`prior`.
            prior_from: CATEGORY or CATEGORY@VERSION whose prior to start from.
            activate: whether the version becomes the active one when the job succeeds.
            dataset: id of a dataset, instead of pictures.
            idempotency_key: the same key gives the same job; random by default.
            webhook_url: receives a signed POST when the job has ended; check it with
                :func:`service.client.webhook_signature.verify_webhook`.
            continue_from: a version or alias of the category, or CATEGORY@VERSION, whose weights to start from.
        """
        if (pictures is None) == (dataset is None):
            raise InputError("training takes either pictures or a dataset; give one of them")
        options = {"preset": preset, "prior_from": prior_from, "continue_from": continue_from}
        fields = training_fields(category, settings, activate, webhook_url=webhook_url, **options)
        with ExitStack() as stack:
            files = training_files(dataset, labels, prior, stack)
            if pictures is not None:
                files["archive"] = await to_thread(stack.enter_context, open_archive([Path(pictures)]))
            # the key makes a retry safe when the response was lost
            headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
            return await self.request(Job, "POST", "/train-jobs", data=fields, files=files, headers=headers)

    def priors(self) -> AsyncIterator[PriorEntry]:
        """Iterate over the categories that have been trained."""
        return self.pages("/priors", PriorEntry)

    async def prior(self, category: str, version: str | None = None) -> Prior:
        """Return the pose prior of a category."""
        return self.read(Prior, await self._get_prior(category, version))

    async def memory(self, category: str, version: str | None = None) -> Memory:
        """Return the memory of a version and its prototypes."""
        return self.read(Memory, await self._get_prior(category, version, "memory"))

    async def history(self, category: str, version: str | None = None) -> History:
        """Return the snapshots of a prior during its training."""
        return self.read(History, await self._get_prior(category, version, "history"))

    async def keypoint_names(self, category: str, version: str | None = None) -> KeypointNames:
        """Return the keypoint names of a version."""
        return self.read(KeypointNames, await self._get_prior(category, version, "keypoint-names"))

    async def name_keypoints(self, category: str, names: Sequence[str], version: str | None = None) -> KeypointNames:
        """Replace the keypoint names of a version; give all, in the order of the keypoints."""
        current = await self._get_prior(category, version, "keypoint-names")
        content = {
            "params": {"version": self.read(KeypointNames, current).version},
            "json": {"names": list(names)},
            "headers": {"If-Match": current.headers["ETag"]},
        }
        return await self.request(KeypointNames, "PUT", api_path("priors", category, "keypoint-names"), **content)

    async def link_map(self, category: str, version: str | None = None) -> bytes:
        """Return the prior's link map as a PNG."""
        return (await self._get_prior(category, version, "link-map")).content

    async def readiness(self) -> Readiness:
        """Return the state of each part of the server: "ok" or what is wrong.

        Raises:
            APIError: with status 503 if a part that estimates need is missing; ``problem["checks"]`` has all parts.
        """
        return await self.request(Readiness, "GET", "/readyz")

    async def _get_prior(self, category: str, version: str | None, *part: str) -> httpx.Response:
        return await self.send("GET", api_path("priors", category, *part), params=version_params(version))

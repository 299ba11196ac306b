# Generated from service/client/aio/client.py by service.client.generate: change it there.
"""The client itself; its parts are in the files beside it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from service.client.errors import InputError
from service.client.paths import quoted
from service.client.retries import RETRIES
from service.client.types import (
    History,
    Job,
    KeypointNames,
    Memory,
    Prior,
    PriorEntry,
    Readiness,
)
from service.client.uploads import archive_of, file_part

from .concurrency import in_thread
from .datasets import DatasetCalls
from .estimate import EstimateCalls
from .jobs import JobCalls
from .versions import AliasCalls, LandmarkCalls, VersionCalls


class Client(JobCalls, EstimateCalls):
    """Talks to one server. Not for use by several threads at once.

    Args:
        base_url: of the server; PPL_URL or http://127.0.0.1:8000 by default.
        timeout_s: for each read and write, not for a whole request.
        api_key: PPL_API_KEY by default; none is sent where neither is given.
        retries: how often a request is sent again where that makes sense: the server says when to come back (429,
            503), or the connection broke and asking twice does no harm.

    Attributes:
        versions: what to do with the versions of a category.
        aliases: what to do with the names that point to them.
        datasets: what to do with pictures that are kept to train from.
        landmarks: what to do with points of one's own, told from the keypoints of a version.
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
        api_key: str | None = None,
        retries: int = RETRIES,
    ) -> None:
        super().__init__(base_url, timeout_s, transport, api_key, retries)
        self.versions = VersionCalls(self)
        self.aliases = AliasCalls(self)
        self.datasets = DatasetCalls(self)
        self.landmarks = LandmarkCalls(self)

    def __enter__(self) -> Client:
        return self

    # training

    def train(
        self,
        category: str,
        pictures: str | os.PathLike[str] | None = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        prior: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        prior_from: str | None = None,
        activate: bool = True,
        dataset: str | None = None,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        continue_from: str | None = None,
    ) -> Job:
        """Uploads pictures, or names a dataset, and starts a training job; returns it without waiting.

        Args:
            pictures: a zip, tar or tar.gz, a video, or a folder (packed into a temporary file first).
            preset: "compact" or "paper"; the server's default where None.
            settings: any setting of the model by name.
            labels: a CSV or COCO JSON file of keypoints; training never sees it, the result is measured by it.
            prior: to start from, a JSON file or what :meth:`prior` gave as JSON values.
            prior_from: CATEGORY or CATEGORY@VERSION to take the prior of.
            activate: whether the version becomes the active one when the job succeeds.
            dataset: id of a dataset to train on, in place of pictures.
            idempotency_key: names this request: sent again, it gives the same job; a random one where None.
            continue_from: a version or alias of the category, or CATEGORY@VERSION, whose weights to start from.
            webhook_url: where the job's end is told; :func:`service.client.webhook_signature.verify_webhook` is for
            there.
        """
        if (pictures is None) == (dataset is None):
            raise InputError("name what to train on: either pictures or a dataset")
        named = {"preset": preset, "prior_from": prior_from, "webhook_url": webhook_url, "continue_from": continue_from}
        fields = {"category": category, **{name: value for name, value in named.items() if value}}
        if not activate:
            fields["activate"] = "false"
        fields.update({name: _as_text(value) for name, value in (settings or {}).items()})
        with ExitStack() as stack:
            # a part without a file name is a field
            files: dict[str, Any] = {"dataset": (None, dataset)}
            if pictures is not None:
                files = {"archive": in_thread(stack.enter_context, archive_of(Path(pictures)))}
            if labels is not None:
                files["labels"] = file_part(Path(labels), stack)
            if isinstance(prior, Mapping):
                files["prior"] = ("prior.json", json.dumps(prior).encode())
            elif prior is not None:
                files["prior"] = file_part(Path(prior), stack)
            # named in any case, so that it can be sent again where its answer was lost
            headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
            return self._job("POST", "/train-jobs", data=fields, files=files, headers=headers)

    # priors

    def priors(self) -> Iterator[PriorEntry]:
        """What has been learned, by category."""
        return self._pages("/priors", PriorEntry)

    def prior(self, category: str, version: str | None = None) -> Prior:
        """The pose prior of a category."""
        return self._read(Prior, self._get_prior(category, "", version))

    def memory(self, category: str, version: str | None = None) -> Memory:
        """The memory behind a prior, and its prototypical poses."""
        return self._read(Memory, self._get_prior(category, "/memory", version))

    def history(self, category: str, version: str | None = None) -> History:
        """Snapshots of a prior along its training."""
        return self._read(History, self._get_prior(category, "/history", version))

    def keypoint_names(self, category: str, version: str | None = None) -> KeypointNames:
        """What the keypoints of a version are called."""
        return self._read(KeypointNames, self._get_prior(category, "/keypoint-names", version))

    def name_keypoints(self, category: str, names: Sequence[str], version: str | None = None) -> KeypointNames:
        """Give all keypoints of a version names, in the order of their numbers; they take the place of older ones."""
        path = f"/priors/{quoted(category)}/keypoint-names"
        found = self._get_prior(category, "/keypoint-names", version)
        params = {"version": self._read(KeypointNames, found).version}
        headers = {"If-Match": found.headers["ETag"]}
        answer = self._send("PUT", path, params=params, json={"names": list(names)}, headers=headers)
        return self._read(KeypointNames, answer)

    def link_map(self, category: str, version: str | None = None) -> bytes:
        """The prior's link map as a PNG."""
        return self._get_prior(category, "/link-map", version).content

    def readiness(self) -> Readiness:
        """The parts that the server needs, each "ok" or what is wrong with it.

        Raises:
            APIError: of the status 503, one is missing that estimates need; ``problem["checks"]`` has them all.
        """
        return self._read(Readiness, self._send("GET", "/readyz"))

    def _get_prior(self, category: str, what: str, version: str | None) -> httpx.Response:
        params = {"version": version} if version else None
        return self._send("GET", f"/priors/{quoted(category)}{what}", params=params)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

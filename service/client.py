"""A client of the HTTP API.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as ppl:
        job = ppl.wait(ppl.train("bird", "pictures/").id)
        estimate = ppl.estimate("bird", ["one.jpg", "two.jpg"])

It raises the errors of :mod:`service.client_errors`, all of them ClientError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from .client_errors import APIError, ClientError, InputError, Unreachable
from .client_estimate import EstimateCalls
from .client_jobs import JobCalls
from .client_types import Estimate, History, Job, JobStatus, KeypointNames, Memory, Prior, PriorEntry, png_bytes
from .client_versions import AliasCalls, LandmarkCalls, VersionCalls
from .uploads import archive_of, file_part

__all__ = [
    "APIError",
    "Client",
    "ClientError",
    "Estimate",
    "History",
    "InputError",
    "Job",
    "JobStatus",
    "Memory",
    "Prior",
    "PriorEntry",
    "Unreachable",
    "png_bytes",
]

DEFAULT_URL = "http://127.0.0.1:8000"

Model = TypeVar("Model", bound=BaseModel)


class Client(JobCalls, EstimateCalls):
    """Talks to one server. Not for use by several threads at once.

    Args:
        base_url: of the server; PPL_URL or http://127.0.0.1:8000 by default.
        timeout_s: for each read and write, not for a whole request.

    Attributes:
        versions: what to do with the versions of a category.
        aliases: what to do with the names that point to them.
        landmarks: what to do with points of one's own, told from the keypoints of a version.
    """

    def __init__(
        self, base_url: str | None = None, timeout_s: float = 120.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.base_url = (base_url or os.environ.get("PPL_URL") or DEFAULT_URL).rstrip("/")
        # a proxy of the environment does not know this machine's own addresses
        trust_env = not _is_loopback(self.base_url)
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout_s, transport=transport, trust_env=trust_env)
        self.versions = VersionCalls(self)
        self.aliases = AliasCalls(self)
        self.landmarks = LandmarkCalls(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # training

    def train(
        self,
        category: str,
        pictures: str | os.PathLike[str],
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        prior: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        prior_from: str | None = None,
        activate: bool = True,
        idempotency_key: str | None = None,
    ) -> Job:
        """Uploads pictures and starts a training job; returns it without waiting.

        Args:
            pictures: a zip, tar or tar.gz, a video, or a folder (packed into a temporary file first).
            preset: "compact" or "paper"; the server's default where None.
            settings: any setting of the model by name.
            labels: a CSV or COCO JSON file of keypoints; training never sees it, the result is measured by it.
            prior: to start from, a JSON file or what :meth:`prior` gave as JSON values.
            prior_from: CATEGORY or CATEGORY@VERSION to take the prior of.
            activate: whether the version becomes the active one when the job succeeds.
            idempotency_key: names this request: sent again, it gives the same job.
        """
        fields = {"category": category, "preset": preset or "", "prior_from": prior_from or ""}
        fields = {name: value for name, value in fields.items() if value}
        if not activate:
            fields["activate"] = "false"
        fields.update({name: _as_text(value) for name, value in (settings or {}).items()})
        with archive_of(Path(pictures)) as (name, file), ExitStack() as stack:
            files: dict[str, Any] = {"archive": (name, file)}
            if labels is not None:
                files["labels"] = file_part(Path(labels), stack)
            if isinstance(prior, Mapping):
                files["prior"] = ("prior.json", json.dumps(prior).encode())
            elif prior is not None:
                files["prior"] = file_part(Path(prior), stack)
            headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
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
        path = f"/priors/{_quoted(category)}/keypoint-names"
        found = self._get_prior(category, "/keypoint-names", version)
        params = {"version": self._read(KeypointNames, found).version}
        headers = {"If-Match": found.headers["ETag"]}
        answer = self._send("PUT", path, params=params, json={"names": list(names)}, headers=headers)
        return self._read(KeypointNames, answer)

    def link_map(self, category: str, version: str | None = None) -> bytes:
        """The prior's link map as a PNG."""
        return self._get_prior(category, "/link-map", version).content

    # transport

    def get_json(self, path: str) -> Any:
        """Any JSON of the API, as it came."""
        return self._send("GET", path).json()

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Any request of the API; ``content`` as httpx takes it. Raises Unreachable, APIError."""
        return self._send(method, path, **content)

    def read(self, model: type[Model], response: httpx.Response) -> Model:
        """An answer as the model that it should be. Raises APIError."""
        return self._read(model, response)

    def pages(self, path: str, model: type[Model]) -> Iterator[Model]:
        """All items of a list that comes in pages."""
        return self._pages(path, model)

    def download(self, path: str, to: Path) -> Path:
        """An answer into a file, a little at a time. Raises Unreachable, APIError, InputError."""
        draft = to.with_name(f".{to.name}.part")
        try:
            with self._errors(), self._http.stream("GET", path) as response, draft.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise APIError.of(response)
                for part in response.iter_bytes():
                    file.write(part)
            draft.replace(to)
        except OSError as error:
            raise InputError(f"can't write {to}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        return to

    def _get_prior(self, category: str, what: str, version: str | None) -> httpx.Response:
        params = {"version": version} if version else None
        return self._send("GET", f"/priors/{_quoted(category)}{what}", params=params)

    def _pages(self, path: str, model: type[Model], params: Mapping[str, Any] | None = None) -> Iterator[Model]:
        cursor: str | None = None
        while True:
            here = {"cursor": cursor} if cursor else {}
            page = self._send("GET", path, params={**(params or {}), **here}).json()
            yield from (model.model_validate(item) for item in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _read(self, model: type[Model], response: httpx.Response) -> Model:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise APIError(
                {"code": "unexpected_answer", "detail": f"{self.base_url} answered with something else: {error}"},
                response.status_code,
            ) from error

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, path, **content)
        if not response.is_success:
            raise APIError.of(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise Unreachable(f"no server answers at {self.base_url}; start one with `ppl up`") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.base_url} gave no answer: {error or type(error).__name__}") from error


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

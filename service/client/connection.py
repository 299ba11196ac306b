"""The parts of a transport that send nothing: address, paths, authorization and errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel

from .errors import APIError, CannotConnect, InputError, Unreachable

DEFAULT_URL = "http://127.0.0.1:8000"
_OUTAGE_STATUSES = frozenset({502, 503, 504})

Model = TypeVar("Model", bound=BaseModel)
OnProgress = Callable[[Model], object] | None


class Page(BaseModel, Generic[Model]):
    """A page of a list."""

    items: list[Model]
    next_cursor: str | None


class Connection:
    """Base of both transports."""

    def __init__(self, base_url: str | None, retries: int) -> None:
        self.retries = retries
        self.base_url = (base_url or os.environ.get("PPL_URL") or DEFAULT_URL).rstrip("/")
        try:
            httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise InputError(f"{self.base_url!r} is not a server address: {error}") from error

    def read(self, model: type[Model], response: httpx.Response) -> Model:
        """Parse a response as a model. Raises APIError."""
        with self._map_parse_errors(response.status_code):
            return model.model_validate_json(response.content)

    def _http_options(self, timeout_s: float, api_key: str | None) -> dict[str, Any]:
        key = (api_key or os.environ.get("PPL_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("the API key (PPL_API_KEY) has characters that are not printable ASCII; copy it again")
        return {
            "base_url": self.base_url,
            "timeout": timeout_s,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # proxies set in the environment cannot reach this machine's loopback addresses
            "trust_env": not is_loopback(self.base_url),
        }

    def _refusal(self, response: httpx.Response) -> APIError:
        if not response.is_success:
            return APIError.of(response)
        detail = f"{self.base_url} answered with a web page; check that it is the address of this service"
        return APIError({"code": "unexpected_answer", "detail": detail}, response.status_code)

    @contextmanager
    def _map_connection_errors(self) -> Generator[None, None, None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise CannotConnect(f"no server answers at {self.base_url}; start one with `ppl up`") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.base_url} gave no answer: {error or type(error).__name__}") from error

    @contextmanager
    def _map_parse_errors(self, status: int = 200) -> Generator[None, None, None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # pydantic's and json's are ValueErrors
            reason = " ".join(str(error).split())[:200]
            detail = f"{self.base_url} sent an answer that is not of this API: {reason}"
            raise APIError({"code": "unexpected_answer", "detail": detail}, status) from error


def is_outage(error: Unreachable | APIError) -> bool:
    """Return whether the server may come back: no answer, or a gateway's error. False for a URL without http://."""
    if isinstance(error, APIError):
        return error.status in _OUTAGE_STATUSES
    return not isinstance(error.__cause__, httpx.UnsupportedProtocol)


def is_accepted(response: httpx.Response) -> bool:
    """Return whether a response is a success and no web page, as a proxy's login page or another program sends it."""
    is_web_page = response.headers.get("Content-Type", "").strip().lower().startswith("text/html")
    return response.is_success and not is_web_page


def api_path(*segments: str) -> str:
    """Return a path of the API. Raises InputError for names and ids that would change the path."""
    for name in segments:
        if name in ("", ".", ".."):
            raise InputError(f"the name or id is {name!r}; it must not be empty, '.' or '..'")
    return "".join(f"/{quote(name, safe='')}" for name in segments)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are neither None nor empty, for a query or a form."""
    return {name: value for name, value in options.items() if value is not None and value != ""}


def is_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine's loopback interface."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a host name, or not a URL
        return False

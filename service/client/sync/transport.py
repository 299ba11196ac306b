# Generated from service/client/aio/transport.py by service.client.generate: change it there.
"""HTTP requests to one server: retries, pages, downloads and polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel

from service.client.connection import Connection, Model, is_outage, is_web_page
from service.client.errors import APIError, InputError, Unreachable
from service.client.retries import RETRIES, retry_delay_s

from .concurrency import sleep

OUTAGE_S = 60.0  # waiting calls survive shorter outages, such as a restart of the server


class _Page(BaseModel):
    items: list[dict[str, Any]]
    next_cursor: str | None


class Transport(Connection):
    """Connections to one server; see the client for the arguments."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, method: str, path: str, *, stream: bool = False, **content: Any) -> httpx.Response:
        """Send a request and return its successful response; retry as :mod:`service.client.retries` says.

        Args:
            stream: return before the body is read; the caller closes the response.
            content: arguments of httpx's ``build_request``.

        Raises:
            Unreachable, APIError.
        """
        for attempt in count():
            failure: Unreachable | APIError
            try:
                with self._map_connection_errors():
                    request = self._http.build_request(method, path, **content)
                    response = self._http.send(request, stream=stream)
                    if not response.is_success:
                        response.read()
            except Unreachable as error:
                failure = error
            else:
                if response.is_success and is_web_page(response):
                    response.close()
                    raise self._web_page_error(response.status_code)
                if response.is_success:
                    return response
                failure = APIError.of(response)
            delay_s = retry_delay_s(attempt, method, path, content.get("headers"), failure)
            if delay_s is None or attempt >= self.retries:
                raise failure
            sleep(delay_s)
        raise AssertionError  # count() never ends

    def request(self, model: type[Model], method: str, path: str, **content: Any) -> Model:
        """Send a request and parse its response as a model. Raises Unreachable, APIError."""
        return self.read(model, self.send(method, path, **content))

    def get_json(self, path: str) -> Any:
        """Return the JSON at a path of the API."""
        response = self.send("GET", path)
        with self._map_parse_errors(response.status_code):
            return response.json()

    def pages(self, path: str, model: type[Model], params: Mapping[str, Any] | None = None) -> Iterator[Model]:
        """Iterate over all items of a paginated list."""
        cursor: str | None = None
        while True:
            position = {"cursor": cursor} if cursor else {}
            page = self.request(_Page, "GET", path, params={**(params or {}), **position})
            for item in page.items:
                with self._map_parse_errors():
                    parsed = model.model_validate(item)
                yield parsed
            cursor = page.next_cursor
            if cursor is None:
                return

    def download(self, path: str, to: Path) -> Path:
        """Stream a response into a file, which replaces an older one only when it is complete.

        Raises:
            Unreachable, APIError, InputError.
        """
        draft = to.with_name(f".{to.name}.part")
        try:
            response = self.send("GET", path, stream=True)
            try:
                with self._map_connection_errors(), draft.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            finally:
                response.close()
            draft.replace(to)
        except OSError as error:
            raise InputError(f"can't write {to}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        return to

    def poll(
        self,
        model: type[Model],
        path: str,
        has_ended: Callable[[Model], bool],
        on_progress: Callable[[Model], object] | None,
        poll_s: float,
        timeout_s: float | None,
    ) -> Model:
        """Request a resource until it has ended; survive outages of less than OUTAGE_S.

        Raises:
            TimeoutError: it has not ended after ``timeout_s``.
        """
        started = answered = time.monotonic()
        while True:
            try:
                resource = self.request(model, "GET", path)
            except (Unreachable, APIError) as error:
                if not is_outage(error) or time.monotonic() - answered > OUTAGE_S:
                    raise
            else:
                answered = time.monotonic()
                if on_progress is not None:
                    on_progress(resource)
                if has_ended(resource):
                    return resource
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(f"{path} has not ended after {timeout_s:g} s")
            sleep(poll_s)

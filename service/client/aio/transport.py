"""HTTP requests to one server: retries, pages, downloads and polling."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from service.client.connection import Connection, Model, OnProgress, Page, is_accepted, is_outage
from service.client.errors import APIError, InputError, Unreachable
from service.client.retries import retry_delay_s

from .concurrency import sleep

OUTAGE_S = 60.0  # waiting calls survive shorter outages, such as a restart of the server


class Transport(Connection):
    """Connections to one server."""

    _http: httpx.AsyncClient

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, method: str, path: str, *, stream: bool = False, **content: Any) -> httpx.Response:
        """Send a request and return its successful response; retry as :mod:`service.client.retries` says.

        ``content`` are arguments of httpx's ``build_request``. With ``stream`` the body is not read yet, and the caller
        closes the response. Raises Unreachable, APIError.
        """
        may_have_acted = False
        for attempt in count():
            try:
                with self._map_connection_errors():
                    request = self._http.build_request(method, path, **content)
                    response = await self._http.send(request, stream=stream)
                    if is_accepted(response):
                        return response
                    await response.aread()
                raise self._refusal(response)
            except (Unreachable, APIError) as failure:
                if isinstance(failure, APIError):
                    failure.repeated = may_have_acted
                may_have_acted = may_have_acted or isinstance(failure, Unreachable)
                await self._wait_or_raise(failure, attempt, method, path, content.get("headers"))
        raise AssertionError  # count() never ends

    async def _wait_or_raise(
        self,
        failure: Unreachable | APIError,
        attempt: int,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Wait until a request that failed may be sent again; raise its failure if it may not, or was often enough."""
        delay_s = retry_delay_s(attempt, method, path, headers, failure)
        if delay_s is None or attempt >= self.retries:
            raise failure
        await sleep(delay_s)

    async def request(self, model: type[Model], method: str, path: str, **content: Any) -> Model:
        """Send a request and parse its response as a model. Raises Unreachable, APIError."""
        return self.read(model, await self.send(method, path, **content))

    async def delete_path(self, path: str, **content: Any) -> None:
        """Delete the resource at a path of the API; one that a repeated request finds deleted is no error."""
        try:
            await self.send("DELETE", path, **content)
        except APIError as error:
            if not (error.status == 404 and error.repeated):
                raise

    async def get_json(self, path: str) -> Any:
        """Return the JSON at a path of the API."""
        response = await self.send("GET", path)
        with self._map_parse_errors(response.status_code):
            return response.json()

    async def pages(
        self, path: str, model: type[Model], params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Model]:
        """Iterate over all items of a paginated list."""
        position: dict[str, str] = {}
        while True:
            query = {**(params or {}), **position}
            page = await self.request(Page[model], "GET", path, params=query)  # type: ignore[valid-type]
            for item in page.items:
                yield item
            if page.next_cursor is None:
                return
            position = {"cursor": page.next_cursor}

    async def download(self, path: str, to: Path) -> Path:
        """Stream a response into a file, which replaces an older one only when it is complete. Raises InputError."""
        draft = to.with_name(f".{to.name}.part")
        try:
            with draft.open("wb") as file:
                async for chunk in self.stream(path):
                    file.write(chunk)
            draft.replace(to)
        except OSError as error:
            raise InputError(f"can't write {to}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        return to

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """Yield the body of a response; if it breaks off, request it again, skip what came. Raises as :meth:`send`."""
        received = 0
        for attempt in count():
            skipped = 0
            try:
                async with aclosing(await self.send("GET", path, stream=True)) as response:
                    with self._map_connection_errors():
                        async for chunk in response.aiter_bytes():
                            new = chunk[max(0, received - skipped) :]
                            skipped += len(chunk) - len(new)
                            received, skipped = received + len(new), skipped + len(new)
                            if new:
                                yield new
                return
            except Unreachable as failure:
                await self._wait_or_raise(failure, attempt, "GET", path)

    async def poll(
        self, model: type[Model], path: str, on_progress: OnProgress[Model], poll_s: float, timeout_s: float | None
    ) -> Model:
        """Request a resource until its status has ended; survive outages of less than OUTAGE_S. Raises TimeoutError."""
        started = answered = time.monotonic()
        while True:
            try:
                resource = await self.request(model, "GET", path)
            except (Unreachable, APIError) as error:
                if not is_outage(error) or time.monotonic() - answered > OUTAGE_S:
                    raise
            else:
                answered = time.monotonic()
                if on_progress is not None:
                    on_progress(resource)
                if resource.status.ended:  # type: ignore[attr-defined]  # of a job, a dataset or an estimate
                    return resource
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(f"{path} has not ended after {timeout_s:g} s")
            await sleep(poll_s)

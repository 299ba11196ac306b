"""How the client talks to a server: requests, answers, pages and files; what its calls are built on."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from service.client.errors import APIError, InputError, NobodyThere, Unreachable
from service.client.retries import RETRIES, pause_before

from .concurrency import sleep

DEFAULT_URL = "http://127.0.0.1:8000"
GRACE_S = 60.0  # a server that is away for less (a restart) is waited for

Model = TypeVar("Model", bound=BaseModel)


class _Page(BaseModel):
    items: list[dict[str, Any]]
    next_cursor: str | None


class AsyncTransport:
    """Connections to one server.

    Args:
        base_url: of the server; PPL_URL or http://127.0.0.1:8000 by default.
        timeout_s: for each read and write, not for a whole request.
        api_key: PPL_API_KEY by default; none is sent where neither is given.
        retries: how often a request is sent again where that makes sense (:mod:`service.client.retries`).
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
        retries: int = RETRIES,
    ) -> None:
        self.retries = retries
        self.base_url = (base_url or os.environ.get("PPL_URL") or DEFAULT_URL).rstrip("/")
        # a proxy of the environment does not know this machine's own addresses
        trust_env = not _is_loopback(self.base_url)
        headers = _authorization(api_key or os.environ.get("PPL_API_KEY") or "")
        try:
            self._http = httpx.AsyncClient(
                base_url=self.base_url, timeout=timeout_s, transport=transport, trust_env=trust_env, headers=headers
            )
        except httpx.InvalidURL as error:
            raise InputError(f"{self.base_url!r} is no address of a server: {error}") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def get_json(self, path: str) -> Any:
        """Any JSON of the API, as it came."""
        response = await self._send("GET", path)
        with self._expected(response.status_code):
            return response.json()

    async def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Any request of the API; ``content`` as httpx takes it. Raises Unreachable, APIError."""
        return await self._send(method, path, **content)

    def read(self, model: type[Model], response: httpx.Response) -> Model:
        """An answer as the model that it should be. Raises APIError."""
        return self._read(model, response)

    def pages(self, path: str, model: type[Model]) -> AsyncIterator[Model]:
        """All items of a list that comes in pages."""
        return self._pages(path, model)

    async def download(self, path: str, to: Path) -> Path:
        """An answer into a file, a little at a time. Raises Unreachable, APIError, InputError."""
        draft = to.with_name(f".{to.name}.part")
        try:
            response = await self._send("GET", path, stream=True)
            try:
                with self._errors(), draft.open("wb") as file:
                    async for part in response.aiter_bytes():
                        file.write(part)
            finally:
                await response.aclose()
            draft.replace(to)
        except OSError as error:
            raise InputError(f"can't write {to}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        return to

    async def _pages(
        self, path: str, model: type[Model], params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Model]:
        cursor: str | None = None
        while True:
            here = {"cursor": cursor} if cursor else {}
            page = self._read(_Page, await self._send("GET", path, params={**(params or {}), **here}))
            for item in page.items:
                with self._expected():
                    found = model.model_validate(item)
                yield found
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _until(
        self,
        look: Callable[[], Awaitable[Model]],
        ended: Callable[[Model], bool],
        what: str,
        poll_s: float,
        timeout_s: float | None,
    ) -> Model:
        """Look again and again until what is seen has ended; a server that is away for less than GRACE_S is waited for.

        Raises:
            TimeoutError: it goes on after ``timeout_s``.
        """
        begun = seen = time.monotonic()
        while True:
            try:
                found = await look()
            except (Unreachable, APIError) as error:
                away = isinstance(error, Unreachable) or error.status in (502, 503, 504)
                if not away or time.monotonic() - seen > GRACE_S:
                    raise
            else:
                seen = time.monotonic()
                if ended(found):
                    return found
            if timeout_s is not None and time.monotonic() - begun > timeout_s:
                raise TimeoutError(f"{what} goes on after {timeout_s:g} s")
            await sleep(poll_s)

    def _read(self, model: type[Model], response: httpx.Response) -> Model:
        with self._expected(response.status_code):
            return model.model_validate_json(response.content)

    @contextmanager
    def _expected(self, status: int = 200) -> Iterator[None]:
        """Raises APIError for an answer that is none of this API."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # pydantic's and json's are ValueErrors
            said = " ".join(str(error).split())[:200]
            detail = f"{self.base_url} answered with something else, as no server of this service does: {said}"
            raise APIError({"code": "unexpected_answer", "detail": detail}, status) from error

    async def _send(self, method: str, path: str, *, stream: bool = False, **content: Any) -> httpx.Response:
        """A request and its answer; asked again where the server says when, or where asking twice does no harm.

        Args:
            stream: whether a good answer is given before its body came; it is the caller's to close then.

        Raises:
            Unreachable, APIError.
        """
        for attempt in count():
            failure: Unreachable | APIError
            try:
                with self._errors():
                    request = self._http.build_request(method, path, **content)
                    response = await self._http.send(request, stream=stream)
                    if not response.is_success:
                        await response.aread()
            except Unreachable as error:
                failure = error
            else:
                if response.is_success:
                    await self._check_kind(response)
                    return response
                failure = APIError.of(response)
            pause_s = pause_before(attempt, method, path, content.get("headers"), failure)
            if pause_s is None or attempt >= self.retries:
                raise failure
            await sleep(pause_s)
        raise AssertionError  # count() has no end

    async def _check_kind(self, response: httpx.Response) -> None:
        """A login page of a proxy, or another program's, is a success as well. Raises APIError."""
        if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
            await response.aclose()
            detail = f"{self.base_url} answered with a web page; is it the address of this service?"
            raise APIError({"code": "unexpected_answer", "detail": detail}, response.status_code)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise NobodyThere(f"no server answers at {self.base_url}; start one with `ppl up`") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.base_url} gave no answer: {error or type(error).__name__}") from error


def _authorization(key: str) -> dict[str, str]:
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("the API key (PPL_API_KEY) is none: it has characters that no key has")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False

"""Middleware that admits or refuses a request by its headers, before its body is read, and logs who sent it.

With API keys a request needs one that has the scope. Without keys only programs of this machine are served: a web page
of any site can make the browser send forms to 127.0.0.1 and, once the site's name resolves to it (DNS rebinding), read
the responses. Such requests are recognised by their ``Host`` and ``Origin`` headers.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from asgi_correlation_id import correlation_id
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract import routing
from service.contract.errors import Forbidden, PPLError, RateExceeded, Unauthorized
from service.contract.tracing import span
from service.http.problems import problem_response
from service.runtime.metrics import Metrics
from service.runtime.redis_clients import NO_ANSWER
from service.runtime.settings import Settings

from .keys import ApiKey, KeyStore
from .keys import Scope as KeyScope

log = logging.getLogger(__name__)

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
METRICS_PATH = "/metrics"
# the page's files and the documentation contain no stored data
_PUBLIC = re.compile(r"/|/page/.*|/docs|/docs/oauth2-redirect|/redoc|/openapi\.json|/static-offline-docs/.*")
_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_ESTIMATES = re.compile(r"/estimates?(/.*)?")
_SECRETS = re.compile(r"/webhooks(/.*)?")
_KEY = "ppl.api_key"
_MAX_CALLERS = 10_000
_REDIS_TIMEOUT_S = 0.5


def needed_scope(method: str, path: str) -> KeyScope | None:
    """Return the scope that a request needs; None where it needs no key, as for the documentation and health.

    Any path that is not listed here as reading or estimating needs ``train``, so that new paths are safe by default.
    """
    if path in HEALTH_PATHS or path == METRICS_PATH or _PUBLIC.fullmatch(path):
        return None
    if _SECRETS.fullmatch(path):
        return KeyScope.TRAIN
    if method in _READ_METHODS or _ESTIMATES.fullmatch(path):
        return KeyScope.READ
    return KeyScope.TRAIN


def api_key_of(scope: Scope) -> ApiKey | None:
    """Return the API key that came with a request; None where the gateway requires none."""
    key: ApiKey | None = scope.get(_KEY)
    return key


def key_id_of(scope: Scope) -> str | None:
    """Return the id of the API key that came with a request; None where the gateway requires none."""
    key = api_key_of(scope)
    return key.id if key else None


class RequestRate:
    """A token bucket for each caller: a second's worth of requests at once, then `per_s` each second.

    It counts the requests of this process only, in 1 µs. :class:`SharedRate` counts those of all gateways.

    Args:
        per_s: 0 for no limit.
        clock: seconds, for tests.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s)
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the caller's bucket will be full again

    def take(self, caller: str) -> None:
        """Count a request. Raises RateExceeded where it exceeds the rate."""
        if not self._per_s:
            return
        now = self._clock()
        full_at = max(now, self._full_at.get(caller, now))
        tokens = self._burst - (full_at - now) * self._per_s
        if tokens < 1:
            raise _rate_exceeded(self._per_s, (1 - tokens) / self._per_s)
        if caller not in self._full_at and len(self._full_at) >= _MAX_CALLERS:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        self._full_at[caller] = full_at + 1 / self._per_s


def _rate_exceeded(per_s: float, retry_after_s: float) -> RateExceeded:
    detail = f"more than {per_s:g} requests a second came from this caller; send them more slowly"
    return RateExceeded(detail, retry_after_s=retry_after_s)


class SharedRate:
    """The token buckets of :class:`RequestRate` in Redis, shared by all gateways, on Redis' clock.

    While Redis does not answer, it admits every request, and only the :class:`RequestRate` of each process limits them.
    The library ``limits`` (5.8) has no token bucket.
    """

    _SCRIPT = """
    local time, per_ms, burst = redis.call('TIME'), ARGV[1] / 1000, tonumber(ARGV[2])
    local now = time[1] * 1000 + time[2] / 1000
    local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
    full_at = math.min(math.max(now, full_at), now + burst / per_ms)  -- the clock may have been set back
    local tokens = burst - (full_at - now) * per_ms
    if tokens < 1 then return tostring((1 - tokens) / per_ms) end
    full_at = full_at + 1 / per_ms
    redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil(full_at - now))
    return '0'
    """

    def __init__(self, per_s: float, client: Any) -> None:
        self._per_s, self._redis = per_s, client

    async def take(self, caller: str) -> None:
        """Count a request. Raises RateExceeded where it exceeds the rate."""
        if not self._per_s:
            return
        key = routing.rate_key(hashlib.sha256(caller.encode()).hexdigest()[:32])
        try:
            async with asyncio.timeout(_REDIS_TIMEOUT_S):
                wait_ms = float(await self._redis.eval(self._SCRIPT, 1, key, self._per_s, max(1.0, self._per_s)))
        except NO_ANSWER:
            return
        if wait_ms:
            raise _rate_exceeded(self._per_s, wait_ms / 1000)


class Guard:
    """A check of each request: its API key and its caller's request rate.

    Args:
        keys: None where no key is required.
        redis: an asynchronous client.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyStore | None, redis: Any) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._rate = RequestRate(settings.requests_per_s)
        self._shared_rate = SharedRate(settings.requests_per_s, redis)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if not self._keys:
                self._check_local(scope)
            needed = self._needed_scope(scope)
            scope[_KEY] = None if needed is None else await self._admit(scope, needed)
        except PPLError as error:
            await problem_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send if needed is None else _send_uncached(send))

    def _needed_scope(self, scope: Scope) -> KeyScope | None:
        """Return the scope that a request needs; the settings may close health and metrics."""
        path, settings = scope["path"], self._settings
        is_closed = (path == METRICS_PATH and not settings.open_metrics) or (
            path in HEALTH_PATHS and not (settings.open_health or _is_loopback(_client(scope)))
        )
        return KeyScope.READ if self._keys and is_closed else needed_scope(scope["method"], path)

    def _check_local(self, scope: Scope) -> None:
        """Raise Forbidden for a request to another host's name, and for a change by a page of another site."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        # another site can make a name resolve to this machine, but not an address
        if host is not None and not (_ip_address(name := _host_name(f"//{host}")) or self._is_own_name(name)):
            raise Forbidden(
                f"the request is for the host {host[:80]!r}; without API keys only localhost and addresses are "
                "served. Set PPL_ALLOWED_HOSTS to that name, or PPL_API_KEYS to true"
            )
        if origin is None or scope["method"] in _READ_METHODS:
            return
        name = _host_name(origin)
        is_listed = origin.lower() in self._settings.site_origins
        if not (is_listed or self._is_own_name(name) or _is_loopback(name)):
            raise Forbidden(
                f"the request comes from a web page of {origin[:80]!r}; without API keys only pages of this machine "
                "may change anything. Set PPL_ALLOWED_HOSTS to its host, PPL_CORS_ORIGINS to it, or PPL_API_KEYS to "
                "true"
            )

    def _is_own_name(self, name: str) -> bool:
        return name == "localhost" or name.endswith(".localhost") or name in self._settings.host_names

    async def _admit(self, scope: Scope, needed: KeyScope) -> ApiKey | None:
        """Count a request to its key, or to its address without a valid one, and check the key's scope."""
        address = f"address {_client(scope)}"
        try:
            key = self._find_key(Headers(scope=scope)) if self._keys else None
        except Unauthorized:  # counted by address, so that guessing keys does not slow down those with a valid one
            await self._count(address)
            raise
        await self._count(f"key {key.id}" if key else address)
        if key and not key.allows(needed):
            raise Forbidden(
                f"the API key {key.id} ({key.name}) has the scope {' and '.join(key.scopes)}; this needs {needed}",
                extra={"needed_scope": str(needed)},
            )
        return key

    async def _count(self, caller: str) -> None:
        self._rate.take(caller)  # first, so that a flood costs Redis nothing
        await self._shared_rate.take(caller)

    def _find_key(self, headers: Headers) -> ApiKey:
        assert self._keys
        given = headers.get("authorization", "")
        kind, _, text = given.partition(" ")
        if not given:
            text = headers.get("x-api-key", "")
        elif kind.lower() != "bearer":
            # a single word may be the key itself, which must not be repeated
            came = f"is {kind[:20]!r}" if text.strip() else "names no scheme"
            raise Unauthorized(f"the Authorization header {came}; send 'Authorization: Bearer KEY', with an API key")
        text = text.strip()
        if not text:
            raise Unauthorized(
                "the request has no API key; send one as 'Authorization: Bearer KEY' (the client and `ppl` read it "
                "from PPL_API_KEY); the operator of the server creates keys with `ppl keys create`"
            )
        key = self._keys.find(text)
        if key is None:
            raise Unauthorized("the API key is unknown or was revoked; ask the operator of the server for a new one")
        return key


def _send_uncached(send: Send) -> Send:
    """Return a `send` by which no cache stores an answer that says nothing of caches, nor a browser guesses its type.

    Caches know that Authorization makes an answer private; of X-API-Key they do not.
    """

    async def send_uncached(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("cache-control", "no-store")
            headers.setdefault("x-content-type-options", "nosniff")
        await send(message)

    return send_uncached


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _host_name(address: str) -> str:
    """Return the host of a URL in lower case, empty if it has none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _request_id() -> str:
    return correlation_id.get() or ""


def _is_loopback(name: str) -> bool:
    address = _ip_address(name)
    return address is not None and address.is_loopback


class RequestLog:
    """A middleware that counts requests and times by method, route template and status, and logs a line for each.

    Args:
        log_all: False logs only requests that failed.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_all: bool = True) -> None:
        self._app = app
        self._metrics = metrics
        self._log_all = log_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499  # the client closed the request

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parents = [Headers(scope=scope).get("traceparent")]
        with self._metrics.in_progress.track_inprogress(), span("request", parents, request=_request_id()) as traced:
            try:
                await self._app(scope, receive, record_status)
            except Exception:  # the error handler outside of all middleware answers 500
                status = 500
                raise
            finally:
                # unknown paths share one label, so that a client cannot create labels
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if route != "none" else "any"
                took_s = time.perf_counter() - started
                self._metrics.requests.labels(method, route, status).inc()
                self._metrics.seconds.labels(method, route).observe(took_s)
                self._log(scope, status, took_s)
                if traced:
                    traced.update_name(f"{method} {route}")
                    traced.set_attribute("http.response.status_code", status)

    def _log(self, scope: Scope, status: int, took_s: float) -> None:
        is_probe = scope["path"] in HEALTH_PATHS or scope["path"] == METRICS_PATH
        if status < 400 and (is_probe or not self._log_all):
            return
        key = api_key_of(scope)
        caller = f"key={key.id}" if key else f"client={_client(scope)}"
        # still percent-encoded, so it cannot break the line
        path = scope.get("raw_path", b"")[:200].decode("ascii", "backslashreplace")
        log.info("%s %s %d in %.1f ms, %s", scope["method"], path, status, 1e3 * took_s, caller)

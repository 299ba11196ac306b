"""Middleware that counts, times and logs requests."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.guard import HEALTH_PATHS, METRICS_PATH, api_key_of
from service.runtime.metrics import Metrics

log = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499
_INTERNAL_ERROR = 500


class RequestLog:
    """Count requests and their times by method, route template and status, and log a line for each.

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
        status = _CLIENT_CLOSED_REQUEST

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, record_status)
            except Exception:  # the error handler outside of all middleware answers 500
                status = _INTERNAL_ERROR
                raise
            finally:
                # unknown paths share one label, so that a client cannot create labels
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if route != "none" else "any"
                took_s = time.perf_counter() - started
                self._metrics.requests.labels(method, route, status).inc()
                self._metrics.seconds.labels(method, route).observe(took_s)
                self._log(scope, status, took_s)

    def _log(self, scope: Scope, status: int, took_s: float) -> None:
        is_probe = scope["path"] in HEALTH_PATHS or scope["path"] == METRICS_PATH
        if status < 400 and (is_probe or not self._log_all):
            return
        key = api_key_of(scope)
        caller = f"key={key.id}" if key else f"client={(scope.get('client') or ('unknown',))[0]}"
        # still percent-encoded, so it cannot break the line
        path = scope.get("raw_path", b"")[:200].decode("ascii", "backslashreplace")
        log.info("%s %s %d in %.1f ms, %s", scope["method"], path, status, 1e3 * took_s, caller)

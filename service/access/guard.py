"""Who may do what: API keys, their scopes, and how often a caller may ask. Plain ASGI, before any body is read."""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from service.contract.errors import Forbidden, PPLError, Unauthorized
from service.http.problems import problem_of
from service.runtime.settings import Settings

from .keys import ApiKey, KeyStore
from .keys import Scope as KeyScope
from .local_only import check_own
from .rate_limit import RequestRate

HEALTH = frozenset({"/livez", "/readyz"})
METRICS = "/metrics"
# the documentation tells nothing of what is stored
_OPEN = re.compile(r"/|/docs|/docs/oauth2-redirect|/redoc|/openapi\.json|/static-offline-docs/.*")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ESTIMATES = re.compile(r"/estimates?(/.*)?")
_SECRETS = re.compile(r"/webhooks(/.*)?")
_KEY = "ppl.api_key"


def needed_scope(method: str, path: str) -> KeyScope | None:
    """What a key must be allowed for a request; None where no key is needed, health and metrics among it.

    Whatever is not known here to only look or estimate needs ``train``, also what a later release adds.
    """
    if path in HEALTH or path == METRICS or _OPEN.fullmatch(path):
        return None
    if _SECRETS.fullmatch(path):
        return KeyScope.TRAIN
    if method in _READING or _ESTIMATES.fullmatch(path):
        return KeyScope.READ
    return KeyScope.TRAIN


def key_of(connection: HTTPConnection) -> ApiKey | None:
    """The API key that a request came with; None where the gateway asks for none."""
    key = connection.scope.get(_KEY)
    assert key is None or isinstance(key, ApiKey)
    return key


class Access:
    """Refuses requests without a key that is good for them, and those of a caller that asks too often.

    Args:
        keys: None where no key is needed at all.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyStore | None) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._rate = RequestRate(settings.requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope[_KEY] = self._let_in(scope)
        except PPLError as error:
            await problem_of(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> ApiKey | None:
        if not self._keys:
            check_own(scope, self._settings.hosts_allowed)
        method, path = scope["method"], scope["path"]
        if path in HEALTH or path == METRICS:
            if self._keys and not self._is_open(scope, path):
                self._admit(scope, KeyScope.READ)
            return None
        needed = needed_scope(method, path)
        return None if needed is None else self._admit(scope, needed)

    def _admit(self, scope: Scope, needed: KeyScope) -> ApiKey | None:
        """Count a request to its key, to its address where it has no good one, and see that the key may do it."""
        client = scope.get("client")
        address = f"address {client[0] if client else ''}"
        try:
            key = self._key(Headers(scope=scope)) if self._keys else None
        except Unauthorized:  # those with a good key are not held up by it
            self._rate.take(address)
            raise
        self._rate.take(f"key {key.id}" if key else address)
        if key and not key.may(needed):
            raise Forbidden(
                f"the API key {key.id} ({key.name}) has the scope {' and '.join(key.scopes)}; this needs {needed}",
                extra={"needed_scope": str(needed)},
            )
        return key

    def _is_open(self, scope: Scope, path: str) -> bool:
        if path == METRICS:
            return self._settings.open_metrics
        return self._settings.open_health or _is_here(scope)

    def _key(self, headers: Headers) -> ApiKey:
        assert self._keys
        given = headers.get("authorization", "")
        kind, _, text = given.partition(" ")
        if not given:
            text = headers.get("x-api-key", "")
        elif kind.lower() != "bearer":
            # what stands alone may be the key itself, which is nobody's to repeat
            came = f"is {kind[:20]!r}" if text.strip() else "names no scheme"
            raise Unauthorized(f"the Authorization header {came}; send 'Authorization: Bearer KEY', with an API key")
        text = text.strip()
        if not text:
            raise Unauthorized(
                "this needs an API key and the request has none; send it as 'Authorization: Bearer KEY' (the client "
                "and `ppl` take it from PPL_API_KEY); whoever runs the server makes one with `ppl keys create`"
            )
        key = self._keys.find(text)
        if key is None:
            raise Unauthorized("the API key is unknown or was revoked; ask whoever runs the server for another")
        return key


def _is_here(scope: Scope) -> bool:
    """Whether the request comes from this machine itself, as a container's own check does."""
    try:
        return ipaddress.ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False

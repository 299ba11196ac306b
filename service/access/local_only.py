"""Where no API key is asked for: only this machine's own programs are served, not web pages that its browser shows.

A page of any site can have the browser send forms to 127.0.0.1 and, once the site's own name leads there (DNS
rebinding), read what comes back. The browser says in the headers what it does for whom.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from service.contract.errors import Forbidden

_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL = "localhost"


def check_own(scope: Scope, allowed_hosts: Sequence[str]) -> None:
    """Refuse what a web page may have sent.

    Args:
        allowed_hosts: names that this machine has beside localhost, as a proxy before the gateway passes them on.

    Raises:
        Forbidden: it was sent to a name that is not this machine's, or changes something on behalf of another site.
    """
    headers = Headers(scope=scope)
    host = headers.get("host")
    # an address can't be made to lead here by somebody else, a name can
    if host is not None and not (_is_address(name := _name(f"//{host}")) or _is_own(name, allowed_hosts)):
        raise Forbidden(
            f"the request is for the host {host[:80]!r}; without API keys only those for localhost or an address are "
            "served. Set PPL_ALLOWED_HOSTS to that name, or PPL_API_KEYS to true"
        )
    origin = headers.get("origin")
    if origin is None or scope["method"] in _LOOKING:
        return
    name = _name(origin)
    if not (_is_own(name, allowed_hosts) or _is_loopback(name)):
        raise Forbidden(
            f"the request comes from a web page of {origin[:80]!r}; without API keys only pages of this machine may "
            "change anything. Set PPL_ALLOWED_HOSTS to its host, or PPL_API_KEYS to true"
        )


def _name(address: str) -> str:
    """The host of an address in lower case, empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_own(name: str, allowed_hosts: Sequence[str]) -> bool:
    return name == _LOCAL or name.endswith(f".{_LOCAL}") or name in allowed_hosts


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback

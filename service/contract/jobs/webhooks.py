"""Deliveries of webhooks, and the check of their addresses, made on creation and at each delivery."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, Field

from service.contract.errors import BadWebhook

MAX_URL = 2000
# an IPv4 address stands in the last four bytes of these
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all public unicast addresses

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Delivery(BaseModel):
    """The delivery of a job's end to its webhook."""

    url: str = Field(description="receives the end of the job", examples=["https://example.org/hooks/ppl"])
    status: Literal["pending", "delivered", "failed"] = Field(
        default="pending", description="failed: given up after about a day, or because the receiver answered 410"
    )
    attempts: int = Field(default=0, description="number of attempts")
    last_error: str | None = Field(default=None, description="why the last attempt failed")
    delivered_at: AwareDatetime | None = None


def check_webhook_url(url: Any, *, private: bool) -> str:
    """Return a valid webhook address, checked without resolving its host. Raises BadWebhook.

    Args:
        private: allow addresses that are not public.
    """
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL or not url.isascii() or not url.isprintable():
        raise BadWebhook(
            f"webhook_url is {str(url)[:200]!r}; send an http(s) address of at most {MAX_URL} ASCII characters"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadWebhook(f"webhook_url is {url[:200]!r}: {error}; send an http(s) address") from error
    if parts.scheme not in ("http", "https") or not host or port == 0 or " " in url:
        raise BadWebhook(f"webhook_url is {url[:200]!r}; it must be an http or https address with a host")
    if parts.username is not None or parts.password is not None:
        raise BadWebhook("webhook_url has a user or a password; leave them out, calls are signed instead")
    if (address := _parse_literal(host)) and not private:
        check_address(address, host)
    if host.rstrip(".").lower().rpartition(".")[2] == "localhost" and not private:
        raise _not_public(host, "this machine itself")
    return url


def check_address(address: Address, host: str) -> None:
    """Raise BadWebhook unless an address of a host is public."""
    if any(map(_is_private, (address, *_embedded_ipv4(address)))):
        raise _not_public(host, str(address))


def _is_private(address: Address) -> bool:
    if not address.is_global or address.is_multicast:
        return True
    # is_global is also true for obsolete forms such as fec0::1 and ::127.0.0.1
    return address.version == 6 and not any(address in network for network in (_UNICAST, _MAPPED, *_NAT64))


def _parse_literal(host: str) -> Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0])
    with suppress(OSError, ValueError):  # the system's resolver also accepts 127.1, 0x7f000001, 2130706433
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _embedded_ipv4(address: Address) -> list[ipaddress.IPv4Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _NAT64):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def _not_public(host: str, address: str) -> BadWebhook:
    return BadWebhook(
        f"webhook_url points to {host[:200]} ({address}), which is private; send a public address, "
        "unless the server is set to allow others (PPL_WEBHOOK_PRIVATE)"
    )

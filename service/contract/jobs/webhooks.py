"""What is told of a job's end, and where it may be sent: checked at the door, and again at each delivery."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, Field

from service.contract.errors import BadWebhook

MAX_URL = 2000
# an IPv4 address stands in the last four bytes of these
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is handed out to be reached from everywhere

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Delivery(BaseModel):
    """What became of telling a job's end."""

    url: str = Field(description="where the job's end is told", examples=["https://example.org/hooks/ppl"])
    status: Literal["pending", "delivered", "failed"] = Field(
        default="pending", description="failed: given up after about a day, or because the receiver answered 410"
    )
    attempts: int = Field(default=0, description="how often it was sent")
    last_error: str | None = Field(default=None, description="why the last attempt did not succeed")
    delivered_at: AwareDatetime | None = None


def check_webhook_url(url: Any, *, private: bool) -> str:
    """The address, if a webhook may go there as far as can be told without asking who its host is.

    Args:
        private: whether it may be an address that not everybody can reach.

    Raises:
        BadWebhook: anything else.
    """
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL or not url.isascii() or not url.isprintable():
        raise BadWebhook(f"webhook_url is no text of at most {MAX_URL} ASCII characters; send an http(s) address")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadWebhook(f"webhook_url is {url[:200]!r}: {error}; send an http(s) address") from error
    if parts.scheme not in ("http", "https") or not host or port == 0 or " " in url:
        raise BadWebhook(f"webhook_url is {url[:200]!r}; it must be an http or https address with a host")
    if parts.username is not None or parts.password is not None:
        raise BadWebhook("webhook_url holds a user or a password; every call is signed, so it needs none")
    address = _literal(host)
    if address is not None and not private:
        check_address(address, host)
    if host.rstrip(".").lower().rpartition(".")[2] == "localhost" and not private:
        raise _not_public(host, "this machine itself")
    return url


def check_address(address: Address, host: str) -> None:
    """Raises BadWebhook where not everybody can reach an address that a host has."""
    if any(map(_is_closed, (address, *_inside(address)))):
        raise _not_public(host, str(address))


def _is_closed(address: Address) -> bool:
    if not address.is_global or address.is_multicast:
        return True
    # what is not private by the book is not yet public: fec0::1 and ::127.0.0.1 are of forms that nobody hands out now
    return address.version == 6 and not any(address in network for network in (_UNICAST, _MAPPED, *_NAT64))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001, 2130706433: what the system's resolver takes for an address too
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _inside(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _NAT64):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def _not_public(host: str, address: str) -> BadWebhook:
    return BadWebhook(
        f"webhook_url leads to {host[:200]} ({address}), which is private; webhooks go to public addresses only, "
        "unless the server is set to allow others (PPL_WEBHOOK_PRIVATE)"
    )

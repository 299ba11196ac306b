"""Read the headers by which a client negotiates: Content-Type, Accept (RFC 9110) and Prefer (RFC 7240)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of a request's body in small letters, without its options; empty where it has none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def responds_async(headers: Headers) -> bool:
    """Whether a request wants to be answered before it is done (RFC 7240, ``Prefer: respond-async``)."""
    if "prefer" not in headers:
        return False
    words = ",".join(headers.getlist("prefer")).lower().replace(";", ",").split(",")
    return any(word.strip() == "respond-async" for word in words)


def named(accept: str, kinds: Sequence[str], instead_of: str = "application/json") -> str | None:
    """The first of some media types that Accept names, unless it says that it likes ``instead_of`` better.

    Whoever takes anything, by ``*/*``, names none. A weight that is no number counts as 1.
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        kind, *options = (word.strip() for word in item.split(";"))
        weights[kind] = _weight(options)
    return next((kind for kind in weights if kind in kinds and weights[kind] >= _least(weights, instead_of)), None)


def _least(weights: dict[str, float], instead_of: str) -> float:
    """What another type must weigh; one of weight 0 is not wanted at all."""
    return max(weights.get(instead_of, 0.0), 1e-9)


def _weight(options: Sequence[str]) -> float:
    for option in options:
        name, _, value = option.replace(" ", "").partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0

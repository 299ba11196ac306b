"""Read the headers by which a client negotiates: Content-Type, Accept (RFC 9110) and Prefer (RFC 7240)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body in lower case, without parameters; empty where it has none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def responds_async(headers: Headers) -> bool:
    """Return whether the client asks for a response before the work is done (``Prefer: respond-async``)."""
    if "prefer" not in headers:
        return False
    words = ",".join(headers.getlist("prefer")).lower().replace(";", ",").split(",")
    return any(word.strip() == "respond-async" for word in words)


def accepted_media_type(accept: str, offered: Sequence[str], default: str = "application/json") -> str | None:
    """Return the first of the `offered` media types in Accept, unless `default` has a higher weight there.

    Wildcards as ``*/*`` accept the default, so they match none. A malformed weight counts as 1.
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in item.split(";"))
        weights[kind] = _weight(parameters)
    # a type of weight 0 is not acceptable
    least = max(weights.get(default, 0.0), 1e-9)
    return next((kind for kind in weights if kind in offered and weights[kind] >= least), None)


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.replace(" ", "").partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0

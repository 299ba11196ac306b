"""What a request's Accept says of a media type (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


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

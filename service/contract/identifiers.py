"""Names of things that are listed by when they came."""

from __future__ import annotations

import secrets
import time

_DIGITS_OF_TIME = 15


def time_ordered_id(digits: int) -> str:
    """Hex digits that sort by time of creation, to a quarter of a microsecond.

    Twelve are the milliseconds since 1970 and three the part of a millisecond, as a UUID's version 7 does it with
    "increased clock precision" (RFC 9562, 6.2, method 3); what is left is random.

    Args:
        digits: How many in all; at least 22, of which 7 are random then.
    """
    if digits < 22:
        raise ValueError(f"{digits} digits leave too few to chance: at least 22 are needed")
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    chance = digits - _DIGITS_OF_TIME
    return f"{milliseconds:012x}{(rest << 12) // 1_000_000:03x}{secrets.randbits(4 * chance):0{chance}x}"

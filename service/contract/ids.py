"""Names of things that are listed by when they came."""

from __future__ import annotations

import secrets
import threading
import time

_DIGITS_OF_TIME = 15
_PARTS = 4096  # of a millisecond

_last = 0
_lock = threading.Lock()


def time_ordered_id(digits: int) -> str:
    """Hex digits that sort by time of creation, to a quarter of a microsecond; of one process always.

    Twelve are the milliseconds since 1970 and three the part of a millisecond, as a UUID's version 7 does it with
    "increased clock precision" (RFC 9562, 6.2, method 3); what is left is random. Where the clock stands still or goes
    back, time goes on from the last one.

    Args:
        digits: How many in all; at least 22, of which 7 are random then.
    """
    global _last
    if digits < 22:
        raise ValueError(f"{digits} digits leave too few to chance: at least 22 are needed")
    with _lock:
        _last = max(_last + 1, time.time_ns() * _PARTS // 1_000_000)
        ticks = _last
    chance = digits - _DIGITS_OF_TIME
    return f"{ticks:0{_DIGITS_OF_TIME}x}{secrets.randbits(4 * chance):0{chance}x}"

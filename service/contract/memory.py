"""Limit how far glibc divides the heap."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # of malloc.h
_MOST = 2


def limit_arenas() -> None:
    """Let glibc divide the heap into at most two arenas, unless MALLOC_ARENA_MAX says how many.

    It gives each thread its own, up to eight a core, and memory that was freed in one is not used by another: a process
    with many threads keeps the peak of each. Call it before threads are started. Elsewhere it does nothing.
    """
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _MOST)

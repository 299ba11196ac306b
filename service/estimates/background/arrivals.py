"""Uploads of estimates in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile

from service.contract.quotas import PendingEstimate


class Arrivals:
    """Estimates that are still being sent to this gateway, in the order in which they began.

    Each counts by what came of it, not by what it says will come: whoever announces gigabytes and sends nothing is in
    nobody's way. Where there is too little room for the bytes of all, those that began later give way; for their number
    only those of the same key count before they are there.
    """

    def __init__(self) -> None:
        self._under_way: list[PendingEstimate] = []

    @property
    def size_bytes(self) -> int:
        """Of all that came."""
        return sum(one.size_bytes for one in self._under_way)

    @contextmanager
    def arrive(self, owner: str | None) -> Iterator[PendingEstimate]:
        """One is being sent while the block runs; whoever takes its bytes counts them."""
        one = PendingEstimate(owner)
        self._under_way.append(one)
        try:
            yield one
        finally:
            self.arrived(one)

    def arrived(self, one: PendingEstimate) -> None:
        """All of it came: from now on it waits, and must not count twice."""
        with suppress(ValueError):
            self._under_way.remove(one)

    def ahead_of(self, one: PendingEstimate) -> list[PendingEstimate]:
        """Those that began before."""
        return list(takewhile(lambda other: other is not one, tuple(self._under_way)))

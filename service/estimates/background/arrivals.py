"""Room for estimates in the background: how many may wait, and how many bytes, of all and of each API key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile

from service.contract.errors import QueueFull

_RETRY_S = 10.0


@dataclass(frozen=True)
class Room:
    """How much there may be.

    Attributes:
        in_all: estimates that have not ended.
        of_owner: those of one API key among them, with those that it is still sending. Without keys as many as
            ``in_all``.
        size_bytes: of the files of all, with what came of those that are still being sent.
        owner_bytes: of those of one key.
    """

    in_all: int
    of_owner: int
    size_bytes: int
    owner_bytes: int


@dataclass(eq=False)
class Held:
    """What an estimate takes that waits, or is still being sent.

    Attributes:
        owner: id of the API key that asked for it, if any.
        size_bytes: of its files, as far as they came.
    """

    owner: str | None
    size_bytes: int = 0


class Arrivals:
    """Estimates that are still being sent to this gateway, in the order in which they began.

    Each counts by what came of it, not by what it says will come: whoever announces gigabytes and sends nothing is in
    nobody's way. Where there is too little room for the bytes of all, those that began later give way; for their number
    only those of the same key count before they are there.
    """

    def __init__(self) -> None:
        self._under_way: list[Held] = []

    @property
    def size_bytes(self) -> int:
        """Of all that came."""
        return sum(one.size_bytes for one in self._under_way)

    @contextmanager
    def arrive(self, owner: str | None) -> Iterator[Held]:
        """One is being sent while the block runs; whoever takes its bytes counts them."""
        one = Held(owner)
        self._under_way.append(one)
        try:
            yield one
        finally:
            self.arrived(one)

    def arrived(self, one: Held) -> None:
        """All of it came: from now on it waits, and must not count twice."""
        with suppress(ValueError):
            self._under_way.remove(one)

    def ahead_of(self, one: Held) -> list[Held]:
        """Those that began before."""
        return list(takewhile(lambda other: other is not one, tuple(self._under_way)))


def check_room(room: Room, waiting: Sequence[Held], ahead: Sequence[Held], one: Held, coming: int = 0) -> None:
    """Whether there is room for one more beside those that wait and those ahead of it.

    Args:
        coming: bytes of it that are still to come.

    Raises:
        QueueFull: there is not; says which bound it is.
    """
    if len(waiting) >= room.in_all:
        raise _full(f"{len(waiting)} estimates wait in the background, and no more may; try again when some have ended")
    others = [*waiting, *ahead]
    own = [other for other in others if other.owner == one.owner]
    of_whom = f"estimates of the key {one.owner}" if one.owner is not None else "estimates"
    if len(own) >= (room.of_owner if one.owner is not None else room.in_all):
        raise _full(
            f"{len(own)} {of_whom} wait in the background or are being sent, and no more may; try again when some have "
            "ended, or cancel some"
        )
    size = one.size_bytes + coming
    bounds = [("estimates", room.size_bytes, others)]
    if one.owner is not None:
        bounds.append((of_whom, room.owner_bytes, own))
    for whose, most, held in bounds:
        held_bytes = sum(other.size_bytes for other in held)
        if held_bytes + size > most:
            raise _full(
                f"the files of {whose} that wait or are being sent have {held_bytes} bytes, and with this one's {size} "
                f"there would be more than the {most} that may; try again when some have ended"
            )


def _full(detail: str) -> QueueFull:
    return QueueFull(detail, retry_after_s=_RETRY_S)

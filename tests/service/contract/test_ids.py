"""Ids that sort by time of creation."""

from __future__ import annotations

import itertools
import time

import pytest

from service.contract import ids as identifiers
from service.contract.ids import time_ordered_id


@pytest.mark.parametrize("digits", [22, 24, 32])
def test_has_the_digits_asked_for(digits: int) -> None:
    made = time_ordered_id(digits)
    assert len(made) == digits
    assert set(made) <= set("0123456789abcdef")


def test_sorts_within_one_millisecond_and_across_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    # 250 ns apart, over the edge of a millisecond, and all bits of chance against the order
    clock = iter(range(1_764_000_000_000_900_000, 1_764_000_000_001_100_000, 250))
    chance = iter(range(1000, 0, -1))
    monkeypatch.setattr(identifiers, "_last", 0)
    monkeypatch.setattr(identifiers.time, "time_ns", lambda: next(clock))
    monkeypatch.setattr(identifiers.secrets, "randbits", lambda bits: next(chance))
    made = [time_ordered_id(22) for _ in range(800)]
    assert made == sorted(made)
    assert len(set(made)) == 800


@pytest.mark.parametrize("step", [0, -1_000_000])
def test_sorts_where_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    clock = itertools.count(1_764_000_000_000_000_000, step)
    monkeypatch.setattr(identifiers, "_last", 0)
    monkeypatch.setattr(identifiers.time, "time_ns", lambda: next(clock))
    made = [time_ordered_id(22) for _ in range(200)]
    assert made == sorted(made)
    assert made[0][:12] == f"{1_764_000_000_000:012x}"


def test_sorts_behind_ids_of_milliseconds_alone() -> None:
    """Ids made before had twelve digits of milliseconds and chance behind them."""
    earlier = f"{int(time.time() * 1000) - 1:012x}ffffffffff"
    assert earlier < time_ordered_id(22)


def test_too_few_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 22"):
        time_ordered_id(21)

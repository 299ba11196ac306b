"""A clock that jumps makes nothing old."""

from __future__ import annotations

from service.contract.clocks import JUMP_S, WAIT_S, ClockWatch


class Clocks:
    def __init__(self) -> None:
        self.wall, self.monotonic = 1_800_000_000.0, 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall, self.monotonic = self.wall + seconds, self.monotonic + seconds


def test_jump_either_way_is_noticed_for_an_hour() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall, lambda: clocks.monotonic)
    for jump_s in (86_400, -86_400, JUMP_S + 1):
        clocks.pass_s(600)
        assert not watch.was_set()
        clocks.wall += jump_s
        assert watch.was_set()
        clocks.pass_s(WAIT_S - 1)
        assert watch.was_set()
        clocks.pass_s(2)
        assert not watch.was_set(), "it is taken for right"


def test_clock_that_is_set_right_again_is_another_jump() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall, lambda: clocks.monotonic)
    clocks.wall += 3600
    assert watch.was_set()
    clocks.pass_s(WAIT_S - 10)
    clocks.wall -= 3600
    clocks.pass_s(20)
    assert watch.was_set()


def test_slow_correction_is_none() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall, lambda: clocks.monotonic)
    for _ in range(1000):
        clocks.pass_s(600)
        clocks.wall += 0.3  # 500 ppm, the most by which an NTP client lets a clock drift
        assert not watch.was_set()

from __future__ import annotations

import pytest

from worker.pace import Pace


def test_nothing_is_known_before_the_second_step() -> None:
    pace = Pace()
    assert pace.eta_s(100) is None
    pace.mark(1, 10.0)
    assert pace.steps_per_s is None
    assert pace.eta_s(100) is None


def test_slow_first_step_does_not_count() -> None:
    pace = Pace()
    for step in range(1, 11):
        pace.mark(step, 100.0 + step)  # the first mark is at the end of the first step
    assert pace.steps_per_s == pytest.approx(1.0)
    assert pace.eta_s(110) == pytest.approx(100.0)


def test_only_the_last_seconds_count() -> None:
    pace = Pace(window_s=10)
    for step in range(1, 101):
        pace.mark(step, float(step))
    for step in range(101, 301):
        pace.mark(step, 100 + (step - 100) / 10)
    assert pace.steps_per_s == pytest.approx(10, rel=0.05)


def test_pauses_such_as_checkpoints_count() -> None:
    pace = Pace(window_s=100)
    now = 0.0
    for step in range(1, 101):
        now += 1.0 + (5.0 if step % 10 == 0 else 0.0)
        pace.mark(step, now)
    assert pace.eta_s(200) == pytest.approx(150, rel=0.1)


def test_few_marks_are_kept_of_many_steps() -> None:
    pace = Pace(window_s=30)
    for step in range(1, 100_001):
        pace.mark(step, step / 1000)
    assert len(pace._marks) < 300
    assert pace.steps_per_s == pytest.approx(1000, rel=0.01)

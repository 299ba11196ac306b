from __future__ import annotations

import pytest

from model.config import resolve
from service.contract.jobs.progress import Pace, PaceBook
from worker.training.training_run import SpeedMeter, find_late_step


def test_nothing_is_known_before_the_second_step() -> None:
    pace = SpeedMeter()
    assert pace.eta_s(100) is None
    pace.mark(1, 10.0)
    assert pace.steps_per_s is None
    assert pace.eta_s(100) is None


def test_slow_first_step_does_not_count() -> None:
    pace = SpeedMeter()
    for step in range(1, 11):
        pace.mark(step, 100.0 + step)  # the first mark is at the end of the first step
    assert pace.steps_per_s == pytest.approx(1.0)
    assert pace.eta_s(110) == pytest.approx(100.0)


def test_only_the_last_seconds_count() -> None:
    pace = SpeedMeter(window_s=10)
    for step in range(1, 101):
        pace.mark(step, float(step))
    for step in range(101, 301):
        pace.mark(step, 100 + (step - 100) / 10)
    assert pace.steps_per_s == pytest.approx(10, rel=0.05)


def test_pauses_such_as_checkpoints_count() -> None:
    pace = SpeedMeter(window_s=100)
    now = 0.0
    for step in range(1, 101):
        now += 1.0 + (5.0 if step % 10 == 0 else 0.0)
        pace.mark(step, now)
    assert pace.eta_s(200) == pytest.approx(150, rel=0.1)


def test_few_marks_are_kept_of_many_steps() -> None:
    pace = SpeedMeter(window_s=30)
    for step in range(1, 100_001):
        pace.mark(step, step / 1000)
    assert len(pace._marks) < 300
    assert pace.steps_per_s == pytest.approx(1000, rel=0.01)


# the dearer steps at the end


def test_late_step_is_the_first_with_occlusion() -> None:
    assert find_late_step(resolve("compact", {"steps": 1000, "occlusion_start": 0.75})) == 750
    assert find_late_step(resolve("compact", {"steps": 10, "occlusion_weight": 0, "refinement_weight": 0})) is None
    autolink = {"method": "autolink", "link_colours": 0, "object_colour": False}
    assert find_late_step(resolve("compact", {"steps": 10, **autolink})) is None


def run(
    keeper: SpeedMeter, steps: int, late_from: int, early_s: float, late_s: float
) -> list[tuple[int, float, float]]:
    """Step, what was promised and what it took, at a quarter, a half and three quarters of the time."""
    times, now = [], 1000.0
    for step in range(1, steps + 1):
        now += late_s if step >= late_from else early_s
        times.append(now)
    promised = []
    for step, moment in enumerate(times, 1):
        keeper.mark(step, moment)
        if step in (steps // 4, steps // 2, steps * 3 // 4, steps * 9 // 10):
            eta_s = keeper.eta_s(steps)
            assert eta_s is not None
            promised.append((step, eta_s, times[-1] - moment))
    return promised


def test_time_left_is_accurate_before_the_slower_steps_begin() -> None:
    # as measured with compact on one core
    for _, promised, took in run(SpeedMeter(900), 1200, 900, 0.303, 0.409):
        assert promised == pytest.approx(took, rel=0.02)


def test_time_left_goes_by_what_an_earlier_run_cost() -> None:
    slow = run(SpeedMeter(900, Pace(0.5, 3.0)), 1200, 900, 0.3, 0.9)
    for _, promised, took in slow:
        assert promised == pytest.approx(took, rel=0.02)


def test_without_an_earlier_run_it_is_within_a_third_where_late_steps_cost_twice_as_much() -> None:
    for _, promised, took in run(SpeedMeter(900), 1200, 900, 0.3, 0.6):
        assert promised == pytest.approx(took, rel=0.34)


def test_run_gives_its_pace_to_later_ones() -> None:
    keeper = SpeedMeter(900)
    run(keeper, 1200, 900, 0.3, 0.6)
    assert keeper.pace == Pace(pytest.approx(0.3), pytest.approx(2.0))
    assert keeper.pace.seconds({"steps": 400, "occlusion_start": 0.75}) == pytest.approx(300 * 0.3 + 100 * 0.6)
    assert keeper.pace.seconds({"steps": 400, "occlusion_start": 0.75}, 350) == pytest.approx(50 * 0.6)


def test_run_stopped_before_the_slower_steps_has_no_late_cost() -> None:
    keeper = SpeedMeter(900)
    for step in range(1, 100):
        keeper.mark(step, 0.5 * step)
    assert keeper.pace == Pace(pytest.approx(0.5), None)


def test_pace_is_found_again_for_the_same_settings(redis_client) -> None:
    book = PaceBook(redis_client)
    settings = {"preset": "compact", "steps": 100, "seed": 1, "batch_size": 16}
    assert book.of(settings) is None
    book.note(settings, Pace(0.25, 1.5))
    assert book.of({**settings, "steps": 9000, "seed": 7}) == Pace(0.25, 1.5)
    assert book.of({**settings, "batch_size": 32}) is None
    book.note(settings, Pace(0.5, None))
    assert book.of(settings) == Pace(0.5, 1.5)

"""The number of threads follows what is fastest, at steps that do not depend on the clock."""

from __future__ import annotations

from collections.abc import Callable

from worker.training.training_run import ThreadChoice


class Machine:
    """A machine on which a step takes a known time, by the number of threads."""

    def __init__(self, most: int, step_s: Callable[[int, int], float]) -> None:
        self.now = 0.0
        self.used: list[int] = []
        self.threads = most
        self.choice = ThreadChoice(most, self.set_threads, lambda: self.now)
        self._step_s = step_s

    def set_threads(self, count: int) -> None:
        self.threads = count

    def train(self, steps: int) -> None:
        for step in range(len(self.used) + 1, len(self.used) + steps + 1):
            self.used.append(self.threads)
            self.now += self._step_s(step, self.threads)
            self.choice.mark(step)


def test_idle_machine_trains_with_all_threads() -> None:
    machine = Machine(2, lambda step, threads: {2: 0.19, 1: 0.31}[threads])
    machine.train(400)

    assert machine.used.count(1) <= 8
    assert machine.choice.chosen == [(0, 2)]


def test_beside_a_busy_process_one_thread_is_chosen_and_given_up_when_it_ends() -> None:
    busy = range(50, 250)
    machine = Machine(2, lambda step, threads: 0.31 if threads == 1 else (0.64 if step in busy else 0.19))
    machine.train(500)

    (_, first), (to_one, one), (back, two) = machine.choice.chosen
    assert (first, one, two) == (2, 1, 2)
    assert 50 < to_one < 150
    assert 250 < back < 350
    assert machine.used[to_one + 10 : 190] == [1] * (180 - to_one)


def test_larger_machines_try_half_of_the_threads_too() -> None:
    machine = Machine(8, lambda step, threads: {8: 0.5, 4: 0.2, 1: 0.9}[threads])
    machine.train(60)

    assert machine.choice.chosen[-1][1] == 4
    assert set(machine.used) == {8, 4, 1}


def test_trials_come_at_the_same_steps_on_a_fast_and_on_a_slow_machine() -> None:
    fast = Machine(2, lambda step, threads: {2: 0.01, 1: 0.02}[threads])
    slow = Machine(2, lambda step, threads: {2: 10.0, 1: 20.0}[threads])
    for machine in (fast, slow):
        machine.train(350)

    assert fast.used == slow.used


def test_resumed_training_chooses_at_its_start() -> None:
    now, used = [0.0], []
    choice = ThreadChoice(2, used.append, lambda: now[0], step=270)
    for step in range(271, 290):
        now[0] += {2: 0.64, 1: 0.31}[used[-1]]
        choice.mark(step)

    assert choice.chosen == [(270, 2), (276, 1)]


def test_one_core_has_nothing_to_choose() -> None:
    machine = Machine(1, lambda step, threads: 1.0)
    machine.train(250)

    assert machine.used == [1] * 250
    assert machine.choice.chosen == [(0, 1)]

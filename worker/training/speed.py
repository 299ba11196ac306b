"""Measure the speed of training and estimate the time left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import torch

from model.config import PPLConfig
from service.contract.jobs.progress import Pace

# Cost of a step with occlusion relative to one without: 0.409 s to 0.303 s, `compact` on one core. Used until a run
# of the same settings has measured its own.
_LATE_COST = 1.35
_TRIAL_FROM, _TRIAL_EVERY, _TRIAL_STEPS = 2, 100, 2


def find_late_step(config: PPLConfig) -> int | None:
    """Return the first step that also hides parts of pictures and so costs more; None if no step does."""
    hides = config.method == "ppl" and config.occlusion_weight + config.refinement_weight > 0
    return math.ceil(config.occlusion_start * config.steps) if hides else None


class SpeedMeter:
    """Speed over the last seconds of wall time, including checkpoints.

    The first step is left out, because it also builds caches and threads.

    Args:
        late_from: the first of the slower steps at the end of a run.
        earlier: the pace of an earlier run of the same settings.
        window_s: length of the time window.
    """

    def __init__(self, late_from: int | None = None, earlier: Pace | None = None, window_s: float = 30.0) -> None:
        self._late_from = math.inf if late_from is None else late_from
        self._late_cost = earlier.late_cost if earlier and earlier.late_cost else _LATE_COST
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()  # time and step
        self._early_step_s: float | None = None  # last measured before the slower steps

    def mark(self, step: int, now_s: float) -> None:
        """Record that a step is done. Keeps a few marks per second."""
        if self._marks and self._marks[-1][1] < self._late_from <= step:
            self._early_step_s = self._step_s
            self._marks = deque([self._marks[-1]])  # older marks say nothing about the slower steps
        if len(self._marks) > 1 and now_s - self._marks[-2][0] < self._window_s / 100:
            self._marks.pop()
        self._marks.append((now_s, step))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float | None:
        """Current speed; None before the second step."""
        return 1 / self._step_s if self._step_s else None

    def eta_s(self, total_steps: int) -> float | None:
        """Return the seconds to the last step, slower steps weighted by their cost; None before the second step."""
        if not self._step_s:
            return None
        step = self._marks[-1][1]
        if step >= self._late_from:
            return (total_steps - step) * self._step_s
        late = max(0.0, total_steps - max(step, self._late_from - 1)) if self._late_from < math.inf else 0.0
        return (total_steps - step + late * (self._late_cost - 1)) * self._step_s

    @property
    def pace(self) -> Pace | None:
        """The pace for later runs of the same settings; None if not measured."""
        if not self._step_s:
            return None
        if self._marks[-1][1] < self._late_from:
            return Pace(self._step_s, None)
        return Pace(self._early_step_s, self._step_s / self._early_step_s) if self._early_step_s else None

    @property
    def _step_s(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last_s - first_s) / (last - first) if last_s > first_s and last > first else None


class ThreadChoice:
    """A choice of the number of torch threads that trains fastest beside the machine's other load.

    All threads of a step meet after every operation, so on a machine that other programs use, one thread is often
    faster than several. Every ``_TRIAL_EVERY`` steps each candidate takes ``_TRIAL_STEPS`` steps, and the fastest goes
    on. Trials begin at fixed steps, so a run that always chooses alike computes alike.

    Args:
        most: threads that may be used.
        step: the step that training continues from.

    Attributes:
        chosen: (step, threads) of every change, to be stored with the version.
    """

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
        step: int = 0,
    ) -> None:
        set_threads(most)
        self._candidates = sorted({most, math.ceil(most / 2), 1}, reverse=True)
        self._set_threads = set_threads
        self._clock = clock
        self._threads = most
        self._taken: dict[int, float] = {}
        self._left = 0
        self._marked = clock()
        self.chosen: list[tuple[int, int]] = [(step, most)]

    def mark(self, step: int) -> None:
        """Count a finished step, and set the threads of the next one."""
        now = self._clock()
        took, self._marked = now - self._marked, now
        step_here = step - self.chosen[0][0]
        if len(self._candidates) == 1 or step_here < _TRIAL_FROM:
            return
        if self._left:
            self._taken[self._threads] = min(took, self._taken.get(self._threads, math.inf))
            self._left -= 1
        elif (step_here - _TRIAL_FROM) % _TRIAL_EVERY == 0:
            self._taken, self._left = {}, _TRIAL_STEPS * len(self._candidates)
        if self._left:
            self._use(self._candidates[-math.ceil(self._left / _TRIAL_STEPS)])
        elif self._taken:
            best = min(self._taken, key=self._taken.__getitem__)
            self._taken = {}
            self._use(best)
            if best != self.chosen[-1][1]:
                self.chosen.append((step, best))

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            self._threads = threads
            self._set_threads(threads)

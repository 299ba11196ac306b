"""How fast training goes just now, and how long the rest takes at that."""

from __future__ import annotations

import math
from collections import deque

from model.config import PPLConfig
from service.contract.jobs.paces import Pace

# Of a step that also hides parts of its pictures, against one that does not: 0.409 s to 0.303 s with `compact` on one
# core. Counts only until a run of the same settings has told better.
_LATE_COST = 1.35


def late_step(config: PPLConfig) -> int | None:
    """The first step of a run that is dearer than those before, as it also hides parts; None where none is."""
    hides = config.method == "ppl" and config.occlusion_weight + config.refinement_weight > 0
    return math.ceil(config.occlusion_start * config.steps) if hides else None


class PaceKeeper:
    """Speed over the last seconds of wall time, checkpoints and all.

    The first step is left out: it also builds caches and threads.

    Args:
        late_from: the first of the dearer steps at the end of a run.
        before: the pace of an earlier run of the same settings.
        window_s: the time looked back on.
    """

    def __init__(self, late_from: int | None = None, before: Pace | None = None, window_s: float = 30.0) -> None:
        self._late_from = math.inf if late_from is None else late_from
        self._late_cost = before.late_cost if before and before.late_cost else _LATE_COST
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()
        self._early: float | None = None  # seconds a step, as last seen before the dearer ones

    def mark(self, step: int, now_s: float) -> None:
        """A step is done. At most a few marks a second are kept."""
        if self._marks and self._marks[-1][1] < self._late_from <= step:
            self._early = self._step_s
            self._marks = deque(list(self._marks)[-1:])  # those before tell nothing of those to come
        if len(self._marks) > 1 and now_s - self._marks[-2][0] < self._window_s / 100:
            self._marks.pop()
        self._marks.append((now_s, step))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float | None:
        """None until there is something to go by."""
        return 1 / self._step_s if self._step_s else None

    def eta_s(self, total_steps: int) -> float | None:
        """Seconds to the last step: those of the kind of now at the speed of now, dearer ones at what they cost."""
        if not self._step_s:
            return None
        step = self._marks[-1][1]
        if step >= self._late_from:
            return (total_steps - step) * self._step_s
        late = max(0.0, total_steps - max(step, self._late_from - 1)) if self._late_from < math.inf else 0.0
        return (total_steps - step + late * (self._late_cost - 1)) * self._step_s

    @property
    def pace(self) -> Pace | None:
        """What a later run of the same settings can go by; None until there is something."""
        if not self._step_s:
            return None
        if self._marks[-1][1] < self._late_from:
            return Pace(self._step_s, None)
        return Pace(self._early, self._step_s / self._early) if self._early else None

    @property
    def _step_s(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last_s - first_s) / (last - first) if last_s > first_s and last > first else None

"""How fast training goes just now, and how long the rest takes at that."""

from __future__ import annotations

from collections import deque


class Pace:
    """Speed over the last seconds of wall time, checkpoints and all.

    The first step is left out: it also builds caches and threads.

    Args:
        window_s: the time looked back on.
    """

    def __init__(self, window_s: float = 30.0) -> None:
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, step: int, now_s: float) -> None:
        """A step is done. At most a few marks a second are kept."""
        if len(self._marks) > 1 and now_s - self._marks[-2][0] < self._window_s / 100:
            self._marks.pop()
        self._marks.append((now_s, step))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float | None:
        """None until there is something to go by."""
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def eta_s(self, total_steps: int) -> float | None:
        """Seconds to the last step at this speed."""
        speed = self.steps_per_s
        return (total_steps - self._marks[-1][1]) / speed if speed else None

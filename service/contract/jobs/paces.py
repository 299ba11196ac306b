"""The speed of earlier jobs, from which the duration of a waiting job is estimated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.contract import routing

KEPT_S = 90 * 24 * 3600
# settings that do not change the time of a step
_IRRELEVANT = ("steps", "seed", "learning_rate", "weight_decay", "occlusion_start", "history_snapshots", "schedule")


@dataclass(frozen=True)
class Pace:
    """The speed of a training.

    Attributes:
        step_s: seconds a step.
        late_cost: factor by which a step is slower once parts of its pictures are hidden; None if unknown.
    """

    step_s: float
    late_cost: float | None

    def seconds(self, settings: Mapping[str, Any], steps_done: int = 0) -> float:
        """Return how long training with these settings takes at this pace, from a step on."""
        total = int(settings["steps"])
        left = max(0, total - steps_done)
        late = min(left, max(0.0, total * (1 - float(settings.get("occlusion_start", 1.0)))))
        return self.step_s * (left + late * ((self.late_cost or 1.0) - 1))


class PaceBook:
    """The last pace for each set of settings, in Redis. redis-py's errors pass through.

    Args:
        client: redis.Redis that returns bytes.
    """

    def __init__(self, client: Any) -> None:
        self._redis = client

    def note(self, settings: Mapping[str, Any], pace: Pace) -> None:
        """Store a job's pace. An unknown late_cost leaves the stored one."""
        key = routing.pace_key(_digest(settings))
        values = {"step_s": pace.step_s, **({"late_cost": pace.late_cost} if pace.late_cost else {})}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=values)
            pipe.expire(key, KEPT_S)
            pipe.execute()

    def of(self, settings: Mapping[str, Any]) -> Pace | None:
        """Return the pace of the last job with these settings, up to steps and seed, if any."""
        step_s, late_cost = self._redis.hmget(routing.pace_key(_digest(settings)), "step_s", "late_cost")
        return Pace(float(step_s), float(late_cost) if late_cost else None) if step_s else None


def _digest(settings: Mapping[str, Any]) -> str:
    relevant = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:32]

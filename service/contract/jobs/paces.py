"""How fast jobs of the same settings went before, so that one that waits can be told how long it will take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.contract import routing

KEPT_S = 90 * 24 * 3600
# settings that do not change what a step costs
_FREE = ("steps", "seed", "learning_rate", "weight_decay", "occlusion_start", "history_snapshots", "schedule")


@dataclass(frozen=True)
class Pace:
    """Of a training.

    Attributes:
        step_s: seconds a step.
        late_cost: how many times as much a step costs once it also hides parts of its pictures; None where unknown.
    """

    step_s: float
    late_cost: float | None

    def seconds(self, settings: Mapping[str, Any], steps_done: int = 0) -> float:
        """How long a run of some settings takes at this pace, from a step on."""
        total = int(settings["steps"])
        left = max(0, total - steps_done)
        late = min(left, max(0.0, total * (1 - float(settings.get("occlusion_start", 1.0)))))
        return self.step_s * (left + late * ((self.late_cost or 1.0) - 1))


class PaceBook:
    """The last pace of each kind of job, in Redis. redis-py's errors pass through.

    Args:
        client: redis.Redis that returns bytes.
    """

    def __init__(self, client: Any) -> None:
        self._redis = client

    def note(self, settings: Mapping[str, Any], pace: Pace) -> None:
        """Remember how fast a job went; the time of the dearer steps stays as it was where this one has seen none."""
        key = routing.pace_key(_kind(settings))
        values = {"step_s": pace.step_s, **({"late_cost": pace.late_cost} if pace.late_cost else {})}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=values)
            pipe.expire(key, KEPT_S)
            pipe.execute()

    def of(self, settings: Mapping[str, Any]) -> Pace | None:
        """How fast the last job of these settings went, whatever its steps and seed; None where there was none."""
        step_s, late_cost = self._redis.hmget(routing.pace_key(_kind(settings)), "step_s", "late_cost")
        return Pace(float(step_s), float(late_cost) if late_cost else None) if step_s else None


def _kind(settings: Mapping[str, Any]) -> str:
    told = {name: value for name, value in settings.items() if name not in _FREE}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

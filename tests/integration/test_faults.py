"""Under load each part is killed once; `make faults` has the rest, in full length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.faults.arena import Arena
from tests.integration.faults.faults import kill, run_trials
from tests.integration.faults.load import count

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]


def test_all_is_answered_right_or_clearly_refused_when_parts_are_killed(tmp_path: Path) -> None:
    arena = Arena(tmp_path, "--gateways", "2", plain=1, clients=1, works=False)
    try:
        results = {
            part: run_trials(arena, part, 1, lambda part=part: kill(arena, part))  # type: ignore[misc]
            for part in ("gateway-1", "worker-inference", "valkey")
        }
        arena.close()
    finally:
        arena.stack.end()
    assert arena.faults == []
    for part, result in results.items():
        found = count(result.answers)
        assert set(found) <= {"right", "refused", "broken"}, (part, result.answers)
        assert found["right"]
        assert part == "gateway-1" or not found["broken"]
    by_client = count([answer for answer in results["gateway-1"].answers if answer.by_client])
    assert set(by_client) == {"right"}, "with another gateway no request of the client fails"

"""A platform that did everything again holds no more than after the first time; `make hour` measures it for an hour."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.hour import estimating, training
from tests.integration.hour.hour import Endurance
from tests.integration.hour.sampler import PARTS, Sample
from tests.support.stack_process import within

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]

_ONCE = (training.train, training.move_versions, training.keep_video, training.look_around)
_TWICE = (
    estimating.estimate_with_everything,
    estimating.estimate_lines,
    estimating.estimate_as_coco,
    estimating.estimate_in_background,
    estimating.stream_video,
    estimating.leave_stream,
    estimating.cancel_in_background,
    estimating.send_what_is_refused,
    estimating.abandon_upload,
)
_KEPT_JOBS = 1


def test_nothing_is_left_of_a_mixed_load_but_what_retention_keeps(tmp_path: Path) -> None:
    kept = {"PPL_BACKGROUND_KEPT_S": "2", "PPL_IDEMPOTENCY_TTL_S": "2", "PPL_ENDED_JOBS_KEPT": str(_KEPT_JOBS)}
    endurance = Endurance(tmp_path, **kept)
    try:
        endurance.do((*_TWICE, *_ONCE))
        before = _at_rest(endurance)
        endurance.do((*_TWICE, *_ONCE, *_TWICE))
        after = _at_rest(endurance)
    finally:
        faults = endurance.close()
    assert faults == []
    assert sum(endurance.world.done.values()) == 3 * len(_TWICE) + 2 * len(_ONCE)
    assert _keys(after) == _keys(before)
    assert after.keys["ppl:job:*"] == _KEPT_JOBS
    assert after.temporary == before.temporary
    for folder in ("jobs", "datasets"):
        assert after.disk.get(folder) == before.disk.get(folder), folder
    for part in PARTS:
        was, now = before.processes[part], after.processes[part]
        assert now.pid == was.pid, f"{part} was restarted"
        assert now.descriptors - was.descriptors <= 2, f"{part}: {was}, {now}"
        assert now.threads - was.threads <= 4, f"{part}: {was}, {now}"  # pools grow to their size
        assert now.memory_kb - was.memory_kb < 30_000, f"{part}: {was}, {now}"


def _at_rest(endurance: Endurance) -> Sample:
    """Wait until what the platform does by itself is done and what it kept has expired; return a sample."""

    def unfinished() -> list[str]:
        sample = endurance.sampler.take()
        found = [f"process {kind}" for kind in sample.children]
        found += [form for form in ("ppl:request:*", "ppl:jobs:active") if form in sample.keys]
        with endurance.stack.client() as client:
            return found + [f"estimate {estimate.id}" for estimate in client.estimates()]

    assert within(40, lambda: not unfinished(), every_s=0.5), unfinished()
    return endurance.sampler.take()


def _keys(sample: Sample) -> dict[str, int]:
    """Return the forms of keys with their numbers, but for paces, one for each kind of training, and a lock of 5 s."""
    return {form: number for form, number in sample.keys.items() if form not in ("ppl:pace:*", "ppl:reconcile")}

"""Damaged files of every format: each is refused in words or read, by the readers and by a running stack.

``make bad-input`` sends thousands of them (PPL_BAD_INPUT); without it the readers alone get some hundreds.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.bad_input import DEADLINE_S, Runner, growth, read_directly
from tests.support.mutations import KINDS, Case, cases
from tests.support.seed_files import seeds
from tests.support.stack_process import StackProcess, children

COUNT = 500
SEED = 19
# a 1000 cases, beyond twice the slope's error; the training worker's peak rises by steps with the largest upload so far
_MOST_GROWTH_KB = 30_000
_FOR_READERS = tuple(kind for kind in KINDS if kind not in ("json", "video"))  # each video starts a process


def test_seeds_are_read(tmp_path: Path) -> None:
    """Or damage would prove nothing."""
    for number, (name, data) in enumerate(seeds().items()):
        kind, _, suffix = name.partition("/")
        if kind == "json" or (kind == "video" and suffix not in ("mp4", "pages.tif")) or suffix == "h5":
            continue  # each of these starts a process; make bad-input sends them all
        assert read_directly(Case(number, kind, name, "nothing", f"a.{suffix}", data), tmp_path) == "read", name


def test_readers_refuse_damaged_files_in_words(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    chosen = [case for case in cases(SEED, COUNT, _FOR_READERS) if case.format not in ("labels/h5", "labels/slp")]
    chosen += cases(SEED, 6, ("video",))
    for case in chosen:
        began = time.process_time()
        outcome = read_directly(case, tmp_path)
        took = time.process_time() - began
        assert took < DEADLINE_S, f"{case}: {took:.2f} s of CPU"
        counts[outcome] += 1
    assert counts["read"] < len(chosen) / 2
    assert len(counts) > 12


@pytest.mark.integration
@pytest.mark.timeout(7200)
@pytest.mark.skipif("PPL_BAD_INPUT" not in os.environ, reason="takes minutes; make bad-input")
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc")
def test_running_stack_refuses_damaged_files_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    stack = StackProcess(tmp_path / "data")
    try:
        before = set(children(stack.process.pid))
        runner = Runner(stack)
        files = files_of(stack.data_root)
        seed = int(os.environ.get("PPL_BAD_INPUT_SEED", SEED))
        report = runner.run(cases(seed, int(os.environ["PPL_BAD_INPUT"])))
        print("\n" + "\n".join(report.lines()))
        assert set(children(stack.process.pid)) == before, "a process ended"
        time.sleep(2)
        left = sorted(files_of(stack.data_root) - files)
        rest = [str(path) for path in temporary.rglob("*") if path.is_file()]
        logs = "".join(path.read_text(errors="replace") for path in (stack.data_root / "logs").glob("*.log"))
        grown = {part: growth(samples) for part, samples in report.memory.items()}
    finally:
        stack.end()
    print(f"files left: {left[:20]}; temporary: {rest}; tracebacks: {logs.count('Traceback')}")
    at = logs.find("Traceback")
    print(logs[max(0, at - 500) : at + 3000] if at >= 0 else "")
    assert report.faults == []
    assert left == []
    assert rest == []
    assert "Traceback" not in logs
    assert {part: slope for part, (slope, error) in grown.items() if slope - 2 * error > _MOST_GROWTH_KB} == {}


def files_of(root: Path) -> set[str]:
    """Return the files below a data root, without logs, the queue's, locks, and what valid requests added."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    kept = (path for path in found if path.parts[0] not in ("logs", "valkey") and path.name != ".lock")
    return {str(path) for path in kept if path.parts[:2] not in (("categories", "cat"), ("categories", "tiny"))}

"""The harness: what a report says, as text and as JSON, and how contestants take turns."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch

from benchmarks.speed import memory, report, timing
from benchmarks.speed.machine import cpu_seconds, machine, resident_bytes, versions
from benchmarks.speed.report import Check, Report


def made(_options: argparse.Namespace) -> Report:
    print("said on the way")
    rows = [{"batch": 8, "ms": 1.23456}, {"batch": 16, "mib": None}]
    return Report("made", "something", rows, ratio=3.0, bar=4.0, checks=[Check("wait", 0.01, 0.05, at_least=False)])


def test_json_is_one_object_and_a_missed_bar_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.run(made, arguments=["--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert (said["subject"], said["ratio"], said["bar"], said["holds"]) == ("made", 3.0, 4.0, False)
    assert [check["holds"] for check in said["checks"]] == [False, True]
    assert said["rows"][0] == {"batch": 8, "ms": 1.23456}
    assert said["machine"]["cores"] >= 1
    assert said["versions"]["python"]


def test_text_says_which_bars_hold(capsys: pytest.CaptureFixture[str]) -> None:
    report.run(made, arguments=[])

    text = capsys.readouterr().out
    assert "ratio: 3, at least 4 DOES NOT HOLD" in text
    assert "wait: 0.01, at most 0.05 holds" in text
    assert "batch     ms  mib" in text
    assert "said on the way" not in text


@pytest.mark.parametrize(("ratio", "holds"), [(4.0, True), (3.9, False), (None, None)])
def test_nothing_holds_or_fails_without_a_ratio(ratio: float | None, holds: bool | None) -> None:
    assert Report("subject", "title", [], ratio=ratio, bar=4.0).holds is holds


def test_contestants_take_turns_and_turn_round() -> None:
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}

    seconds = timing.time_in_turns(works, repeats=3, warm_up=1)

    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert set(seconds) == {"a", "b"}
    assert min(seconds.values()) > 0


def test_percentiles() -> None:
    values = [float(value) for value in range(100)]
    assert [timing.percentile(values, percent) for percent in (50, 99, 100)] == [50.0, 99.0, 99.0]
    assert timing.percentile([7.0], 99) == 7.0


def test_peak_memory_counts_what_is_held_at_once_and_no_more() -> None:
    def work() -> None:
        first = torch.ones(1 << 20)  # 4 MiB
        second = first + 1
        del first
        third = second + 1
        del second, third

    assert memory.peak_bytes(work, torch.device("cpu")) == pytest.approx(8 << 20, rel=0.01)


def test_moved_bytes_count_reads_and_writes_but_no_views() -> None:
    values = torch.ones(1 << 10)
    with memory.MovedBytes() as moved:
        _ = values.view(2, -1)[0]
        _ = values + 1

    assert moved.count == 2 * 4 * (1 << 10)


def test_processes_are_accounted_for() -> None:
    before = cpu_seconds(os.getpid())
    held = bytearray(os.urandom(1 << 20) * 32)
    assert cpu_seconds(os.getpid()) >= before
    assert resident_bytes() > len(held)
    assert machine()["memory_gib"] > 0
    assert "torch" in versions()

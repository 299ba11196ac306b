"""The benchmarks of the service at their smallest: real parts, a second of load. Their times mean nothing."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.speed import growth, scale_out, serving, speed, stack, start
from benchmarks.speed.photos import WIDTH
from benchmarks.speed.report import Report
from benchmarks.speed.speed_plot import plot_ratios, plot_serving
from service.stack.supervisor import Child
from tests.support.forks import Fork
from tests.support.worker_process import work

BEAT_S = 0.5


class ForkedWorker(Child):
    """A child process; workers are forked, as importing torch takes seconds, and send heartbeats often."""

    def start(self) -> None:
        if "worker" not in self.spec.command:
            return super().start()
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self.spec.env}
        self.process = Fork(self.spec.log_path, environment, work, self.spec.command[-1], BEAT_S)  # type: ignore[assignment]
        return None


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "Child", ForkedWorker)
    monkeypatch.setattr(scale_out, "_BEAT_S", 4 * BEAT_S)


def measured(module: Any, *arguments: object) -> Report:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    report: Report = module.measure(parser.parse_args([str(argument) for argument in arguments]))
    return report


def by(report: Report, key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in report.rows}


def test_figures_are_plotted(tmp_path: Path) -> None:
    serving = {"subject": "serving", "ratio": 0.4, "bar": 0.8}
    rows = [{"contestant": "service", "clients": n, "pictures_per_s": 10.0 * n} for n in (1, 8)]
    rows.append({"contestant": "bare, batches", "pictures_per_s": 90.0})
    assert plot_ratios([serving, {"subject": "start", "ratio": None, "bar": None}], tmp_path / "a.png")
    assert plot_serving([{**serving, "rows": rows}], tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300
    assert not plot_ratios([], tmp_path / "c.png")
    assert not plot_serving([{"subject": "serving", "failure": "no room"}], tmp_path / "c.png")


def test_start_reports_how_long_each_part_took() -> None:
    rows = by(measured(start, "--rounds", 1), "part")
    assert set(rows) == {"valkey", "worker", "gateway"}
    assert all(row["ready_s"] > 0 for row in rows.values())
    assert rows["gateway"]["resident_mb"] > 20


@pytest.mark.usefixtures("_forked")
def test_serving_answers_every_client_beside_the_bare_process() -> None:
    report = measured(serving, "--no-litserve", "--rounds", 1, "--seconds", 0.6, "--clients", 1, 4, "--threads", 1)
    service = [row for row in report.rows if row["contestant"] == "service"]
    assert [row["clients"] for row in service] == [1, 4]
    assert all(row["pictures_per_s"] > 0 for row in service)
    assert report.ratio is not None
    assert report.ratio > 0
    failed = next(check for check in report.checks if check.what == "failed requests")
    assert failed.value == 0


@pytest.mark.usefixtures("_forked")
def test_scale_out_accounts_for_every_request() -> None:
    report = measured(scale_out, "--rounds", 1, "--seconds", 0.6, "--clients", 4)
    rows = by(report, "of_each")
    assert all(row["sent"] == row["answered"] == row["estimated"] > 0 for row in rows.values())
    assert rows[2]["worker-1_cpu_ms_a_picture"] >= 0


def test_scale_out_notices_the_response_of_another_request() -> None:
    def body(*widths: int) -> bytes:
        return json.dumps({"images": [{"width": width} for width in widths]}).encode()

    assert scale_out.wrong(3, body(WIDTH + 3)) is None
    assert scale_out.wrong(3, body(WIDTH + 4)) == "the answer of another request"
    assert scale_out.wrong(3, body(WIDTH + 3, WIDTH + 3)) == "2 poses for one picture"


def test_growth_lists_what_is_stored() -> None:
    report = measured(growth, "--jobs", 70, "--versions", 5, "--repeats", 1, "--device", "cpu", "--threads", 1)
    listed = {row["what"]: row for row in report.rows if row.get("ms")}
    assert set(listed) == {
        "listing jobs",
        "listing jobs, last",
        "listing jobs, one status",
        "listing versions",
        "listing priors",
    }
    assert [row["of"] for row in report.rows if row["what"] == "K"] == [4, 8, 16, 32]


def test_document_has_a_line_and_a_table_for_each_subject() -> None:
    result = {
        **Report("start", "a title", [{"part": "gateway", "ready_s": 1.5}], ratio=2.0, bar=3.0).to_dict(),
        "command": "python -m benchmarks.speed.start",
    }
    text = speed.document([result, {"subject": "serving", "failure": "no room"}], "2026-01-02")
    assert "| start | 2 | 3 | **no** | – |" in text
    assert "| serving | – | – | failed | – |" in text
    assert "It failed: no room" in text
    assert "  gateway      1.5" in text


def test_unknown_subject_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["warp"])
    assert "no subject warp" in capsys.readouterr().err

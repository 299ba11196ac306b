from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from worker.__main__ import main
from worker.app import make_app
from worker.settings import WorkerSettings


@pytest.mark.parametrize(("name", "value"), [("PPL_DEVICE", "tpu"), ("PPL_INFERENCE_THREADS", "0")])
def test_bad_setting_is_named_and_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["inference"]) == 2
    said = capsys.readouterr().err
    assert "can't start" in said
    assert name.removeprefix("PPL_").lower() in said


def test_empty_setting_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_WORKER_METRICS_PORT", "")
    monkeypatch.setenv("PPL_TRAINING_THREADS", "")
    settings = WorkerSettings()
    assert settings.worker_metrics_port is None
    assert settings.training_threads >= 1


def test_training_may_use_all_cores() -> None:
    settings = WorkerSettings()
    assert settings.training_threads >= settings.inference_threads >= 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has batch processes")
def test_training_is_a_batch_process_that_keeps_its_share() -> None:
    code = (
        "import os; from worker.__main__ import let_inference_go_first\n"
        "from worker.settings import WorkerSettings\n"
        "before = os.nice(0); let_inference_go_first(WorkerSettings().training_nice)\n"
        "assert os.sched_getscheduler(0) == os.SCHED_BATCH and os.nice(0) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_health_check_needs_no_torch() -> None:
    code = (
        "import sys; from worker.__main__ import main\n"
        "try: main(['health'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'celery' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_what_happens_on_a_lost_connection_is_said_and_not_left_to_celerys_version(kind: Any) -> None:
    app = make_app(kind, WorkerSettings())
    changes = app.conf.changes
    assert changes["worker_cancel_long_running_tasks_on_connection_loss"] is False

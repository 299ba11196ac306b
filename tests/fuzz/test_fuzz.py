"""Each reader fuzzed by coverage with atheris, for PPL_ATHERIS_S seconds; ``make fuzz-readers`` for longer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3


@pytest.mark.timeout(7200)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install -e '.[fuzz]'")
@pytest.mark.parametrize("target", ["archive", "labels", "boxes", "prior", "version"])
def test_reader_raises_nothing_but_its_refusals(target: str, tmp_path: Path) -> None:
    seconds = int(os.environ.get("PPL_ATHERIS_S", SECONDS))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.targets", target, f"-max_total_time={seconds}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    ran = re.search(r"Done (\d+) runs", done.stderr)
    print(f"{target}: {ran and ran[0]}")
    assert done.returncode == 0, done.stderr[-5000:]
    assert ran
    assert int(ran[1]) > 10

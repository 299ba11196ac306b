"""The running server, with its real workers, against cases that schemathesis makes up from its own description.

``make fuzz`` is the same for longer: ``PPL_FUZZ_S`` seconds instead of FUZZ_S.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack_process import StackProcess

ROOT = Path(__file__).resolve().parents[2]
FUZZ_S = 20
LEAST = 60  # cases
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "errors_are_problems",
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]


@pytest.mark.timeout(3600)
def test_no_case_gets_a_fault_or_an_answer_that_is_not_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = int(os.environ.get("PPL_FUZZ_S", FUZZ_S))
    monkeypatch.setenv("PPL_MAX_UNFINISHED_JOBS", "4")
    monkeypatch.setenv("PPL_BACKGROUND_MAX_WAITING", "4")
    stack = StackProcess(tmp_path / "data")
    try:
        generated = fuzz(stack.url, tmp_path, seconds)
        if generated < LEAST:  # a machine that is busy with other things
            generated = fuzz(stack.url, tmp_path, 10 * seconds)
    finally:
        stack.end()
    assert generated >= LEAST


def fuzz(url: str, folder: Path, seconds: int) -> int:
    """Run schemathesis, check that no case failed, and return the number of cases."""
    command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json"]
    command += ["--max-time", str(seconds), "--checks", ",".join(CHECKS), "--continue-on-failure", "--seed", "1"]
    command += ["--request-timeout", "40", "--no-color"]
    command += ["--max-examples", "1000" if "PPL_FUZZ_S" in os.environ else "40"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.api_fuzz",
            "PPL_FUZZ_URL": url,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=seconds + 240,
        check=False,
    )
    print(done.stdout[-30000:])
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-3000:]
    cases = re.search(r"(\d[\d,]*) generated, (\d[\d,]*) passed", done.stdout)
    assert cases, done.stdout[-3000:]
    assert "errored" not in done.stdout
    generated, passed = (int(number.replace(",", "")) for number in cases.groups())
    assert generated == passed
    return generated

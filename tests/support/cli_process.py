"""Run `ppl` as a process of its own without importing it anew each time.

A template process imports the command line once and forks itself for each command. The command then has its own
working directory, environment, streams and exit code, as a user's has, and starts in milliseconds.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
# the console reads these when it is imported, so the template starts with them
_CONSOLE = {"COLUMNS": "120", "NO_COLOR": "1"}


class CommandLine:
    """Runs commands one after the other, each in a fork of the template, which starts with the first command."""

    def __init__(self) -> None:
        self._template: subprocess.Popen[str] | None = None

    def run(
        self, *arguments: object, cwd: Path, timeout_s: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `ppl` with these arguments, and this environment on top of the tests' own.

        Variables other than PPL_… are read by Python or the console as they start: these commands get a new Python.
        """
        words = [str(argument) for argument in arguments]
        whole = {**os.environ, **_CONSOLE, **environment}
        if not all(name.startswith("PPL_") for name in environment):
            command = [sys.executable, "-m", "service.cli", *words]
            return subprocess.run(
                command, capture_output=True, text=True, cwd=cwd, env=whole, timeout=timeout_s, check=False
            )
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("stdout", "stderr")]
            order = {"arguments": words, "cwd": str(cwd), "environment": whole, "streams": [*map(str, streams)]}
            code = self._ask(order, timeout_s)
            return subprocess.CompletedProcess(words, code, *(path.read_text() for path in streams))

    def close(self) -> None:
        """Kill the template, and the command that it may be waiting for."""
        if self._template is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._template.pid, signal.SIGKILL)
            self._template.communicate()
            self._template = None

    def _ask(self, order: dict[str, Any], timeout_s: float) -> int:
        if self._template is None:
            self._template = subprocess.Popen(
                [sys.executable, "-m", "tests.support.cli_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, **_CONSOLE, "OPENBLAS_NUM_THREADS": "1"},  # a process with threads must not fork
                start_new_session=True,
            )
        template = self._template
        assert template.stdin is not None
        assert template.stdout is not None
        timer = threading.Timer(timeout_s, os.killpg, (template.pid, signal.SIGKILL))
        timer.start()
        try:
            template.stdin.write(json.dumps(order) + "\n")
            template.stdin.flush()
            answer = template.stdout.readline()
        finally:
            timer.cancel()
        if not answer:
            self.close()
            raise AssertionError(f"ppl {order['arguments']} did not end within {timeout_s} s")
        return int(answer)


def _next_command(orders: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Fork for each order: the child returns it, the template answers with its exit code, and None at the end."""
    for line in orders:
        child = os.fork()
        if child == 0:
            return json.loads(line)  # type: ignore[no-any-return]
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    return None


def _become(order: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    for number, path in enumerate(order["streams"], start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["ppl", *order["arguments"]]


def main() -> None:
    from service.cli.main import main as ppl
    from service.client import Client

    Client("http://127.0.0.1:1").close()  # imports what the first client imports
    gc.freeze()
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # answers alone are read by the tests
    order = _next_command(orders, answers)
    if order is not None:
        _become(order)
        ppl()


if __name__ == "__main__":
    main()

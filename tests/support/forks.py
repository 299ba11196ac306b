"""Processes that start in milliseconds: forks of one that has imported torch, which takes seconds.

A fork ends as a process of multiprocessing does, without Python's own shutdown: what a test says about that needs a
process with its own Python.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
# not our own modules of settings and queues: a test may change these before they are read
_FORKS.set_forkserver_preload(
    [
        "model.training.distributed",
        "model.training.trainer",
        "torch._dynamo",  # the first optimiser imports it, for a second
        "celery",
        "pydantic_settings",
    ]
)


class Fork:
    """A running function, with those methods of subprocess.Popen that tests use.

    Args:
        log: file that standard output and error are added to.
        environment: all of it, as for subprocess.Popen.
        function: one that a module has, not a nested one; what it returns is the exit code.
    """

    def __init__(
        self, log: Path, environment: dict[str, str], function: Callable[..., int | None], *arguments: object
    ) -> None:
        self._start(_run, log, environment, function, arguments)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        self._process = _FORKS.Process(target=run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class PipedFork(Fork):
    """A running function with pipes as its standard input and output, and a session of its own."""

    def __init__(self, function: Callable[[], int | None]) -> None:
        (their_input, our_input), (our_output, their_output) = _FORKS.Pipe(duplex=False), _FORKS.Pipe(duplex=False)
        self._start(_run_piped, their_input, their_output, function)
        self.stdin, self.stdout = os.fdopen(os.dup(our_input.fileno()), "w"), os.fdopen(os.dup(our_output.fileno()))
        for end in (their_input, our_input, our_output, their_output):
            end.close()

    def __enter__(self) -> PipedFork:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stdin.close()
        self.wait()


def _run_piped(input_: Connection, output: Connection, function: Callable[[], int | None]) -> None:
    os.setsid()
    os.dup2(input_.fileno(), 0)
    os.dup2(output.fileno(), 1)
    input_.close()
    output.close()
    sys.stdin = os.fdopen(0)
    raise SystemExit(function())


def _run(
    log: Path, environment: dict[str, str], function: Callable[..., int | None], arguments: tuple[object, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    raise SystemExit(function(*arguments))

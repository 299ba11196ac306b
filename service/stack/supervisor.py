"""Keeps child processes running: starts them in stages, restarts those that die, ends them in order.

Knows nothing of what the children do. On Linux a child is killed by the kernel when the thread that
started it goes away (even by kill -9), so a Supervisor must be driven from one thread throughout.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
if _LIBC is not None:
    _LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_LOG_LIMIT_BYTES = 20 * 1024 * 1024


class ChildFailedError(RuntimeError):
    """A child that could not be kept running; the message ends with the tail of its log."""


@dataclass(frozen=True)
class ChildSpec:
    """What to run.

    Attributes:
        stage: children of a lower stage start first and end last.
        ready: asked until true before the next stage starts; must return within about a second.
        pass_fds: file descriptors that the child inherits.
        stop_timeout_s: time between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    log_path: Path
    stage: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready: Callable[[], bool] | None = None
    pass_fds: tuple[int, ...] = ()
    stop_timeout_s: float = 10.0


@dataclass(frozen=True)
class RestartPolicy:
    """How eagerly a child that died is started again.

    A death within ``quick_s`` of the start is a quick one. The n-th quick death in a row waits
    first_delay_s * 2**(n-1), at most max_delay_s; any other death waits first_delay_s.
    """

    first_delay_s: float = 0.25
    max_delay_s: float = 30.0
    quick_s: float = 10.0
    quick_limit: int = 5

    def delay_s(self, quick_deaths: int) -> float:
        """Seconds to wait before the next start, after so many quick deaths in a row."""
        return min(self.first_delay_s * 2.0 ** max(0, min(quick_deaths, 32) - 1), self.max_delay_s)


class Child:
    """One child process and its history."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.quick_deaths = 0
        self.restart_at: float | None = None
        self._started_at = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.process.pid if self.process else None

    @property
    def uptime_s(self) -> float:
        """Seconds since the last start."""
        return time.monotonic() - self._started_at

    def start(self) -> None:
        """Starts the process; its output is appended to the log file.

        Raises:
            OSError, subprocess.SubprocessError: the process could not be started at all.
        """
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.trim_log()
        with self.spec.log_path.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(  # noqa: S603 the command is our own
                list(self.spec.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.spec.env},
                cwd=self.spec.cwd,
                pass_fds=self.spec.pass_fds,
                start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone
                preexec_fn=end_with_parent(),
            )
        self.starts += 1
        self.restart_at = None
        self._started_at = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal if the process runs."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the present or last run of the child wrote."""
        try:
            with self.spec.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(min(self._log_start, size), size - 16_384))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no output)"
        return "\n".join(text.splitlines()[-lines:]) or "(no output)"

    def trim_log(self) -> None:
        """Moves a log that has grown too long to ``<name>.log.1`` (one older file is kept)."""
        path = self.spec.log_path
        if not path.exists() or path.stat().st_size <= _LOG_LIMIT_BYTES:
            return
        # copied and cut, not renamed: the running child has the file open for appending
        path.with_name(path.name + ".1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        self._log_start = 0


class Supervisor:
    """Runs the children of some specs until told to stop.

    Use: ``start`` in a ``try``, then ``run`` until its event is set, then ``stop`` in ``finally``,
    all from the same thread.
    """

    def __init__(self, specs: Sequence[ChildSpec], policy: RestartPolicy | None = None) -> None:
        self.children = [Child(spec) for spec in sorted(specs, key=lambda spec: spec.stage)]
        self._policy = policy or RestartPolicy()
        self._settled = False
        self._next_trim = 0.0

    def start(self, stop: threading.Event) -> None:
        """Starts all stages, each when the one before is ready; returns early if ``stop`` is set.

        Raises:
            ChildFailedError: a child died ``quick_limit`` times in a row.
        """
        for stage in self._stages():
            for child in stage:
                self._start(child)
            self.wait_until(partial(_all_ready, stage), stop)
            if stop.is_set():
                return

    def wait_until(self, condition: Callable[[], bool], stop: threading.Event, timeout_s: float | None = None) -> bool:
        """Supervises until the condition holds; False if ``stop`` was set or the time ran out.

        Raises:
            ChildFailedError: as in :meth:`start`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not stop.is_set():
            self._tick()
            if condition():
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False
            stop.wait(_TICK_S)
        return False

    def run(self, stop: threading.Event) -> None:
        """Supervises until ``stop`` is set. From here on no child is given up: a failing one is
        tried again at the longest delay, with an error in the log."""
        self._settled = True
        while not stop.is_set():
            self._tick()
            stop.wait(_TICK_S)

    def stop(self, now: Callable[[], bool] = lambda: False) -> None:
        """Ends the children, the highest stage first, each stage together.

        SIGTERM first, SIGKILL after the child's time to stop, or at once when ``now()`` is true.
        """
        for stage in reversed(self._stages()):
            for child in stage:
                child.signal(signal.SIGTERM)
            begun = time.monotonic()
            for child in stage:
                self._await_end(child, begun, now)

    def child(self, name: str) -> Child:
        """The child of that name; KeyError if there is none."""
        return {child.spec.name: child for child in self.children}[name]

    def _stages(self) -> list[list[Child]]:
        return [list(stage) for _, stage in groupby(self.children, key=lambda child: child.spec.stage)]

    def _await_end(self, child: Child, begun: float, now: Callable[[], bool]) -> None:
        process = child.process
        if process is None:
            return
        while process.poll() is None:
            if now() or time.monotonic() - begun > child.spec.stop_timeout_s:
                if not now():
                    logger.warning("%s did not end in %g s: killing it", child.spec.name, child.spec.stop_timeout_s)
                process.kill()
                process.wait()
            time.sleep(0.02)
        child.process = None

    def _tick(self) -> None:
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._on_death(child)
            elif child.process is None and child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._start(child)
                if child.process is not None:
                    logger.info("%s started again (process %s)", child.spec.name, child.pid)
        if time.monotonic() >= self._next_trim:
            self._next_trim = time.monotonic() + 60
            for child in self.children:
                child.trim_log()

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except (OSError, subprocess.SubprocessError) as error:  # no memory, too many processes, no such program
            self._schedule(child, f"could not be started: {error}", quick=True)

    def _on_death(self, child: Child) -> None:
        assert child.process is not None
        ending = _ending(child.process.returncode)
        child.process = None
        self._schedule(child, ending, quick=child.uptime_s < self._policy.quick_s)

    def _schedule(self, child: Child, ending: str, quick: bool) -> None:
        name = child.spec.name
        child.quick_deaths = child.quick_deaths + 1 if quick else 0
        delay = self._policy.delay_s(child.quick_deaths)
        if child.quick_deaths >= self._policy.quick_limit:
            message = (
                f"{name} {ending}, {child.quick_deaths} times in a row right after its start; "
                f"the end of {child.spec.log_path}:\n{child.log_tail()}"
            )
            if not self._settled:
                raise ChildFailedError(message)
            delay = self._policy.max_delay_s
            logger.error("%s\nnext try in %g s", message, delay)
        else:
            logger.warning("%s %s: starting it again in %g s", name, ending, delay)
        child.restart_at = time.monotonic() + delay


def _all_ready(children: Sequence[Child]) -> bool:
    return all(child.process is not None and (child.spec.ready is None or child.spec.ready()) for child in children)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-returncode, f'signal {-returncode}')}"


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """For ``preexec_fn``: the child gets the signal when the thread that started it is gone.

    None where the system can't do that (it is Linux's PR_SET_PDEATHSIG).
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def arrange() -> None:
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)  # the parent is already gone

    return arrange

"""Keep child processes running: start them in stages, restart those that exit, stop them in order.

On Linux the kernel kills a child when the thread that started it ends (even by kill -9), so use a Supervisor from one
thread only.
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
_HANG_CHECK_EVERY_S = 1.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
if _LIBC is not None:
    _LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_LOG_LIMIT_BYTES = 20 * 1024 * 1024


class ChildFailedError(RuntimeError):
    """A child exits after each start; the message ends with the tail of its log."""


@dataclass(frozen=True)
class ChildSpec:
    """A process to run.

    Attributes:
        stage: lower stages start first and stop last.
        ready: polled until true before the next stage starts; must return within about a second.
        pass_fds: file descriptors that the child inherits.
        stop_timeout_s: time between SIGTERM and SIGKILL.
        last_beat: returns the time of a process's last heartbeat by its id; None if there is none or it is unknown.
            Polled once a second. A child whose value stays the same for `hang_s` is killed.
        on_crash: called with the process id of a child that ended by itself.
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
    last_beat: Callable[[int], float | None] | None = None
    hang_s: float = 8.0
    on_crash: Callable[[int], None] | None = None


@dataclass(frozen=True)
class RestartPolicy:
    """Delays before a child is restarted.

    A death within ``quick_s`` of the start is quick. After the n-th quick death in a row the delay is
    first_delay_s * 2**(n-1), at most max_delay_s; after any other death it is first_delay_s.
    """

    first_delay_s: float = 0.25
    max_delay_s: float = 10.0
    quick_s: float = 10.0
    quick_limit: int = 5

    def delay_s(self, quick_deaths: int) -> float:
        """Return the seconds to wait before the next start."""
        return min(self.first_delay_s * 2.0 ** max(0, min(quick_deaths, 32) - 1), self.max_delay_s)


class Child:
    """A child process and its history."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.quick_deaths = 0
        self.started_at = 0.0
        self.restart_at: float | None = None
        self._log_start = 0
        self._beat: float | None = None
        self._beat_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self.process.pid if self.process else None

    def start(self) -> None:
        """Start the process with its output appended to the log. Raises OSError, subprocess.SubprocessError."""
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
                start_new_session=True,  # Ctrl-C in the terminal reaches only the supervisor
                preexec_fn=end_with_parent(),
            )
        self.starts += 1
        self.started_at, self.restart_at = time.monotonic(), None

    def hangs(self) -> bool:
        """Return whether the running child's last heartbeat has not changed for `hang_s`."""
        if self.process is None or self.spec.last_beat is None:
            return False
        beat, now = self.spec.last_beat(self.process.pid), time.monotonic()
        if beat is None or beat != self._beat:
            self._beat, self._beat_at = beat, now
        return now - self._beat_at > self.spec.hang_s

    def log_tail(self) -> str:
        """Return the last lines of the current or last run's output."""
        try:
            with self.spec.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(min(self._log_start, size), size - 16_384))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no output)"
        return "\n".join(text.splitlines()[-20:]) or "(no output)"

    def trim_log(self) -> None:
        """Move a log that is too large to ``<name>.log.1``; one older file is kept."""
        path = self.spec.log_path
        if not path.exists() or path.stat().st_size <= _LOG_LIMIT_BYTES:
            return
        # copy and truncate, as the running child has the file open for appending
        path.with_name(path.name + ".1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        self._log_start = 0


class Supervisor:
    """A group of child processes: ``start`` and ``run`` in a ``try``, ``stop`` in its ``finally``, in one thread."""

    def __init__(self, specs: Sequence[ChildSpec], policy: RestartPolicy | None = None) -> None:
        self.children = [Child(spec) for spec in sorted(specs, key=lambda spec: spec.stage)]
        self._policy = policy or RestartPolicy()
        self._settled = False
        self._next_trim = self._next_hang_check = 0.0

    def start(self, stop: threading.Event) -> None:
        """Start all stages, each when the previous one is ready; return early if ``stop`` is set.

        Raises:
            ChildFailedError: a child exited quickly ``quick_limit`` times in a row.
        """
        for stage in self._stages():
            for child in stage:
                self._start(child)
            if not self.wait_until(partial(_are_ready, stage), stop):
                return

    def wait_until(self, condition: Callable[[], bool], stop: threading.Event, timeout_s: float | None = None) -> bool:
        """Supervise until the condition holds; return False if ``stop`` is set or the time is over.

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
        """Supervise until ``stop`` is set; retry a child that keeps failing at the longest delay."""
        self._settled = True
        self.wait_until(lambda: False, stop)

    def stop(self, now: Callable[[], bool] = lambda: False) -> None:
        """Stop the children, the highest stage first.

        Each gets SIGTERM, and SIGKILL after its time to stop or as soon as ``now()`` is true.
        """
        for stage in reversed(self._stages()):
            for child in stage:
                if child.process is not None:
                    child.process.terminate()  # does nothing once it has ended
            started = time.monotonic()
            for child in stage:
                if child.process is not None:
                    _await_end(child.process, child.spec, started, now)
                    child.process = None

    def child(self, name: str) -> Child:
        """Return the child of that name. Raises KeyError."""
        return {child.spec.name: child for child in self.children}[name]

    def _stages(self) -> list[list[Child]]:
        return [list(stage) for _, stage in groupby(self.children, key=lambda child: child.spec.stage)]

    def _tick(self) -> None:
        for child in self.children:
            if child.process is not None and (returncode := child.process.poll()) is not None:
                pid, child.process = child.process.pid, None
                if child.spec.on_crash:
                    child.spec.on_crash(pid)
                is_quick = time.monotonic() - child.started_at < self._policy.quick_s
                self._schedule_restart(child, _describe_exit(returncode), is_quick)
            elif child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._start(child)
                if child.process is not None:
                    logger.info("restarted child: name=%s pid=%s", child.spec.name, child.pid)
        if time.monotonic() >= self._next_hang_check:
            self._next_hang_check = time.monotonic() + _HANG_CHECK_EVERY_S
            for child in filter(Child.hangs, self.children):
                logger.warning("killing a child that hangs: name=%s pid=%s", child.spec.name, child.pid)
                if child.process is not None:
                    child.process.kill()
        if time.monotonic() >= self._next_trim:
            self._next_trim = time.monotonic() + 60
            for child in self.children:
                child.trim_log()

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except (OSError, subprocess.SubprocessError) as error:  # out of memory, too many processes, no such program
            self._schedule_restart(child, f"could not be started: {error}", quick=True)

    def _schedule_restart(self, child: Child, ending: str, quick: bool) -> None:
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
            logger.error("%s\nnext attempt in %g s", message, delay)
        else:
            logger.warning("%s %s; restarting it in %g s", name, ending, delay)
        child.restart_at = time.monotonic() + delay


def _await_end(process: subprocess.Popen[bytes], spec: ChildSpec, started: float, now: Callable[[], bool]) -> None:
    while process.poll() is None and not now():
        if time.monotonic() - started > spec.stop_timeout_s:
            logger.warning("killing a child that did not stop: name=%s timeout_s=%g", spec.name, spec.stop_timeout_s)
            break
        time.sleep(0.02)
    process.kill()  # does nothing once it has ended
    process.wait()


def _are_ready(children: Sequence[Child]) -> bool:
    return all(child.process is not None and (child.spec.ready is None or child.spec.ready()) for child in children)


def _describe_exit(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-returncode, f'signal {-returncode}')}"


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """Return a ``preexec_fn`` that sends the child this signal when the thread that started it ends.

    None on other systems than Linux, which lack PR_SET_PDEATHSIG.
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def set_death_signal() -> None:
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)  # the parent is already gone

    return set_death_signal

"""`ppl up` as a child process of the demo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.stack.supervisor import end_with_parent

_PORT = 8000
_STOP_S = 60.0


class DemoError(RuntimeError):
    """The demo can't continue; the message says why."""


@dataclass(frozen=True)
class DemoStack:
    """A running `ppl up`."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def serve(self) -> None:
        """Wait for the stack, which ends only if something is wrong. Raises DemoError when it does."""
        self.process.wait()
        raise DemoError(f"the stack ended unexpectedly:\n{_read_tail(self.log)}")


@contextmanager
def start_stack(folder: Path) -> Iterator[DemoStack]:
    """Run the platform with its data in a folder until the end of the context; Ctrl-C while it stops kills it.

    Raises:
        DemoError: it could not be started; the message has the last lines of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "stack.log"
    command = [sys.executable, "-P", "-m", "service.cli", "up", "--json", "--host", "127.0.0.1"]
    command += ["--port", str(_PORT if _is_free(_PORT) else 0), "--data-root", str(folder / "data")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 the command is our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PPL_API_KEYS": ""},  # no keys on the loopback address
            start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the stack
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise DemoError(f"the stack could not be started:\n{_read_tail(log_path)}")
        yield DemoStack(process, log_path, str(json.loads(line)["url"]))
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()  # its children are killed with it
            process.wait()
        process.stdout.close()


def _read_tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

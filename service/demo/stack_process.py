"""`ppl up` as a child process of the demo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from service.stack.supervisor import end_with_parent

_STOP_S = 60.0


class DemoError(RuntimeError):
    """The demo can't continue; the message says why."""


class DemoStack:
    """The platform with its data in a folder, running from construction to the end of the context.

    Raises:
        DemoError: it could not be started; the message has the last lines of its log.
    """

    def __init__(self, folder: Path, preferred_port: int = 8000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "stack.log"
        port = preferred_port if _is_free(preferred_port) else 0
        command = [sys.executable, "-P", "-m", "service.cli", "up", "--json", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--data-root", str(folder / "data")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 the command is our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PPL_API_KEYS": ""},  # no keys on the loopback address
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the stack
                preexec_fn=end_with_parent(signal.SIGTERM),
            )
        try:
            self.url = self._read_address()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DemoStack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def serve(self) -> None:
        """Wait for the stack, which ends only if something is wrong. Raises DemoError when it does."""
        self._process.wait()
        raise DemoError(f"the stack ended unexpectedly:\n{self._log_tail()}")

    def close(self) -> None:
        """Stop the stack and its processes; Ctrl-C meanwhile kills them."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self._process.kill()  # its children die with it
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _read_address(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise DemoError(f"the stack could not be started:\n{self._log_tail()}")
        return str(json.loads(line)["url"])

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

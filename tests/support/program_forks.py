"""Start our own programs in milliseconds: forks of a template that has imported what they import.

The programs are modules that read what may crash them, each in a process of its own: they decode a video, draw on one,
read labels. To start Python and import takes longer than what the tests give them to read. A fork is to the tests what
a started process is: a child of their own process, with its arguments, environment, streams and working directory. It
runs the module as `python -m` does and ends with Python's own shutdown.

What a test says about the start, or about memory from the start on, needs a process with its own Python: the fixture
``own_python`` gives it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = {
    "service.contract.media.video_decoder": ("service.contract.media.motion",),
    "service.estimates.video_overlay": (),
    "service.training.label_check": (),
    "model.scoring.label_hdf5": ("h5py",),
}
"""Modules that start as programs, and what they import later."""

START = subprocess._fork_exec  # type: ignore[attr-defined]
_ROOT = Path(__file__).resolve().parents[2]
# read by Python and by libraries as they start
_READ_AT_START = ("LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON")
_CLONE_PARENT = 0x8000  # the fork is a child of the template's parent, which waits for it and kills it
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None


class _Template:
    """A process that has imported a program and forks itself for each order."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.support.program_forks", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": os.pathsep.join([str(_ROOT), environment.get("PYTHONPATH", "")])},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, order: dict[str, Any], streams: Sequence[int]) -> int:
        """Return the id of a new process that has these standard streams."""
        with self._lock:
            data = json.dumps(order).encode()
            socket.send_fds(self._socket, [len(data).to_bytes(4, "big")], streams)
            self._socket.sendall(data)
            return int.from_bytes(_receive(self._socket, 4), "big")

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@contextmanager
def fork_programs() -> Iterator[None]:
    """Start the programs of PROGRAMS as forks during the block, on kernels that we know how to ask for them."""
    if _CLONE is None:
        yield
        return
    templates: dict[tuple[object, ...], _Template] = {}
    lock = threading.Lock()

    def start(
        arguments: Sequence[str], executables: Any, close_fds: bool, pass_fds: Any, cwd: Any, env: Any, *rest: Any
    ) -> int:
        stdin, _, _, stdout, _, stderr, _, _, _, new_session, group, gid, gids, uid, umask, prepare, *_ = rest
        is_plain = close_fds and len(pass_fds) == 1 and (group, gid, gids, uid, umask, prepare) == _PLAIN
        begin, module = list(arguments[:3]), arguments[3] if len(arguments) > 3 else None
        if begin != [sys.executable, "-P", "-m"] or module not in PROGRAMS or not is_plain:
            return int(START(arguments, executables, close_fds, pass_fds, cwd, env, *rest))
        items = [os.fsdecode(item).split("=", 1) for item in env] if env is not None else os.environ.items()
        environment = dict(items)
        key = module, *sorted(item for item in environment.items() if item[0].startswith(_READ_AT_START))
        with lock:
            if key not in templates:
                templates[key] = _Template(module, environment)
        order = {
            "arguments": list(arguments[4:]),
            "environment": environment,
            "cwd": os.fspath(cwd or os.getcwd()),
            "new_session": bool(new_session),
        }
        # without a stream of its own it has that of the tests
        streams = [own if given < 0 else given for own, given in enumerate((stdin, stdout, stderr))]
        return templates[key].fork(order, streams)

    subprocess._fork_exec = start  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess._fork_exec = START  # type: ignore[attr-defined]
        for template in templates.values():
            template.close()


_PLAIN = (-1, None, None, None, -1, None)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the other end has closed")
        data += part
    return bytes(data)


def _next_order(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each order: the fork returns it with its streams, the template answers, and returns None at the end."""
    while True:
        size, streams, *_ = socket.recv_fds(connection, 4, 3)
        if not size:
            return None
        data = _receive(connection, int.from_bytes(size, "big"))
        pid = _fork_sibling()
        if pid == 0:
            return json.loads(data), streams
        for stream in streams:
            os.close(stream)
        connection.sendall(pid.to_bytes(4, "big"))


def _fork_sibling() -> int:
    """Do as os.fork does, but for the parent of the fork."""
    python, kernel = ctypes.pythonapi, ctypes.PyDLL(None, use_errno=True)
    kernel.syscall.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid = int(kernel.syscall(*map(ctypes.c_long, (_CLONE or 0, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))))
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "no fork")
    return pid


def _become(order: dict[str, Any], streams: list[int]) -> None:
    if order["new_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])


def main() -> None:
    module, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    for name in (module, *PROGRAMS[module]):
        importlib.import_module(name)
    del sys.modules[module]  # each fork runs it as its main module
    gc.collect()
    gc.freeze()
    order = _next_order(connection)
    if order is None:
        return
    connection.close()
    _become(*order)
    sys.argv = [module, *order[0]["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

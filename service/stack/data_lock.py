"""A file lock that allows one ``ppl up`` per data root and records its holder.

Not the package filelock (4.3.1): its release calls ``flock(LOCK_UN)``, which also frees the lock that the embedded
server inherits, and its descriptor, which the server must inherit, is private.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

_GRACE_S = 3.0


class DataRootInUseError(RuntimeError):
    """Another stack holds the data root; the message says which."""


class DataRootLock(AbstractContextManager["DataRootLock"]):
    """A lock on ``<data root>/stack.lock``, held from construction to :meth:`release`.

    The lock belongs to the open file: a child that inherits ``fd`` keeps it after its parent crashed. The embedded
    server inherits it, so no second server ever writes to a file that an orphaned one still has open.

    Raises:
        DataRootInUseError: the lock is still held after ``grace_s``, the time that the children of a killed stack
            may take to end.
        OSError: the data root can't be written, or its file system has no locks.
    """

    def __init__(self, data_root: Path, grace_s: float = _GRACE_S) -> None:
        data_root.mkdir(parents=True, exist_ok=True)
        self.path = data_root / "stack.lock"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._acquire(data_root, grace_s)
        except BaseException:
            os.close(self.fd)
            raise
        self.describe(pid=os.getpid())

    def describe(self, **facts: Any) -> None:
        """Record facts on the holder, for the error message of the next ``ppl up``."""
        text = json.dumps(facts).encode()
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        """Release the lock unless a child still holds it; the file stays."""
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _acquire(self, data_root: Path, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._read_holder()
                if _is_alive(holder.get("pid")) or time.monotonic() > deadline:
                    raise DataRootInUseError(_describe_conflict(data_root, holder)) from None
                time.sleep(0.05)

    def _read_holder(self) -> dict[str, Any]:
        try:
            facts = json.loads(os.pread(self.fd, 4096, 0))
        except ValueError:  # it is being written
            return {}
        return facts if isinstance(facts, dict) else {}


def _describe_conflict(data_root: Path, holder: dict[str, Any]) -> str:
    pid, url, valkey = holder.get("pid"), holder.get("url"), _read_live_pid(holder.get("valkey_pid_file"))
    if pid and not _is_alive(pid) and valkey:
        return (
            f"{data_root} is held by the Valkey server (process {valkey}) that an earlier `ppl up` "
            f"(process {pid}, gone) left running: end it with `kill {valkey}`"
        )
    process = f" (process {pid}{f', {url}' if url else ''})" if pid else ""
    return f"{data_root} is in use by another `ppl up`{process}: stop it, or choose another folder with --data-root"


def _read_live_pid(pid_file: Any) -> int | None:
    with suppress(OSError, ValueError):
        pid = int(Path(str(pid_file)).read_text())
        return pid if _is_alive(pid) else None
    return None


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # it belongs to another user
        return True
    except (ProcessLookupError, TypeError):  # TypeError: no pid was recorded
        return False
    return True

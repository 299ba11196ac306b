"""One ``ppl up`` for one data root: a file lock that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_GRACE_S = 3.0


class DataRootInUseError(RuntimeError):
    """Another stack holds the data root; the message says which."""


class DataRootLock:
    """Holds ``<data root>/stack.lock`` from construction to :meth:`release`.

    The lock belongs to the open file: a child that inherits ``fd`` keeps it after its parent is
    gone. The embedded server does, so that no second server ever writes to a file that an orphan
    still has open.

    Raises:
        DataRootInUseError: somebody holds it, and still does a few seconds later (the children
            of a stack that was killed take a moment to go).
        OSError: the data root can't be written, or its file system knows no locks.
    """

    def __init__(self, data_root: Path, grace_s: float = _GRACE_S) -> None:
        data_root.mkdir(parents=True, exist_ok=True)
        self.path = data_root / "stack.lock"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(data_root, grace_s)
        except BaseException:
            os.close(self.fd)
            raise
        self.describe(pid=os.getpid())

    def describe(self, **facts: Any) -> None:
        """Writes into the file who holds it, for the message that the next one gets."""
        text = json.dumps(facts).encode()
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        """Gives the lock back; the file stays."""
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> DataRootLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _take(self, data_root: Path, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
                if _alive(holder.get("pid")) or time.monotonic() > deadline:
                    raise DataRootInUseError(_explain(data_root, holder)) from None
                time.sleep(0.05)

    def _holder(self) -> dict[str, Any]:
        try:
            facts = json.loads(os.pread(self.fd, 4096, 0))
        except ValueError:  # just being written
            return {}
        return facts if isinstance(facts, dict) else {}


def _explain(data_root: Path, holder: dict[str, Any]) -> str:
    pid, url, valkey = holder.get("pid"), holder.get("url"), _orphan(holder.get("valkey_pid_file"))
    if pid and not _alive(pid) and valkey:
        return (
            f"{data_root} is held by the Valkey server (process {valkey}) that an earlier `ppl up` "
            f"(process {pid}, gone) left behind: end it with `kill {valkey}`"
        )
    who = f" (process {pid}{f', {url}' if url else ''})" if pid else ""
    return f"{data_root} is in use by another `ppl up`{who}: end that one, or choose another folder with --data-root"


def _orphan(pid_file: Any) -> int | None:
    try:
        pid = int(Path(str(pid_file)).read_text())
    except (OSError, ValueError):
        return None
    return pid if _alive(pid) else None


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

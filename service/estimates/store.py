"""Estimates in the background, each a folder of files below the data root.

estimates/<id>/record.json     the request and its status
estimates/<id>/pictures/<n>    the pictures as uploaded, or the one video; deleted at the end
estimates/<id>/lines           outcomes of pictures in order of completion, a line of JSON each
estimates/<id>/result          the response, once it succeeded
estimates/<id>/errors          problems of pictures without a pose, if the response has no place for them
estimates/<id>/cancel          exists once the owner cancelled it
estimates/<id>/.lock           locked by the gateway that works on it; the system frees it if that crashes
estimates/waiting/<id>         exists while it has not ended
estimates/.submit.lock         locked while the limits are checked for one more
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from service.contract.durable_files import folder_names, hold_lock, sync, write_json
from service.contract.errors import BadCursor, Conflict, StoreCorrupt, UnknownEstimate
from service.contract.jobs.job import JobError
from service.contract.quotas import PendingEstimate
from service.contract.routing import time_ordered_id
from service.estimates.schemas import BackgroundEstimate, EstimatePage, EstimateStatus

_ID = re.compile(r"[0-9a-f]{24}")


class EstimateRecord(BaseModel):
    """An estimate in the background with its request.

    Attributes:
        shown: what the API shows.
        fields: of the form, as sent.
        names: file names of the pictures.
        video: whether the one file is a video.
        size_bytes: of the files.
    """

    shown: BackgroundEstimate
    fields: dict[str, str]
    names: list[str]
    video: bool = False
    size_bytes: int = 0


def new_estimate_id() -> str:
    """Return 24 hex digits that sort by time of creation."""
    return time_ordered_id(24)


class EstimateStore:
    """The estimates below a data root. Blocking."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root / "estimates"
        self._waiting = self._root / "waiting"

    def folder(self, estimate_id: str) -> Path:
        """Return the folder of an estimate. Raises UnknownEstimate for an invalid id."""
        if not _ID.fullmatch(estimate_id):
            raise _unknown_error(estimate_id)
        return self._root / estimate_id

    def picture(self, estimate_id: str, index: int) -> Path:
        """Return the path of an uploaded picture; 0 is that of a video."""
        return self.folder(estimate_id) / "pictures" / f"{index:06d}"

    def lines(self, estimate_id: str) -> Path:
        """Return the path of the outcomes so far."""
        return self.folder(estimate_id) / "lines"

    def result(self, estimate_id: str) -> Path:
        """Return the path of the response."""
        return self.folder(estimate_id) / "result"

    def errors(self, estimate_id: str) -> Path:
        """Return the path of the problems of pictures without a pose."""
        return self.folder(estimate_id) / "errors"

    def create_folder(self, estimate_id: str) -> None:
        """Create the folder of the pictures."""
        (self.folder(estimate_id) / "pictures").mkdir(parents=True)

    def list_pending(self) -> list[PendingEstimate]:
        """Return owner and size of the estimates that have not ended."""
        found = []
        for estimate_id in self.list_waiting():
            with suppress(UnknownEstimate, StoreCorrupt):
                record = self.record(estimate_id)
                found.append(PendingEstimate(record.shown.created_by, record.size_bytes))
        return found

    def submit(self, record: EstimateRecord, check: Callable[[list[PendingEstimate]], None]) -> None:
        """Submit an estimate whose pictures are stored; all is on disk when this returns.

        Args:
            check: called with the pending estimates of all gateways while no other is submitted; its errors leave
                everything as it was.
        """
        folder = self.folder(record.shown.id)
        for path in (folder / "pictures").iterdir():
            sync(path)
        sync(folder / "pictures")
        with hold_lock(self._root / ".submit.lock"):
            check(self.list_pending())
            self.write(record)
            self._waiting.mkdir(parents=True, exist_ok=True)
            (self._waiting / record.shown.id).touch()
        sync(self._waiting)
        sync(self._root)

    def record(self, estimate_id: str) -> EstimateRecord:
        """Read an estimate. Raises UnknownEstimate, StoreCorrupt."""
        try:
            return EstimateRecord.model_validate_json((self.folder(estimate_id) / "record.json").read_bytes())
        except FileNotFoundError as error:
            raise _unknown_error(estimate_id) from error
        except ValidationError as error:
            raise StoreCorrupt(f"the record of estimate {estimate_id} can't be read") from error

    def write(self, record: EstimateRecord) -> None:
        """Write a record while holding its :meth:`claim`. Raises UnknownEstimate if it was deleted."""
        try:
            write_json(self.folder(record.shown.id) / "record.json", record.model_dump(mode="json"))
        except FileNotFoundError as error:
            raise _unknown_error(record.shown.id) from error

    def end(self, record: EstimateRecord, status: EstimateStatus, error: JobError | None = None) -> None:
        """Write the final status and delete the pictures, while holding the :meth:`claim`."""
        shown = record.shown
        shown.status, shown.error, shown.finished_at = status, error, datetime.now(UTC)
        if status is EstimateStatus.SUCCEEDED:
            shown.result_url = f"/estimates/{shown.id}/result"
        self.write(record)
        (self._waiting / shown.id).unlink(missing_ok=True)
        shutil.rmtree(self.folder(shown.id) / "pictures", ignore_errors=True)
        self.lines(shown.id).unlink(missing_ok=True)

    def list_waiting(self) -> list[str]:
        """Return the ids of estimates that have not ended, the oldest first. Cheap enough for every second."""
        try:
            return sorted(filter(_ID.fullmatch, (entry.name for entry in self._waiting.iterdir())))
        except FileNotFoundError:
            return []

    def owners(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Return the API key of each estimate that can be read."""
        found = {}
        for estimate_id in ids:
            with suppress(UnknownEstimate, StoreCorrupt, OSError):
                found[estimate_id] = self.record(estimate_id).shown.created_by
        return found

    @contextmanager
    def claim(self, estimate_id: str) -> Iterator[bool]:
        """Lock an estimate for the block. Yields False if another process holds it."""
        try:
            with hold_lock(self.folder(estimate_id) / ".lock", wait=False) as acquired:
                yield acquired
        except FileNotFoundError as error:
            if self.folder(estimate_id).exists():
                raise
            (self._waiting / estimate_id).unlink(missing_ok=True)
            raise _unknown_error(estimate_id) from error

    def cancel(self, estimate_id: str) -> EstimateRecord:
        """Cancel an estimate: at once if no gateway works on it, else by a file that its gateway checks.

        Raises:
            UnknownEstimate.
            Conflict: it has ended.
        """
        record = self.record(estimate_id)
        if record.shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has ended as {record.shown.status}; it can't be cancelled")
        (self.folder(estimate_id) / "cancel").touch()
        with self.claim(estimate_id) as acquired:
            if acquired:
                record = self.record(estimate_id)
                if not record.shown.status.ended:
                    self.end(record, EstimateStatus.CANCELLED)
        return record

    def is_cancelled(self, estimate_id: str) -> bool:
        """Return whether the owner cancelled it."""
        return (self.folder(estimate_id) / "cancel").exists()

    def remove(self, estimate_id: str) -> None:
        """Delete an estimate that ended. Raises UnknownEstimate, Conflict."""
        if not self.record(estimate_id).shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has not ended; cancel it first")
        self.discard(estimate_id)

    def discard(self, estimate_id: str) -> None:
        """Delete all files of an estimate. Idempotent."""
        shutil.rmtree(self.folder(estimate_id), ignore_errors=True)
        (self._waiting / estimate_id).unlink(missing_ok=True)

    def page(self, limit: int, cursor: str | None = None) -> EstimatePage:
        """Return a page of estimates, the newest first. Raises BadCursor."""
        if cursor is not None and not _ID.fullmatch(cursor):
            raise BadCursor(f"cursor {cursor[:80]!r} is not one of this list; send a next_cursor, or none")
        items: list[BackgroundEstimate] = []
        for estimate_id in sorted(self._ids(), reverse=True):
            if cursor is not None and estimate_id >= cursor:
                continue
            if len(items) == limit:
                return EstimatePage(items=items, next_cursor=items[-1].id)
            with suppress(UnknownEstimate):  # no record yet: it is being uploaded
                items.append(self.record(estimate_id).shown)
        return EstimatePage(items=items)

    def trim_results(self, max_bytes: int) -> list[str]:
        """Delete the oldest results until all have at most `max_bytes`; keep the newest. Return the deleted ids."""
        results = []
        for estimate_id in set(self._ids()) - set(self.list_waiting()):
            with suppress(FileNotFoundError):  # it failed, or was deleted meanwhile
                status = self.result(estimate_id).stat()
                results.append((status.st_mtime_ns, status.st_size, estimate_id))
        removed: list[str] = []
        total = 0
        for _, size, estimate_id in sorted(results, reverse=True):
            total += size
            if total > max_bytes and total > size:
                self.discard(estimate_id)
                removed.append(estimate_id)
        return removed

    def sweep(self, kept_s: float, stale_s: float) -> list[str]:
        """Delete estimates that ended long ago, and stale uploads of a crashed gateway. Returns the ids deleted."""
        removed = []
        for estimate_id in self._ids():
            try:
                shown = self.record(estimate_id).shown
            except UnknownEstimate:
                with suppress(FileNotFoundError):
                    if time.time() - _last_change(self.folder(estimate_id)) > stale_s:
                        self.discard(estimate_id)
                        removed.append(estimate_id)
                continue
            except StoreCorrupt:
                continue
            if shown.finished_at and (datetime.now(UTC) - shown.finished_at).total_seconds() > kept_s:
                self.discard(estimate_id)
                removed.append(estimate_id)
            elif not shown.status.ended and not (self._waiting / estimate_id).exists():
                (self._waiting / estimate_id).touch()  # the gateway crashed between writing the two
        return removed

    def _ids(self) -> list[str]:
        return list(filter(_ID.fullmatch, folder_names(self._root)))


def _last_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _unknown_error(estimate_id: str) -> UnknownEstimate:
    return UnknownEstimate(
        f"no estimate {estimate_id[:80]!r}; it or its old result may have been deleted; GET /estimates lists them"
    )

"""Estimates in the background, each a folder of files below the data root.

estimates/<id>/record.json     the request and its status
estimates/<id>/pictures/<n>    the pictures as uploaded, or the one video; deleted at the end
estimates/<id>/lines           outcomes of pictures in order of completion, a line of JSON each
estimates/<id>/result          the response, once it succeeded
estimates/<id>/errors          problems of pictures without a pose, if the response has no place for them
estimates/<id>/smoothed        as lines, with the smoothed keypoints; deleted at the end
estimates/<id>/raw             the response without smoothing, if it has no place for both
estimates/<id>/overlay         the video with its poses drawn
estimates/<id>/cancel          exists once the owner cancelled it
estimates/<id>/.lock           locked by the gateway that works on it; the system frees it if that crashes
estimates/requests/<key>       id of the estimate that a request with this Idempotency-Key created, by digest
estimates/waiting/<id>         exists while it has not ended
estimates/.submit.lock         locked while the limits are checked for one more
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from service.contract.durable_files import atomic_write, folder_names, hold_lock, sync, write_json
from service.contract.errors import BadCursor, Conflict, KeyReused, StoreCorrupt, UnknownEstimate
from service.contract.jobs.job import JobError
from service.contract.quotas import PendingEstimate
from service.http.multipart import seconds_since_change

from .schemas import BackgroundEstimate, EstimatePage, EstimateStatus

ID_DIGITS = 24
RESULTS = ("result", "errors", "raw", "overlay")
_ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")


class EstimateRecord(BaseModel):
    """An estimate in the background with its request.

    Attributes:
        shown: the document that the API returns.
        fields: the form's fields as sent.
        names: file names of the pictures.
        video: whether the one file is a video.
        size_bytes: size of the files.
        result_bytes: size of the results, once it succeeded.
        ended_as: number of its end, counted on; the clock may be set back.
        holder: token of the gateway that works on it, in an object store.
        cancelled: whether its owner cancelled it, in an object store.
        revision: differs each time that the record is written to an object store.
    """

    shown: BackgroundEstimate
    fields: dict[str, str]
    names: list[str]
    video: bool = False
    size_bytes: int = 0
    result_bytes: int | None = None
    ended_as: int | None = None
    holder: str = ""
    cancelled: bool = False
    revision: str = ""


class _Ended(NamedTuple):
    """An estimate that has ended, in the order of their ends."""

    number: int
    finished_at: datetime
    size_bytes: int


class ClaimLost(Conflict):
    """Another gateway works on the estimate by now."""


class EstimateStore:
    """The estimates below a data root. Blocking."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root / "estimates"
        self._waiting = self._root / "waiting"
        self._requests = self._root / "requests"
        self._ended: dict[str, _Ended] = {}

    def poll(self) -> None:
        """Follow the changes of other machines; there are none."""

    def renew(self) -> None:
        """Renew the claims of this process; there are no other machines that could take them over."""

    def complete(self, estimate_id: str) -> None:
        """Fetch all files of an estimate; they are here already."""

    def file(self, estimate_id: str, name: str) -> Path:
        """Return the path of a result, which may not exist. Raises UnknownEstimate for an invalid id."""
        return self.path(estimate_id, name)

    def path(self, estimate_id: str, *names: str) -> Path:
        """Return the path of an estimate's folder, or of a file in it. Raises UnknownEstimate for an invalid id."""
        if not _ID.fullmatch(estimate_id):
            raise unknown_error(estimate_id)
        return self._root.joinpath(estimate_id, *names)

    def picture(self, estimate_id: str, index: int) -> Path:
        """Return the path of an uploaded picture; 0 is that of a video."""
        return self.path(estimate_id, "pictures", f"{index:06d}")

    def pending(self, ids: Iterable[str] | None = None) -> dict[str, PendingEstimate]:
        """Return owner and size of the estimates that can be read, by default of all that have not ended."""
        found = {}
        for estimate_id in self.list_waiting() if ids is None else ids:
            with suppress(UnknownEstimate, StoreCorrupt, OSError):
                record = self._read(estimate_id)
                found[estimate_id] = PendingEstimate(record.shown.created_by, record.size_bytes)
        return found

    def submit(
        self,
        record: EstimateRecord,
        check: Callable[[Mapping[str, PendingEstimate]], None],
        request_key: str | None = None,
    ) -> EstimateRecord:
        """Submit an estimate whose pictures are stored, and return it; all is on disk when this returns.

        Args:
            check: called with the pending estimates of all gateways while no other is submitted; its errors leave
                everything as it was.
            request_key: digest that names the request; if the same request was submitted before, that estimate is
                returned and nothing changes.

        Raises:
            KeyReused: another request has this key.
        """
        key_file = self._requests / request_key if request_key else None
        pictures = self.path(record.shown.id, "pictures")
        for path in (*pictures.iterdir(), pictures):
            sync(path)
        with hold_lock(self._root / ".submit.lock"):
            if key_file and (earlier := self._find_request(key_file)):
                return check_same(earlier, record)
            check(self.pending())
            if key_file:  # before the record: a key without an estimate is free, an estimate without its key is doubled
                self._requests.mkdir(exist_ok=True)
                with atomic_write(key_file) as file:
                    file.write(record.shown.id.encode())
            self.write(record)
            self._mark_waiting(record.shown.id)
        sync(self._waiting)
        sync(self._root)
        return record

    def _mark_waiting(self, estimate_id: str) -> None:
        self._waiting.mkdir(parents=True, exist_ok=True)
        (self._waiting / estimate_id).touch()

    def _find_request(self, key_file: Path) -> EstimateRecord | None:
        try:
            return self.record(key_file.read_text())
        except (FileNotFoundError, UnknownEstimate):
            return None

    def record(self, estimate_id: str) -> EstimateRecord:
        """Read an estimate. Raises UnknownEstimate, StoreCorrupt."""
        return self._read(estimate_id)

    def _read(self, estimate_id: str) -> EstimateRecord:
        """Read an estimate that is here."""
        try:
            return parse_record(estimate_id, self.path(estimate_id, "record.json").read_bytes())
        except FileNotFoundError as error:
            raise unknown_error(estimate_id) from error

    def write(self, record: EstimateRecord) -> None:
        """Write a record while holding its :meth:`claim`. Raises UnknownEstimate if it was deleted."""
        try:
            write_json(self.path(record.shown.id, "record.json"), record.model_dump(mode="json"))
        except FileNotFoundError as error:
            raise unknown_error(record.shown.id) from error

    def end(self, record: EstimateRecord, status: EstimateStatus, error: JobError | None = None) -> None:
        """Write the final status and delete the pictures, while holding the :meth:`claim`.

        Without a result, the poses found so far are deleted first: they may be what has filled the disk.
        """
        shown = record.shown
        shown.status, shown.error, shown.finished_at = status, error, datetime.now(UTC)
        shown.result_url = f"/estimates/{shown.id}/result" if status is EstimateStatus.SUCCEEDED else None
        record.result_bytes = self._count_result_bytes(shown.id)
        record.ended_as = 1 + max((ended.number for ended in self._list_results().values()), default=0)
        if status is not EstimateStatus.SUCCEEDED:
            self._remove_poses(shown.id)
        self.write(record)
        self._remove_inputs(shown.id)

    def _remove_inputs(self, estimate_id: str) -> None:
        """Remove the files that an estimate no longer needs once it has ended."""
        (self._waiting / estimate_id).unlink(missing_ok=True)
        shutil.rmtree(self.path(estimate_id, "pictures"), ignore_errors=True)
        self._remove_poses(estimate_id)

    def _remove_poses(self, estimate_id: str) -> None:
        for name in ("lines", "smoothed"):
            self.path(estimate_id, name).unlink(missing_ok=True)

    def list_waiting(self) -> list[str]:
        """Return the ids of estimates that have not ended, the oldest first. Cheap enough for every second."""
        try:
            return sorted(filter(_ID.fullmatch, (entry.name for entry in self._waiting.iterdir())))
        except FileNotFoundError:
            return []

    def list_ended(self) -> list[str]:
        """Return the ids of estimates that have ended, without damaged ones."""
        ended = []
        for estimate_id in sorted(set(self._ids()) - set(self.list_waiting())):
            with suppress(UnknownEstimate, StoreCorrupt):  # it is being uploaded, or was deleted meanwhile
                if self._read(estimate_id).shown.status.ended:
                    ended.append(estimate_id)
        return ended

    @contextmanager
    def claim(self, estimate_id: str) -> Iterator[bool]:
        """Lock an estimate for the block. Yields False if another process holds it."""
        try:
            with hold_lock(self.path(estimate_id, ".lock"), wait=False) as acquired:
                yield acquired
        except FileNotFoundError as error:
            if self.path(estimate_id).exists():
                raise
            (self._waiting / estimate_id).unlink(missing_ok=True)
            raise unknown_error(estimate_id) from error

    def cancel(self, estimate_id: str) -> EstimateRecord:
        """Cancel an estimate: at once if no gateway works on it, else by a file that its gateway checks.

        Raises:
            UnknownEstimate.
            Conflict: it has ended.
        """
        record = self.record(estimate_id)
        if record.shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has ended as {record.shown.status}; it can't be cancelled")
        self.path(estimate_id, "cancel").touch()
        with self.claim(estimate_id) as acquired:
            if acquired:
                record = self.record(estimate_id)
                if not record.shown.status.ended:
                    self.end(record, EstimateStatus.CANCELLED)
        return record

    def is_cancelled(self, estimate_id: str) -> bool:
        """Return whether the owner cancelled it."""
        return self.path(estimate_id, "cancel").exists()

    def remove(self, estimate_id: str) -> None:
        """Delete an estimate that ended. Raises UnknownEstimate, Conflict."""
        if not self.record(estimate_id).shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has not ended; cancel it first")
        self.discard(estimate_id)

    def discard(self, estimate_id: str) -> None:
        """Delete all files of an estimate. Idempotent."""
        shutil.rmtree(self.path(estimate_id), ignore_errors=True)
        (self._waiting / estimate_id).unlink(missing_ok=True)

    def page(self, limit: int, cursor: str | None = None) -> EstimatePage:
        """Return a page of estimates, the newest first. Raises BadCursor."""
        if cursor is not None and not _ID.fullmatch(cursor):
            raise BadCursor(f"cursor {cursor[:80]!r} is not one of this list; send a next_cursor, or none")
        items: list[BackgroundEstimate] = []
        for estimate_id in sorted((name for name in self._ids() if cursor is None or name < cursor), reverse=True):
            if len(items) == limit:
                return EstimatePage(items=items, next_cursor=items[-1].id)
            with suppress(UnknownEstimate):  # no record yet: it is being uploaded
                items.append(self._read(estimate_id).shown)
        return EstimatePage(items=items)

    def trim_results(self, max_bytes: int) -> list[str]:
        """Delete the oldest results until all have at most `max_bytes`; keep the newest. Return the deleted ids."""
        results = [(ended, estimate_id) for estimate_id, ended in self._list_results().items() if ended.size_bytes]
        removed: list[str] = []
        total = 0
        for (*_, size), estimate_id in sorted(results, reverse=True):
            total += size
            if total > max_bytes and total > size:
                self.discard(estimate_id)
                removed.append(estimate_id)
        return removed

    def _list_results(self) -> dict[str, _Ended]:
        """Return the end and the size of all estimates that have ended; read each record once."""
        ids, ended = set(self._ids()) - set(self.list_waiting()), dict(self._ended)
        for estimate_id in ids - ended.keys():
            with suppress(UnknownEstimate, StoreCorrupt):  # being uploaded, or damaged: it must not keep the others
                record = self._read(estimate_id)
                if finished_at := record.shown.finished_at:
                    size = record.result_bytes
                    if size is None:  # an earlier release did not store it
                        size = self._count_result_bytes(estimate_id)
                    ended[estimate_id] = _Ended(record.ended_as or 0, finished_at, size)
        self._ended = {estimate_id: one for estimate_id, one in ended.items() if estimate_id in ids}
        return self._ended

    def _count_result_bytes(self, estimate_id: str) -> int:
        size = 0
        for name in RESULTS:
            with suppress(FileNotFoundError):
                size += self.path(estimate_id, name).stat().st_size
        return size

    def sweep(self, kept_s: float, stale_s: float, ages_s: Mapping[str, float] | None = None) -> list[str]:
        """Delete estimates that ended long ago, and stale uploads of a crashed gateway. Returns the ids deleted.

        Args:
            ages_s: seconds since estimates ended, for those that ended by another machine's clock.
        """
        removed = []
        with suppress(FileNotFoundError):
            for key_file in self._requests.iterdir():
                if seconds_since_change(key_file) > stale_s and not self._find_request(key_file):
                    key_file.unlink(missing_ok=True)
        for estimate_id in self._ids():
            try:
                shown = self._read(estimate_id).shown
                age_s = (datetime.now(UTC) - shown.finished_at).total_seconds() if shown.finished_at else 0.0
                is_old = shown.status.ended and (ages_s or {}).get(estimate_id, age_s) > kept_s
                if not shown.status.ended and not (self._waiting / estimate_id).exists():
                    self._mark_waiting(estimate_id)  # the gateway crashed between writing the two
            except UnknownEstimate:
                is_old = seconds_since_change(self.path(estimate_id)) > stale_s
            except StoreCorrupt:
                continue
            if is_old:
                self.discard(estimate_id)
                removed.append(estimate_id)
        return removed

    def _ids(self) -> list[str]:
        return list(filter(_ID.fullmatch, folder_names(self._root)))


def is_estimate_id(text: str) -> bool:
    """Return whether this is an id of an estimate, as far as its form says."""
    return _ID.fullmatch(text) is not None


def parse_record(estimate_id: str, data: bytes) -> EstimateRecord:
    """Parse a record. Raises StoreCorrupt."""
    try:
        return EstimateRecord.model_validate_json(data)
    except ValidationError as error:
        raise StoreCorrupt(f"the record of estimate {estimate_id} can't be read") from error


def check_same(earlier: EstimateRecord, record: EstimateRecord) -> EstimateRecord:
    """Return the earlier estimate if its request was the same. Raises KeyReused."""
    if any(getattr(earlier, name) != getattr(record, name) for name in ("fields", "names", "video", "size_bytes")):
        raise KeyReused(
            f"the Idempotency-Key was used by another request, which created estimate {earlier.shown.id}; send that "
            "request again, or use another key",
            extra={"estimate_id": earlier.shown.id},
        )
    return earlier


def unknown_error(estimate_id: str) -> UnknownEstimate:
    """Return the error of an estimate that does not exist."""
    return UnknownEstimate(
        f"no estimate {estimate_id[:80]!r}; it or its old result may have been deleted; GET /estimates lists them"
    )

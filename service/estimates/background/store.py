"""Estimates that are worked on in the background: all that is known of one is in its folder.

estimates/<id>/record.json     what was asked for, and what became of it
estimates/<id>/pictures/<n>    the pictures as they came, or the one video; gone once it has ended
estimates/<id>/lines           what came of each picture, in order of completion, a line of JSON each
estimates/<id>/result          the answer, once it succeeded
estimates/<id>/errors          why pictures gave no pose, where the answer has no place for it
estimates/<id>/cancel          its owner wants it stopped
estimates/<id>/.lock           held by the gateway that works on it; the system gives it back when that dies
waiting/<id>                   in the same folder: it has not ended
.submit.lock                   there as well: held while one is counted in
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

from service.contract.durable_files import folder_names, locked, sync, write_json
from service.contract.errors import BadCursor, Conflict, StoreCorrupt, UnknownEstimate
from service.contract.ids import time_ordered_id
from service.contract.jobs.job import JobError
from service.contract.quotas import PendingEstimate
from service.estimates.schemas import BackgroundEstimate, EstimatePage, EstimateStatus

_ID = re.compile(r"[0-9a-f]{24}")


class EstimateRecord(BaseModel):
    """One with what only the platform needs to know.

    Attributes:
        fields: of the form, as they came.
        names: of the pictures' files.
        video: whether the one file is a video.
        size_bytes: of the files.
    """

    shown: BackgroundEstimate
    fields: dict[str, str]
    names: list[str]
    video: bool = False
    size_bytes: int = 0


def new_estimate_id() -> str:
    """24 hex digits that sort by time of creation."""
    return time_ordered_id(24)


class EstimateFiles:
    """The estimates below a data root. Blocking: for threads."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root / "estimates"
        self._waiting = self._root / "waiting"

    def folder(self, estimate_id: str) -> Path:
        """estimates/<id>. Raises UnknownEstimate for what can't be an id."""
        if not _ID.fullmatch(estimate_id):
            raise _unknown(estimate_id)
        return self._root / estimate_id

    def picture(self, estimate_id: str, index: int) -> Path:
        """A picture as it came; of a video the only one, 0."""
        return self.folder(estimate_id) / "pictures" / f"{index:06d}"

    def lines(self, estimate_id: str) -> Path:
        """What came of its pictures so far."""
        return self.folder(estimate_id) / "lines"

    def result(self, estimate_id: str) -> Path:
        """The answer."""
        return self.folder(estimate_id) / "result"

    def errors(self, estimate_id: str) -> Path:
        """Why pictures gave no pose."""
        return self.folder(estimate_id) / "errors"

    def prepare(self, estimate_id: str) -> None:
        """Make the folder that the pictures go into."""
        (self.folder(estimate_id) / "pictures").mkdir(parents=True)

    def held(self) -> list[PendingEstimate]:
        """What those that wait take."""
        found = []
        for estimate_id in self.waiting():
            with suppress(UnknownEstimate, StoreCorrupt):
                record = self.record(estimate_id)
                found.append(PendingEstimate(record.shown.created_by, record.size_bytes))
        return found

    def submit(self, record: EstimateRecord, check: Callable[[list[PendingEstimate]], None]) -> None:
        """Have one worked on, whose pictures are there; on disk, with them, when this returns.

        Args:
            check: told what waits, by this and other gateways, while no other is submitted; what it raises leaves all
                as it is.
        """
        folder = self.folder(record.shown.id)
        for path in (folder / "pictures").iterdir():
            sync(path)
        sync(folder / "pictures")
        with locked(self._root / ".submit.lock"):
            check(self.held())
            self.write(record)
            self._waiting.mkdir(parents=True, exist_ok=True)
            (self._waiting / record.shown.id).touch()
        sync(self._waiting)
        sync(self._root)

    def record(self, estimate_id: str) -> EstimateRecord:
        """What is known of one. Raises UnknownEstimate, StoreCorrupt."""
        try:
            return EstimateRecord.model_validate_json((self.folder(estimate_id) / "record.json").read_bytes())
        except FileNotFoundError as error:
            raise _unknown(estimate_id) from error
        except ValidationError as error:
            raise StoreCorrupt(f"the record of estimate {estimate_id} can't be read") from error

    def write(self, record: EstimateRecord) -> None:
        """For whoever holds :meth:`working`. Raises UnknownEstimate where it was deleted meanwhile."""
        try:
            write_json(self.folder(record.shown.id) / "record.json", record.model_dump(mode="json"))
        except FileNotFoundError as error:
            raise _unknown(record.shown.id) from error

    def end(self, record: EstimateRecord, status: EstimateStatus, error: JobError | None = None) -> None:
        """Write its end, and let go of its pictures. For whoever holds :meth:`working`."""
        shown = record.shown
        shown.status, shown.error, shown.finished_at = status, error, datetime.now(UTC)
        if status is EstimateStatus.SUCCEEDED:
            shown.result_url = f"/estimates/{shown.id}/result"
        self.write(record)
        (self._waiting / shown.id).unlink(missing_ok=True)
        shutil.rmtree(self.folder(shown.id) / "pictures", ignore_errors=True)
        self.lines(shown.id).unlink(missing_ok=True)

    def waiting(self) -> list[str]:
        """Ids of those that have not ended, the oldest first. Cheap enough to ask every second."""
        return sorted(filter(_ID.fullmatch, folder_or_file_names(self._waiting)))

    def owners(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Which API key asked for each; those that are gone or can't be read are left out."""
        found = {}
        for estimate_id in ids:
            with suppress(UnknownEstimate, StoreCorrupt, OSError):
                found[estimate_id] = self.record(estimate_id).shown.created_by
        return found

    @contextmanager
    def working(self, estimate_id: str) -> Iterator[bool]:
        """Work on one in the block, unless another process does: then it is told False."""
        try:
            with locked(self.folder(estimate_id) / ".lock", wait=False) as mine:
                yield mine
        except FileNotFoundError as error:
            if self.folder(estimate_id).exists():
                raise
            (self._waiting / estimate_id).unlink(missing_ok=True)
            raise _unknown(estimate_id) from error

    def cancel(self, estimate_id: str) -> EstimateRecord:
        """Stop one: at once where nobody works on it, else by a sign that its gateway sees.

        Raises:
            UnknownEstimate.
            Conflict: it has ended.
        """
        record = self.record(estimate_id)
        if record.shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has ended as {record.shown.status}; there is nothing to stop")
        (self.folder(estimate_id) / "cancel").touch()
        with self.working(estimate_id) as mine:
            if mine:
                record = self.record(estimate_id)
                if not record.shown.status.ended:
                    self.end(record, EstimateStatus.CANCELLED)
        return record

    def cancelled(self, estimate_id: str) -> bool:
        """Whether its owner wants it stopped."""
        return (self.folder(estimate_id) / "cancel").exists()

    def remove(self, estimate_id: str) -> None:
        """Remove one that ended. Raises UnknownEstimate, Conflict."""
        if not self.record(estimate_id).shown.status.ended:
            raise Conflict(f"estimate {estimate_id} has not ended; cancel it first")
        self.discard(estimate_id)

    def discard(self, estimate_id: str) -> None:
        """Remove all of one's files; nothing to do where there are none."""
        shutil.rmtree(self.folder(estimate_id), ignore_errors=True)
        (self._waiting / estimate_id).unlink(missing_ok=True)

    def page(self, limit: int, cursor: str | None = None) -> EstimatePage:
        """Estimates, the newest first. Raises BadCursor."""
        if cursor is not None and not _ID.fullmatch(cursor):
            raise BadCursor(f"cursor {cursor[:80]!r} was not given out by this list")
        ids = sorted(filter(_ID.fullmatch, folder_names(self._root)), reverse=True)
        items: list[BackgroundEstimate] = []
        for estimate_id in ids:
            if cursor is not None and estimate_id >= cursor:
                continue
            if len(items) == limit:
                return EstimatePage(items=items, next_cursor=items[-1].id)
            with suppress(UnknownEstimate):  # one that is being sent has no record yet
                items.append(self.record(estimate_id).shown)
        return EstimatePage(items=items)

    def make_room(self, most_bytes: int) -> list[str]:
        """Remove the oldest of those that ended while the answers have more bytes than they may.

        Returns:
            The ids.
        """
        ended = []
        for estimate_id in set(filter(_ID.fullmatch, folder_names(self._root))) - set(self.waiting()):
            with suppress(FileNotFoundError):  # it failed, or was deleted meanwhile
                found = self.result(estimate_id).stat()
                ended.append((found.st_mtime_ns, found.st_size, estimate_id))
        removed: list[str] = []
        held = 0
        for _, size, estimate_id in sorted(ended, reverse=True):
            held += size
            if held > most_bytes and held > size:  # the newest is kept in any case
                self.discard(estimate_id)
                removed.append(estimate_id)
        return removed

    def sweep(self, kept_s: float, stale_s: float) -> list[str]:
        """Remove those that ended long ago, and what a gateway left that was killed in the middle of an upload.

        Returns:
            The ids.
        """
        removed = []
        for estimate_id in filter(_ID.fullmatch, folder_names(self._root)):
            try:
                shown = self.record(estimate_id).shown
            except UnknownEstimate:
                with suppress(FileNotFoundError):
                    if time.time() - _touched(self.folder(estimate_id)) > stale_s:
                        self.discard(estimate_id)
                        removed.append(estimate_id)
                continue
            except StoreCorrupt:
                continue
            if shown.finished_at and (datetime.now(UTC) - shown.finished_at).total_seconds() > kept_s:
                self.discard(estimate_id)
                removed.append(estimate_id)
            elif not shown.status.ended and not (self._waiting / estimate_id).exists():
                (self._waiting / estimate_id).touch()  # killed between the two
        return removed


def folder_or_file_names(folder: Path) -> list[str]:
    """Names of what lies in a folder, none where there is no such folder."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _unknown(estimate_id: str) -> UnknownEstimate:
    return UnknownEstimate(
        f"no estimate {estimate_id[:80]!r}; it may have been deleted, or ended so long ago that its answer is gone"
    )

"""Estimates in the background in an object store, with copies on the gateways' machines.

estimates/<id>.json          the record (see :mod:`.shared_records`)
estimate-files/<id>/…        pictures until it ends, the poses found so far, then the results (see SharedFolders)

A gateway claims an estimate by its token in the record, and rewrites the record every RENEW_EVERY_S. Another one may
claim it once it has seen the same record for CLAIM_TTL_S by its own monotonic clock: machines' clocks need not agree.
The copies have the layout of :mod:`service.estimates.store`; those of results come at their first use.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.durable_files import atomic_write, hold_lock
from service.contract.errors import Conflict, StoreCorrupt, StoreUnavailable, UnknownEstimate
from service.contract.jobs.job import JobError
from service.contract.objects import Objects, Replaced
from service.contract.quotas import PendingEstimate
from service.contract.settings import CommonSettings
from service.contract.shared_folders import SharedFolders
from service.estimates.schemas import EstimateStatus
from service.estimates.store import ClaimLost, EstimateRecord, EstimateStore, check_same
from service.runtime.secrets import read_or_create

from .shared_records import RecordCopies, Tag

log = logging.getLogger(__name__)

RENEW_EVERY_S = 4.0
CLAIM_TTL_S = 20.0
_SAVE_EVERY_S = 30.0
_SAVE_SHARE = 0.05  # of the time may be spent on sending the poses found so far
_FOUND = "found"  # a copy of the lines, as these grow while they are sent
_PRIVATE = ("record.json", "lines", "smoothed", "cancel", "overlay.part")


@dataclass
class _Claim:
    """A claim of this process.

    Attributes:
        status: as it was last sent.
        sent_at, save_at: when the record was sent, and when to send the poses found so far; monotonic.
    """

    holder: str
    status: EstimateStatus
    sent_at: float
    save_at: float


class SharedEstimates(RecordCopies):
    """The estimates in an object store. Methods raise StoreUnavailable too.

    What is read may be as old as the last :meth:`poll`; what is unknown is looked up at once.
    """

    def __init__(self, data_root: Path, objects: Objects) -> None:
        super().__init__(data_root, objects)
        self._files = SharedFolders(objects, "estimate-files", _PRIVATE)
        self._claims: dict[str, _Claim] = {}
        self._seen: dict[str, tuple[Tag, float]] = {}  # tags, and since when they are the same; monotonic
        self._polling = threading.Lock()

    def poll(self) -> None:
        """Let the copies of records follow the store, and send it estimates that are only here.

        Those are restored ones, and those from before PPL_STORE_URL was set.
        """
        with self._polling:
            here = {estimate_id: self._tag(estimate_id) for estimate_id in self._ids()}  # before the store is listed
            now, found = time.monotonic(), {estimate_id: tag for estimate_id, (tag, _) in self._list().items()}
            self._seen = {
                estimate_id: (tag, seen[1] if (seen := self._seen.get(estimate_id)) and seen[0] == tag else now)
                for estimate_id, tag in found.items()
            }
            for estimate_id, tag in found.items():
                if here.get(estimate_id) != tag:
                    self._try(self._pull, estimate_id)
            for estimate_id in here.keys() - found.keys():
                if here[estimate_id]:  # another machine removed it
                    super().discard(estimate_id)
                elif self.path(estimate_id, "record.json").exists():
                    self._try(self._adopt, estimate_id)

    def _try(self, action: Callable[[str], Any], estimate_id: str) -> None:
        """Do this unless the estimate is deleted meanwhile; a damaged one must not block the others."""
        try:
            action(estimate_id)
        except UnknownEstimate:
            pass
        except StoreCorrupt as error:
            log.error("estimate skipped: estimate=%s %s", estimate_id, error.detail)

    def _adopt(self, estimate_id: str) -> None:
        record = self._read(estimate_id)
        if self._tag(estimate_id) is None:  # otherwise it was submitted meanwhile
            with suppress(Replaced):  # sent by another process, or before a crash
                self._files.send(estimate_id, self.path(estimate_id))
            self._create(record)
            log.info("estimate sent to the object store: estimate=%s", estimate_id)

    def submit(
        self,
        record: EstimateRecord,
        check: Callable[[Mapping[str, PendingEstimate]], None],
        request_key: str | None = None,
    ) -> EstimateRecord:
        """As in a folder. Machines on which one is submitted at the same moment may exceed the limits by one each."""
        estimate_id = record.shown.id
        self._files.send(estimate_id, self.path(estimate_id))
        with hold_lock(self._root / ".submit.lock"):
            self.poll()
            if request_key and (earlier := self._find_submitted(request_key)):
                return check_same(earlier, record)
            check(self.pending())
            # before the record: a key without an estimate is free, an estimate without its key is doubled
            if request_key and (earlier := self._take_key(request_key, estimate_id)):
                return check_same(earlier, record)
            self._create(record)
            if request_key and (rival := self._find_rival(request_key, estimate_id)):
                return check_same(rival, record)
            self._mark_waiting(estimate_id)
        return record

    def write(self, record: EstimateRecord) -> None:
        """As in a folder. Other machines see another status at once, and progress when the claim is renewed.

        Raises ClaimLost if another gateway works on it by now.
        """
        claim = self._claims.get(record.shown.id)
        with self._locked(record.shown.id):
            if claim and claim.status is record.shown.status:
                self._check_holder(record.shown.id, record.holder)
                super().write(record)
            else:
                self._commit(record)

    def _check_holder(self, estimate_id: str, holder: str) -> None:
        if self._read(estimate_id).holder != holder:
            raise ClaimLost(f"another gateway works on estimate {estimate_id} by now")

    def _commit(self, record: EstimateRecord) -> None:
        """Write a record here and to the store; the caller has the lock. Raises ClaimLost."""
        estimate_id = record.shown.id
        while True:
            self._check_holder(estimate_id, record.holder)
            record.cancelled = self.is_cancelled(estimate_id)
            try:
                self._put(record, self._tag(estimate_id))
                break
            except Replaced:
                self._follow(estimate_id)
        if claim := self._claims.get(estimate_id):
            claim.status, claim.sent_at = record.shown.status, time.monotonic()

    @contextmanager
    def claim(self, estimate_id: str) -> Iterator[bool]:
        with super().claim(estimate_id) as is_free_here:
            claim = self._take(estimate_id) if is_free_here else None
            if claim is None:
                yield False
                return
            self._claims[estimate_id] = claim
            try:
                yield True
            finally:
                del self._claims[estimate_id]
                self._release(estimate_id, claim.holder)

    def _take(self, estimate_id: str) -> _Claim | None:
        """Claim an estimate that no process of this machine works on; None if another machine does."""
        machine = read_or_create(self._root / ".machine", lambda: secrets.token_hex(8))
        if not self._is_free(self.record(estimate_id), machine):
            return None
        with self._locked(estimate_id):
            record = self._follow(estimate_id)
            if not self._is_free(record, machine):
                return None
            record.holder = f"{machine}:{secrets.token_hex(8)}"
            try:
                self._put(record, self._tag(estimate_id))
            except Replaced:
                return None
        now = time.monotonic()
        return _Claim(record.holder, record.shown.status, now, now + _SAVE_EVERY_S)

    def _is_free(self, record: EstimateRecord, machine: str) -> bool:
        # what a process of this machine held, it left by a crash: it holds the file's lock no more
        if not record.holder or record.holder.startswith(f"{machine}:"):
            return True
        tag, since = self._seen.get(record.shown.id, (None, 0.0))
        return tag is not None and tag == self._tag(record.shown.id) and time.monotonic() - since > CLAIM_TTL_S

    def _release(self, estimate_id: str, holder: str) -> None:
        try:
            if self._read(estimate_id).shown.status.ended:
                return
            self._save(estimate_id)
            with self._locked(estimate_id):
                self._check_holder(estimate_id, holder)
                record = self._read(estimate_id)
                record.holder = ""
                self._put(record, self._tag(estimate_id))
        except (StoreUnavailable, UnknownEstimate, ClaimLost, Replaced) as error:  # it expires
            log.warning("claim not released: estimate=%s error=%s", estimate_id, type(error).__name__)

    def renew(self) -> None:
        """Renew the claims of this process, and send the poses found so far from time to time."""
        for estimate_id, claim in list(self._claims.items()):
            if time.monotonic() - claim.sent_at < RENEW_EVERY_S:
                continue
            try:
                with self._locked(estimate_id):
                    self._check_holder(estimate_id, claim.holder)
                    if estimate_id not in self._claims:  # released meanwhile
                        continue
                    self._commit(self._read(estimate_id))
                began = time.monotonic()
                if began >= claim.save_at:
                    self._save(estimate_id)
                    ended = time.monotonic()
                    claim.save_at = ended + max(_SAVE_EVERY_S, (ended - began) / _SAVE_SHARE)
            except (StoreUnavailable, UnknownEstimate, ClaimLost) as error:
                log.warning("claim not renewed: estimate=%s error=%s", estimate_id, type(error).__name__)

    def complete(self, estimate_id: str) -> None:
        """Get the pictures and the poses found so far here."""
        self._files.fetch(estimate_id, self.path(estimate_id))
        found, lines = self.path(estimate_id, _FOUND), self.path(estimate_id, "lines")
        # outcomes found here and elsewhere are of the same pictures: continue from more of them
        if found.exists() and (not lines.exists() or lines.stat().st_size < found.stat().st_size):
            shutil.copyfile(found, lines)

    def _save(self, estimate_id: str) -> None:
        """Send the poses found so far. Raises ClaimLost."""
        with suppress(FileNotFoundError), self.path(estimate_id, "lines").open("rb") as lines:
            with atomic_write(self.path(estimate_id, _FOUND)) as file:
                shutil.copyfileobj(lines, file)
            self._send(estimate_id)

    def _send(self, estimate_id: str) -> None:
        try:
            self._files.send(estimate_id, self.path(estimate_id))
        except Replaced as error:
            raise ClaimLost(f"another gateway works on estimate {estimate_id} by now") from error

    def file(self, estimate_id: str, name: str) -> Path:
        path = self.path(estimate_id, name)
        if not path.exists() and self.path(estimate_id).exists():
            self._files.fetch(estimate_id, self.path(estimate_id), (name,))
        return path

    def end(self, record: EstimateRecord, status: EstimateStatus, error: JobError | None = None) -> None:
        """As in a folder. The results are in the store before the record says so."""
        if status is EstimateStatus.SUCCEEDED:
            self._send(record.shown.id)
        super().end(record, status, error)
        if status is EstimateStatus.SUCCEEDED:
            self._send(record.shown.id)  # without the pictures
        else:
            self._files.remove(record.shown.id)

    def _remove_poses(self, estimate_id: str) -> None:
        super()._remove_poses(estimate_id)
        self.path(estimate_id, _FOUND).unlink(missing_ok=True)

    def cancel(self, estimate_id: str) -> EstimateRecord:
        self._pull(estimate_id)
        while True:
            with self._locked(estimate_id):
                record = self._follow(estimate_id)
                if record.shown.status.ended:
                    raise Conflict(f"estimate {estimate_id} has ended as {record.shown.status}; it can't be cancelled")
                record.cancelled = True
                with suppress(Replaced):
                    self._put(record, self._tag(estimate_id))
                    break
        return super().cancel(estimate_id)

    def remove(self, estimate_id: str) -> None:
        self._pull(estimate_id)  # it may have ended since the last poll
        super().remove(estimate_id)

    def discard(self, estimate_id: str) -> None:
        if self._tag(estimate_id) or self._files.is_copy(self.path(estimate_id)):  # otherwise nothing was sent
            self._delete(estimate_id)
            self._files.remove(estimate_id)
        super().discard(estimate_id)

    def sweep(self, kept_s: float, stale_s: float, ages_s: Mapping[str, float] | None = None) -> list[str]:
        """As in a folder, by the store's clock; removes also what submissions that failed left in the store."""
        records = self._list()
        now = self._objects.time() if records else 0.0
        # the last change of an ended one is its end
        removed = super().sweep(kept_s, stale_s, {name: now - changed_at for name, (_, changed_at) in records.items()})
        ages = self._files.seconds_since_change()  # before the records are listed
        records = self._list()
        for estimate_id, age_s in ages.items():
            if estimate_id not in records and age_s > stale_s:
                self._files.remove(estimate_id)
        self._sweep_keys(stale_s)
        return removed


def open_estimates(settings: CommonSettings) -> EstimateStore:
    """Return the estimates in PPL_STORE_URL, or those below the data root without it."""
    if settings.store_url is None:
        return EstimateStore(settings.data_root)
    return SharedEstimates(settings.data_root, Objects(settings.store_url))

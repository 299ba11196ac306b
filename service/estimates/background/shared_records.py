"""Records of estimates in an object store, with copies on the gateways' machines.

estimates/<id>.json             the record; replaced only as it was read
estimate-requests/<key>         id of the estimate that a request with this Idempotency-Key created

Below the data root, beside the files of :mod:`service.estimates.store`:

estimates/<id>/.tag.json        the record's tag in the object store, as the copy was last equal to it
estimates/<id>/.record.lock     locked while record and tag change
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic_core import from_json, to_json

from service.contract.durable_files import atomic_write, hold_lock
from service.contract.errors import StoreUnavailable, UnknownEstimate
from service.contract.objects import Objects, Replaced
from service.estimates.store import EstimateRecord, EstimateStore, is_estimate_id, parse_record, unknown_error

Tag = dict[str, str | None] | None

TAKEOVER_S = 2.0
_LOOK_EVERY_S = 0.02
_RECORDS, _REQUESTS = "estimates", "estimate-requests"
_TAG, _LOCK = ".tag.json", ".record.lock"


class RecordCopies(EstimateStore):
    """Copies of the records in an object store. Methods raise StoreUnavailable."""

    def __init__(self, data_root: Path, objects: Objects) -> None:
        super().__init__(data_root)
        self._objects = objects

    def record(self, estimate_id: str) -> EstimateRecord:
        with suppress(UnknownEstimate):
            return self._read(estimate_id)
        return self._pull(estimate_id)

    def _list(self) -> dict[str, tuple[Tag, float]]:
        """Return tag and time of the last change, by the store's clock, of all records in the store."""
        found = {}
        for name, tag, changed_at in self._objects.scan(_RECORDS):
            estimate_id = name.rpartition("/")[2].removesuffix(".json")
            if is_estimate_id(estimate_id):
                found[estimate_id] = tag, changed_at
        return found

    def _pull(self, estimate_id: str) -> EstimateRecord:
        """Let the copy of a record follow the store now. Raises UnknownEstimate, StoreCorrupt."""
        if not self.path(estimate_id).exists():  # leave no folder for an estimate that does not exist
            self._fetch_record(estimate_id)
            self.path(estimate_id).mkdir(parents=True, exist_ok=True)
        with self._locked(estimate_id):
            return self._follow(estimate_id)

    def _follow(self, estimate_id: str) -> EstimateRecord:
        """As :meth:`_pull`; the caller has the lock. A copy with the store's tag may be newer: it stays."""
        record, tag = self._fetch_record(estimate_id)
        if tag == self._tag(estimate_id):
            return self._read(estimate_id)
        self._keep(record, tag)
        if record.cancelled:
            self.path(estimate_id, "cancel").touch()
        if record.shown.status.ended:
            self._remove_inputs(estimate_id)
        else:
            self._mark_waiting(estimate_id)
        return record

    def _fetch_record(self, estimate_id: str) -> tuple[EstimateRecord, Tag]:
        try:
            data, tag = self._objects.read(_record(estimate_id))
        except FileNotFoundError as error:
            raise unknown_error(estimate_id) from error
        return parse_record(estimate_id, data), tag

    def _put(self, record: EstimateRecord, tag: Tag) -> None:
        """Replace a record in the store if it has this tag, then here. Raises Replaced."""
        record.revision = secrets.token_hex(4)  # S3 gives equal contents equal tags
        self._keep(record, self._objects.replace(_record(record.shown.id), record.model_dump_json().encode(), tag))

    def _create(self, record: EstimateRecord) -> None:
        """Add a record to the store unless it is there."""
        with self._locked(record.shown.id):
            try:
                self._put(record, None)
            except Replaced:  # by itself: an answer was lost, or the process crashed
                self._follow(record.shown.id)

    def _delete(self, estimate_id: str) -> None:
        self._objects.delete([_record(estimate_id)])

    def _keep(self, record: EstimateRecord, tag: Tag) -> None:
        EstimateStore.write(self, record)
        with atomic_write(self.path(record.shown.id, _TAG)) as file:
            file.write(to_json(tag))

    def _tag(self, estimate_id: str) -> Tag:
        """Return the tag of the copy; None if the record was never sent or fetched."""
        try:
            tag: Tag = from_json(self.path(estimate_id, _TAG).read_bytes())
            return tag
        except (FileNotFoundError, ValueError):
            return None

    @contextmanager
    def _locked(self, estimate_id: str) -> Iterator[None]:
        """Lock the copy of a record against the threads and processes of this machine. Raises UnknownEstimate."""
        try:
            lock = hold_lock(self.path(estimate_id, _LOCK))
            lock.__enter__()
        except FileNotFoundError as error:  # its folder is gone
            raise unknown_error(estimate_id) from error
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def _find_submitted(self, request_key: str) -> EstimateRecord | None:
        """Return the estimate that a request with this key submitted, if it still exists."""
        try:
            estimate_id = self._objects.read(_request(request_key))[0].decode()
        except FileNotFoundError:  # or it was submitted before PPL_STORE_URL was set
            return self._find_request(self._requests / request_key)
        with suppress(UnknownEstimate):
            return self._pull(estimate_id)
        return None

    def _take_key(self, request_key: str, estimate_id: str) -> EstimateRecord | None:
        """Let a key name an estimate; return the one that another gateway submits with it at the same moment.

        That one may still be on its way to the store. If it does not come for TAKEOVER_S, its gateway has crashed.
        """
        waited_for, since = "", 0.0
        while True:
            earlier_id, tag = self._read_key(request_key)
            if earlier_id and (earlier := self._find_submitted(request_key)):
                return earlier
            if earlier_id != waited_for:
                waited_for, since = earlier_id, time.monotonic()
            if earlier_id and time.monotonic() - since < TAKEOVER_S:
                time.sleep(_LOOK_EVERY_S)
                continue
            try:
                tag = self._objects.replace(_request(request_key), estimate_id.encode(), tag)
                if earlier_id:
                    with suppress(UnknownEstimate):  # its gateway was slow, and has not crashed
                        earlier = self._pull(earlier_id)
                        self._objects.replace(_request(request_key), earlier_id.encode(), tag)
                        return earlier
                return None
            except Replaced:
                continue

    def _find_rival(self, request_key: str, estimate_id: str) -> EstimateRecord | None:
        """Return the estimate that a key names, if another gateway took the key while this one was on its way.

        Raises StoreUnavailable if that one does not come.
        """
        since = time.monotonic()
        while time.monotonic() - since < 2 * TAKEOVER_S:
            named, _ = self._read_key(request_key)
            if named in ("", estimate_id):
                return None
            if rival := self._find_submitted(request_key):
                return rival
            time.sleep(_LOOK_EVERY_S)
        raise StoreUnavailable("another gateway took this Idempotency-Key and did not go on; send the request again")

    def _read_key(self, request_key: str) -> tuple[str, Tag]:
        try:
            data, tag = self._objects.read(_request(request_key))
        except FileNotFoundError:
            return "", None
        return data.decode(), tag

    def _sweep_keys(self, stale_s: float) -> None:
        """Remove keys of estimates that do not exist, if they were written longer ago by the store's clock."""
        written_at = {name: at for name, _, at in self._objects.scan(_REQUESTS)}
        now = self._objects.time() if written_at else 0.0
        keys = [name for name, at in written_at.items() if now - at > stale_s]
        self._objects.delete([name for name in keys if not self._find_submitted(name.rpartition("/")[2])])


def _record(estimate_id: str) -> str:
    return f"{_RECORDS}/{estimate_id}.json"


def _request(request_key: str) -> str:
    return f"{_REQUESTS}/{request_key}"

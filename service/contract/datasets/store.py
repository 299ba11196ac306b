"""Datasets on disk.

datasets/<id>/dataset.json      DatasetRecord; written once
datasets/<id>/archive           the upload, or the uploaded pictures packed into one archive
datasets/<id>/labels            if labels were uploaded
datasets/<id>/boxes             if boxes were uploaded
datasets/<id>/findings.json     Findings; missing until a worker has begun the inspection
datasets/<id>/contact-sheet     a JPEG, once the inspection is complete
datasets/<id>/.lock             held by the process that inspects
datasets/.lock                  held while a dataset is added or removed

Datasets are added and removed by renaming their folder, so a reader sees all of one or nothing.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partialmethod
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.contract.durable_files import folder_names, hold_lock, sync, write_json
from service.contract.errors import BadCursor, DatasetsFull, StoreCorrupt, UnknownDataset
from service.contract.objects import Replaced
from service.contract.settings import CommonSettings
from service.contract.shared_folders import SharedFolders

from .dataset import Dataset, DatasetPage, DatasetRecord, DatasetStatus, Findings

log = logging.getLogger(__name__)

RECORD = "dataset.json"
_SMALL = (RECORD, "findings.json", "contact-sheet")
_ID = re.compile(r"[0-9a-f]{24}")
_CURSOR = re.compile(r"[0-9]{1,15}-[0-9a-f]{24}")
_REMOVED = ".going-"

Shape = TypeVar("Shape", bound=BaseModel)


class DatasetFiles:
    """The datasets of a data root. With ``shared`` they are copies of those in an object store."""

    def __init__(self, data_root: Path, shared: SharedFolders | None = None) -> None:
        self.root, self._shared = data_root / "datasets", shared
        self._inspected: dict[str, int] = {}  # mtime of the findings of inspected datasets

    @classmethod
    def open(cls, settings: CommonSettings) -> DatasetFiles:
        """Return the datasets in PPL_STORE_URL, or those below the data root without it."""
        return cls(settings.data_root, SharedFolders.open(settings, "datasets"))

    def poll(self) -> None:
        """Let the copies follow the object store, without archives, labels and boxes."""
        if self._shared:
            self._shared.poll(self.root, self.ids(), _SMALL)

    def complete(self, dataset_id: str) -> None:
        """Get all of a dataset's files here."""
        if self._shared:
            self._shared.fetch(dataset_id, self.folder(dataset_id))

    def ids(self) -> list[str]:
        """Return the ids of the datasets that are here."""
        return list(filter(_ID.fullmatch, folder_names(self.root)))

    def folder(self, dataset_id: str) -> Path:
        """Return datasets/<id>. Raises UnknownDataset for an invalid id."""
        if not _ID.fullmatch(dataset_id):
            raise _unknown_error(dataset_id)
        return self.root / dataset_id

    def _path(self, dataset_id: str, name: str) -> Path:
        return self.folder(dataset_id) / name

    archive = partialmethod(_path, name="archive")
    labels = partialmethod(_path, name="labels")
    boxes = partialmethod(_path, name="boxes")
    sheet = partialmethod(_path, name="contact-sheet")
    _findings = partialmethod(_path, name="findings.json")

    def record(self, dataset_id: str) -> DatasetRecord:
        """Read a dataset's record. Raises UnknownDataset, StoreCorrupt."""
        path = self.folder(dataset_id) / RECORD
        if self._shared and not path.exists():  # it may be newer than the last poll
            self._shared.fetch(dataset_id, path.parent, _SMALL)
        try:
            return _read(DatasetRecord, path)
        except FileNotFoundError as error:
            raise _unknown_error(dataset_id) from error

    def findings(self, dataset_id: str) -> Findings:
        """Read a dataset's findings; empty ones before the inspection. Raises StoreCorrupt."""
        try:
            return _read(Findings, self._findings(dataset_id))
        except FileNotFoundError:
            return Findings()

    def write_findings(self, dataset_id: str, findings: Findings) -> None:
        """Write findings while holding :meth:`inspecting`. Raises UnknownDataset if it was deleted meanwhile."""
        try:
            write_json(self._findings(dataset_id), findings.model_dump(mode="json"))
            self._send(dataset_id)
        except FileNotFoundError as error:
            raise _unknown_error(dataset_id) from error

    def read_sheet(self, dataset_id: str) -> bytes:
        """Read the contact sheet of a ready dataset. Raises UnknownDataset if it was deleted meanwhile."""
        try:
            return self.sheet(dataset_id).read_bytes()
        except FileNotFoundError as error:
            raise _unknown_error(dataset_id) from error

    def get(self, dataset_id: str) -> Dataset:
        """Return a dataset as the API shows it. Raises UnknownDataset."""
        return Dataset.of(self.record(dataset_id), self.findings(dataset_id))

    def page(self, limit: int, cursor: str | None = None) -> DatasetPage:
        """Return datasets, the newest first. Raises BadCursor.

        Args:
            cursor: ``next_cursor`` of the page before; its dataset may be deleted by now.
        """
        before = None
        if cursor is not None:
            if not _CURSOR.fullmatch(cursor):
                raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
            created, _, last = cursor.partition("-")
            before = int(created), last
        records = sorted(self._records(), key=_sort_key, reverse=True)
        left = [record for record in records if before is None or _sort_key(record) < before]
        items = []
        for record in left[:limit]:
            with suppress(StoreCorrupt):  # as in _records
                items.append(Dataset.of(record, self.findings(record.id)))
        next_cursor = "-".join(map(str, _sort_key(left[limit - 1]))) if len(left) > limit else None
        return DatasetPage(items=items, next_cursor=next_cursor)

    def list_waiting(self) -> list[str]:
        """Return the ids of datasets to inspect, the oldest first. Cheap enough to call every second."""
        found = []
        for dataset_id in self.ids():
            written = 0  # as long as there are no findings
            with suppress(FileNotFoundError):
                written = self._findings(dataset_id).stat().st_mtime_ns
            if written and self._inspected.get(dataset_id) == written:
                continue
            try:
                status, record = self.findings(dataset_id).status, self.record(dataset_id)
            except UnknownDataset:  # deleted meanwhile
                continue
            except StoreCorrupt as error:  # it must not block the others
                if written:
                    log.error("dataset skipped: dataset=%s %s", dataset_id, error.detail)
                status = DatasetStatus.FAILED
            if status is DatasetStatus.INSPECTING:
                found.append(record)
            elif written:
                self._inspected[dataset_id] = written
        return [record.id for record in sorted(found, key=_sort_key)]

    def add(self, staged: Path, record: DatasetRecord, max_bytes: int) -> bool:
        """Move a folder with all files of a dataset to its place, and return True, unless the dataset exists.

        An existing dataset whose inspection failed is inspected again. Raises DatasetsFull.

        Args:
            staged: folder on the data root's disk; stays unchanged if the dataset exists.
            max_bytes: limit for all datasets together.
        """
        final = self.folder(record.id)
        is_shared = self._shared is None or self._shared.fetch(record.id, final, _SMALL)
        self.root.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.root / ".lock"):
            if not is_shared and final.exists():  # from before PPL_STORE_URL was set: the store has no such dataset
                shutil.rmtree(final)
            if final.exists():
                if self.findings(record.id).status is DatasetStatus.FAILED:
                    self._findings(record.id).unlink(missing_ok=True)
                    self._send(record.id)
                return False
            self.check_room(record.size_bytes, max_bytes)
            if self._shared:
                try:
                    self._shared.send(record.id, staged)
                except Replaced:  # by the same dataset, through another gateway
                    return False
            try:
                os.rename(staged, final)
            except OSError:
                if self._shared is None or not final.exists():  # else poll has fetched it since it was sent
                    raise
            sync(self.root)
        return True

    def check_room(self, more_bytes: int, max_bytes: int) -> None:
        """Raise DatasetsFull unless `more_bytes` more fit."""
        used = sum(record.size_bytes for record in self._records())
        if used + more_bytes > max_bytes:
            raise DatasetsFull(
                f"the upload has {more_bytes} bytes and all datasets have {used}; together at most {max_bytes} are "
                "allowed. Delete some (DELETE /datasets/{id}), or raise PPL_DATASETS_MAX_BYTES",
                extra={"used_bytes": used, "max_bytes": max_bytes},
            )

    def remove(self, dataset_id: str) -> None:
        """Remove a dataset. Raises UnknownDataset."""
        gone = self.root / (_REMOVED + dataset_id)
        folder = self.folder(dataset_id)
        if self._shared:
            self._shared.remove(dataset_id)
        try:
            with hold_lock(self.root / ".lock"):
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(folder, gone)
        except FileNotFoundError as error:
            raise _unknown_error(dataset_id) from error
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Finish removals that a crash interrupted."""
        for name in folder_names(self.root):
            if name.startswith(_REMOVED):
                shutil.rmtree(self.root / name, ignore_errors=True)

    @contextmanager
    def lock_inspection(self, dataset_id: str) -> Iterator[bool]:
        """Hold the lock for inspecting a dataset; yield False if another process holds it."""
        try:
            with hold_lock(self.folder(dataset_id) / ".lock", wait=False) as mine:
                yield mine
        except FileNotFoundError as error:
            if self.folder(dataset_id).exists():
                raise
            raise _unknown_error(dataset_id) from error

    def _send(self, dataset_id: str) -> None:
        if self._shared:
            self._shared.send(dataset_id, self.folder(dataset_id))

    def _records(self) -> Iterator[DatasetRecord]:
        for dataset_id in self.ids():
            # deleted meanwhile, or damaged: it must not hide the others
            with suppress(UnknownDataset, StoreCorrupt):
                yield self.record(dataset_id)


def _read(model: type[Shape], path: Path) -> Shape:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StoreCorrupt(f"{path.name} of dataset {path.parent.name} can't be read") from error


def _sort_key(record: DatasetRecord) -> tuple[int, str]:
    return int(record.created_at.timestamp() * 1000), record.id


def _unknown_error(dataset_id: str) -> UnknownDataset:
    return UnknownDataset(f"no dataset {dataset_id[:80]!r}; GET /datasets lists them")

"""The data root on disk: datasets. What they are is told in :mod:`.datasets`.

datasets/<id>/dataset.json      DatasetRecord; written once
datasets/<id>/archive           the upload as it came, or the pictures packed into one
datasets/<id>/labels            where labels came along
datasets/<id>/findings.json     Findings; not there until a worker has begun to look
datasets/<id>/contact-sheet     a JPEG, once all was looked at
datasets/<id>/.lock             held by the process that looks
datasets/.lock                  held while a dataset comes or goes

A dataset appears by renaming its finished folder, and goes by renaming it away: a reader sees all of it or nothing.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.contract.durable_files import folder_names, locked, sync, write_json
from service.contract.errors import BadCursor, DatasetsFull, StoreCorrupt, UnknownDataset

from .dataset import Dataset, DatasetPage, DatasetRecord, DatasetStatus, Findings

log = logging.getLogger(__name__)

RECORD = "dataset.json"
_ID = re.compile(r"[0-9a-f]{24}")
_CURSOR = re.compile(r"[0-9]{1,15}-[0-9a-f]{24}")
_GOING = ".going-"

Shape = TypeVar("Shape", bound=BaseModel)


class DatasetFiles:
    """The datasets of a data root."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root / "datasets"
        self._settled: dict[str, int] = {}  # when the findings of those looked through were written

    @property
    def root(self) -> Path:
        """The folder of all datasets."""
        return self._root

    def folder(self, dataset_id: str) -> Path:
        """datasets/<id>. Raises UnknownDataset for what can't be an id."""
        if not _ID.fullmatch(dataset_id):
            raise _unknown(dataset_id)
        return self._root / dataset_id

    def archive(self, dataset_id: str) -> Path:
        """The upload."""
        return self.folder(dataset_id) / "archive"

    def labels(self, dataset_id: str) -> Path:
        """The labels, where any came along."""
        return self.folder(dataset_id) / "labels"

    def sheet(self, dataset_id: str) -> Path:
        """The contact sheet, once the dataset is ready."""
        return self.folder(dataset_id) / "contact-sheet"

    def record(self, dataset_id: str) -> DatasetRecord:
        """What is known from the start. Raises UnknownDataset."""
        try:
            return _read(DatasetRecord, self.folder(dataset_id) / RECORD)
        except FileNotFoundError as error:
            raise _unknown(dataset_id) from error

    def findings(self, dataset_id: str) -> Findings:
        """What a worker wrote; nothing yet where none has begun."""
        try:
            return _read(Findings, self._findings(dataset_id))
        except FileNotFoundError:
            return Findings()

    def write_findings(self, dataset_id: str, findings: Findings) -> None:
        """For whoever holds :meth:`inspecting`. Raises UnknownDataset where it was deleted meanwhile."""
        try:
            write_json(self._findings(dataset_id), findings.model_dump(mode="json"))
        except FileNotFoundError as error:
            raise _unknown(dataset_id) from error

    def read_sheet(self, dataset_id: str) -> bytes:
        """The contact sheet of a dataset that is ready. Raises UnknownDataset where it was deleted meanwhile."""
        try:
            return self.sheet(dataset_id).read_bytes()
        except FileNotFoundError as error:
            raise _unknown(dataset_id) from error

    def get(self, dataset_id: str) -> Dataset:
        """A dataset as the API shows it. Raises UnknownDataset."""
        return Dataset.of(self.record(dataset_id), self.findings(dataset_id))

    def page(self, limit: int, cursor: str | None = None) -> DatasetPage:
        """Datasets, the newest first.

        Args:
            cursor: ``next_cursor`` of the page before; its dataset may have gone meanwhile.

        Raises:
            BadCursor: not one of ours.
        """
        before = None
        if cursor is not None:
            if not _CURSOR.fullmatch(cursor):
                raise BadCursor(f"cursor {cursor[:80]!r} was not given out by this list")
            created, _, last = cursor.partition("-")
            before = int(created), last
        records = sorted(self._records(), key=_place, reverse=True)
        left = [record for record in records if before is None or _place(record) < before]
        items = []
        for record in left[:limit]:
            with suppress(StoreCorrupt):  # as in _records
                items.append(Dataset.of(record, self.findings(record.id)))
        more = "-".join(map(str, _place(left[limit - 1]))) if len(left) > limit else None
        return DatasetPage(items=items, next_cursor=more)

    def waiting(self) -> list[str]:
        """Ids of the datasets that are not looked through yet, the oldest first. Cheap enough to ask every second."""
        found = []
        for dataset_id in self._ids():
            stamp = self._stamp(dataset_id)
            if stamp is not None and self._settled.get(dataset_id) == stamp:
                continue
            try:
                waits = self.findings(dataset_id).status is DatasetStatus.INSPECTING
                record = self.record(dataset_id)
            except UnknownDataset:  # deleted meanwhile
                continue
            except StoreCorrupt as error:  # it must not hold up the others
                if stamp not in (None, self._settled.get(dataset_id)):
                    log.error("%s; it is passed over", error.detail)
                waits = False
            if waits:
                found.append(record)
            elif stamp is not None:
                self._settled[dataset_id] = stamp
        return [record.id for record in sorted(found, key=_place)]

    def add(self, staged: Path, record: DatasetRecord, max_bytes: int) -> bool:
        """Make a folder with all files of a dataset that dataset, unless it is there already.

        One that is there but failed is looked into again.

        Args:
            staged: on the data root's disk; it stays where the dataset was there.
            max_bytes: of all datasets.

        Returns:
            Whether it is new.

        Raises:
            DatasetsFull: all together would have more bytes than they may.
        """
        final = self.folder(record.id)
        self._root.mkdir(parents=True, exist_ok=True)
        with locked(self._root / ".lock"):
            if final.exists():
                if self.findings(record.id).status is DatasetStatus.FAILED:
                    self._findings(record.id).unlink(missing_ok=True)
                return False
            self.check_room(record.size_bytes, max_bytes)
            os.rename(staged, final)
            sync(self._root)
        return True

    def check_room(self, more_bytes: int, max_bytes: int) -> None:
        """Raises DatasetsFull where so many bytes more than there are would be too many."""
        used = sum(record.size_bytes for record in self._records())
        if used + more_bytes > max_bytes:
            raise DatasetsFull(
                f"the upload has {more_bytes} bytes and all datasets have {used}; together they may have {max_bytes}. "
                "Delete some (DELETE /datasets/{id}), or raise PPL_DATASETS_MAX_BYTES",
                extra={"used_bytes": used, "max_bytes": max_bytes},
            )

    def remove(self, dataset_id: str) -> None:
        """Remove a dataset for good. Raises UnknownDataset."""
        gone = self._root / (_GOING + dataset_id)
        folder = self.folder(dataset_id)
        try:
            with locked(self._root / ".lock"):
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(folder, gone)
        except FileNotFoundError as error:
            raise _unknown(dataset_id) from error
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a process left that was killed while it removed a dataset."""
        for name in folder_names(self._root):
            if name.startswith(_GOING):
                shutil.rmtree(self._root / name, ignore_errors=True)

    @contextmanager
    def inspecting(self, dataset_id: str) -> Iterator[bool]:
        """Look into a dataset in the block, unless another process does: then it is told False."""
        try:
            with locked(self.folder(dataset_id) / ".lock", wait=False) as mine:
                yield mine
        except FileNotFoundError as error:
            if self.folder(dataset_id).exists():
                raise
            raise _unknown(dataset_id) from error

    def _findings(self, dataset_id: str) -> Path:
        return self.folder(dataset_id) / "findings.json"

    def _stamp(self, dataset_id: str) -> int | None:
        try:
            return self._findings(dataset_id).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _ids(self) -> list[str]:
        return list(filter(_ID.fullmatch, folder_names(self._root)))

    def _records(self) -> Iterator[DatasetRecord]:
        for dataset_id in self._ids():
            # deleted meanwhile, or damaged: it must not hide the others, and asked for by itself it says what is wrong
            with suppress(UnknownDataset, StoreCorrupt):
                yield self.record(dataset_id)


def _read(model: type[Shape], path: Path) -> Shape:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StoreCorrupt(f"{path.name} of dataset {path.parent.name} can't be read") from error


def _place(record: DatasetRecord) -> tuple[int, str]:
    """Where a dataset stands in the list."""
    return int(record.created_at.timestamp() * 1000), record.id


def _unknown(dataset_id: str) -> UnknownDataset:
    return UnknownDataset(f"no dataset {dataset_id[:80]!r}; GET /datasets lists them")

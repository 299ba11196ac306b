"""Receive a dataset: read the form as it arrives, check what came, and store it unless it is there already."""

from __future__ import annotations

import zipfile
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from fastapi import Request

from service.contract.datasets.dataset import Dataset, DatasetRecord, dataset_id
from service.contract.datasets.store import RECORD
from service.contract.durable_files import sha256_of, write_json
from service.contract.errors import BadArchive, BadLabels, BodyTooLarge, DatasetInUse, TooManyImages, UnknownJob
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.contract.jobs.store import JobStore
from service.contract.media.archives import ArchiveLimits, check_archive
from service.contract.media.boxes import MAX_BOXES_BYTES, parse_box_file
from service.http.multipart import FileField, Form, InThread, Part, UploadFile, UploadFolder, Write, read_form
from service.http.problems import BadField

from .job_intake import TrainingParts
from .label_check import check_boxes, check_labels

MAX_FILES = 10_000  # in one form; more need an archive
MODES = ("", "auto", "stills", "clips")
_FIELDS = ("archive", "images", "labels", "boxes", "mode", "name")
_MAX_NAME_LENGTH = 100
_MAX_FILE_NAME_LENGTH = 200
_SEND = (
    "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE), "
    "or the files themselves in fields images (curl -F images=@FILE -F images=@FILE)"
)


async def accept_dataset(parts: TrainingParts, request: Request) -> tuple[Dataset, bool]:
    """Store the dataset of a request.

    Returns:
        The dataset, and whether it is new. An existing dataset is not changed; it keeps its name.

    Raises:
        BadArchive, UnsafeArchive, EncryptedArchive, ArchiveTooLarge, EmptyArchive, BadSetting: from check_archive.
        BadArchive, BadLabels, BadBoxes: nothing came, or an empty file.
        BadLabels: from check_labels.
        BodyTooLarge, TooManyImages: too many bytes or files came.
        BadField: a field is unknown or has an invalid value.
        DatasetsFull: all datasets together would exceed their limit.
    """
    settings, threads, datasets = parts.settings, parts.threads, parts.datasets
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdigit() else 0
    await threads.io(datasets.check_room, expected, settings.datasets_max_bytes)
    async with UploadFolder.create_in(datasets.root, threads.upload) as upload:
        archive = upload.file("archive", min(settings.archive_max_bytes, settings.datasets_max_bytes))
        labels = upload.file("labels", MAX_LABELS_BYTES)
        boxes = upload.file("boxes", MAX_BOXES_BYTES)
        form = await _read(request, upload, archive, labels, boxes, threads.upload)
        await upload.sync()
        record = await threads.upload(
            _describe, form, archive.path, labels.path, boxes.path, ArchiveLimits.of(settings)
        )
        is_new = await threads.upload(datasets.add, upload.path, record, settings.datasets_max_bytes)
    return await threads.io(datasets.get, record.id), is_new


def check_unused(jobs: JobStore, dataset_id: str) -> None:
    """Check that no unfinished job was started with a dataset. Blocking.

    Raises:
        DatasetInUse: at least one was.
        UnreadableJob: a job's record can't be read, so its dataset is not known.
    """
    ids = []
    for job_id in sorted(jobs.unfinished_ids()):
        with suppress(UnknownJob):  # deleted meanwhile
            used = jobs.get(job_id).dataset
            ids += [job_id] if used and used.id == dataset_id else []
    if ids:
        listed = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise DatasetInUse(
            f"dataset {dataset_id} is used by {listed}; wait until these jobs end, or cancel them",
            extra={"jobs": ids[:100]},
        )


async def _read(
    request: Request,
    upload: UploadFolder,
    archive: UploadFile,
    labels: UploadFile,
    boxes: UploadFile,
    in_thread: InThread,
) -> Form:
    """Read and check the form; the archive, or the archive that its files are packed into, is on disk afterwards."""
    await in_thread(lambda: upload.path.mkdir(parents=True, exist_ok=True))
    packer = ZipPacker(upload.path / "packed", in_thread, archive.max_bytes)
    too_many = TooManyImages(f"more than {MAX_FILES} files in the field images; pack them into an archive")
    images = FileField(MAX_FILES, too_many, sink_of=packer.sink)
    try:
        fields = {"archive": archive.field, "images": images, "labels": labels.field, "boxes": boxes.field}
        form = await read_form(request, fields)
        for part in form.files:
            if part.name == "images" and not part.size:  # packed as well, so that it is reported as unreadable
                await packer.sink(part)(b"")
    finally:
        await packer.close()
    for field in form.fields:
        if field not in _FIELDS:
            raise BadField(field, f"unknown field {field[:80]!r}; known are {', '.join(_FIELDS)}")
    has_archive = form.first("archive") is not None
    if has_archive and packer.names:
        raise BadField("images", "both an archive and images came; send one archive, or the files themselves")
    if not has_archive and not packer.names:
        raise BadArchive(f"no archive and no images came; {_SEND}")
    if has_archive and archive.is_empty:
        raise BadArchive(f"the archive is an empty file; {_SEND}")
    if form.first("labels") and labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    if form.first("boxes"):
        await in_thread(lambda: parse_box_file(b"" if boxes.is_empty else boxes.path.read_bytes()))
    form.fields = {field: text.strip() for field, text in form.fields.items()}
    mode, name = form.fields.get("mode", ""), form.fields.get("name", "")
    if mode not in MODES:
        raise BadField("mode", f"mode is {mode[:80]!r}; it must be stills, clips or auto")
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise BadField("name", f"name is {name[:80]!r}; expected at most {_MAX_NAME_LENGTH} printable characters")
    if packer.names:
        await in_thread(packer.path.replace, archive.path)
    return form


def _describe(form: Form, archive: Path, labels: Path, boxes: Path, limits: ArchiveLimits) -> DatasetRecord:
    """Check the archive and write the dataset's record beside it. Blocking."""
    summary = check_archive(archive, limits, form.fields.get("mode") or "auto")
    digest = sha256_of(archive)
    labels_digest, boxes_digest = (sha256_of(path) if path.exists() else None for path in (labels, boxes))
    sent = form.first("archive")
    file_name = PurePosixPath(sent.filename.replace("\\", "/")).name[-_MAX_FILE_NAME_LENGTH:] if sent else ""
    if labels_digest:
        check_labels(labels, archive, limits, summary.mode, file_name or None, boxes=boxes)
    if boxes_digest:
        check_boxes(boxes, archive, limits, file_name or None)
    record = DatasetRecord(
        id=dataset_id(digest, labels_digest, summary.mode, boxes_digest),
        name=form.fields.get("name") or file_name or None,
        digest=f"sha256:{digest}",
        mode=summary.mode,
        size_bytes=sum(path.stat().st_size for path in (archive, labels, boxes) if path.exists()),
        pictures=summary.pictures,
        videos=summary.videos,
        file_name=file_name or None,
        labels=labels_digest is not None,
        boxes=boxes_digest is not None,
        created_at=datetime.now(UTC),
    )
    write_json(archive.with_name(RECORD), record.model_dump(mode="json"))
    return record


class ZipPacker:
    """A zip of files in the order in which they arrive. The same files in the same order give the same bytes.

    Args:
        path: path of the zip; its folder must exist.
        max_bytes: limit for all files together.

    Attributes:
        names: names of the files in the zip.
    """

    def __init__(self, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self.names: set[str] = set()
        self._in_thread = in_thread
        self._max_bytes = max_bytes
        self._size = 0
        self._numbers: Counter[str] = Counter()  # the last suffix tried for a repeated name
        self._zip: zipfile.ZipFile | None = None
        self._part: Part | None = None
        self._member: IO[bytes] | None = None  # of the part

    def sink(self, part: Part) -> Write:
        """Return a function that takes the bytes of one file of a form."""
        return partial(self._in_thread, self._write, part)

    async def close(self) -> None:
        """Complete the zip, if any file arrived."""
        await self._in_thread(self._close)

    def _write(self, part: Part, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise BodyTooLarge(
                f"the files in the field 'images' have more than {self._max_bytes} bytes together; send fewer"
            )
        if self._member is None or self._part is not part:
            if self._member is not None:
                self._member.close()
            self._zip = self._zip or zipfile.ZipFile(self.path, "x", zipfile.ZIP_STORED)
            # without a time, so equal files give equal bytes; ZIP64, as the size is not known yet
            member = zipfile.ZipInfo(self._unique_name(part.filename))
            self._part, self._member = part, self._zip.open(member, "w", force_zip64=True)
        self._member.write(data)

    def _close(self) -> None:
        try:
            if self._member is not None:
                self._member.close()
        finally:
            if self._zip is not None:
                self._zip.close()

    def _unique_name(self, filename: str) -> str:
        """Return an unused member name that stays inside the archive's folder."""
        plain = filename.replace("\\", "/").replace("\0", "").replace(":", "_")[-_MAX_FILE_NAME_LENGTH:]
        name = "/".join(part for part in plain.split("/") if part not in ("", ".", "..")) or "file"
        path, unique = PurePosixPath(name), name
        while unique in self.names:
            self._numbers[name] += 1
            unique = str(path.with_name(f"{path.stem}-{self._numbers[name] + 1}{path.suffix}"))
        self.names.add(unique)
        return unique

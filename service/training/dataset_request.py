"""A form with a dataset, read as it arrives → checked, hashed, and there for good unless it was there already."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from fastapi import Request

from service.contract.datasets.dataset import DatasetRecord, dataset_id
from service.contract.datasets.store import RECORD, DatasetFiles
from service.contract.durable_files import write_json
from service.contract.errors import BadArchive, BadLabels, TooManyImages
from service.contract.jobs.files import MAX_LABELS_BYTES, JobFiles
from service.contract.media.archives import ArchiveLimits, check_archive
from service.http.multipart import FileField, Form, read_form
from service.http.problems import BadField
from service.runtime.threads import Threads

from .uploads import Intake
from .zip_packer import MOST_FILES, Packer

MODES = ("", "auto", "stills", "clips")
_FIELDS = ("archive", "images", "labels", "mode", "name")
_LONGEST_NAME = 100
_LONGEST_FILE_NAME = 200
_SEND = (
    "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE), "
    "or the files themselves in fields images (curl -F images=@FILE -F images=@FILE)"
)


@dataclass(frozen=True)
class DatasetRequest:
    """What a form says of its dataset; the files are on disk.

    Attributes:
        mode: "auto", "stills" or "clips".
        file_name: the archive's, where one came.
    """

    name: str | None
    mode: str
    file_name: str | None


async def read_dataset(request: Request, files: JobFiles, threads: Threads, intake: Intake) -> DatasetRequest:
    """The form; its archive, or the archive that its files were packed into, is on disk afterwards.

    Raises:
        BadArchive, BadLabels: nothing came, or an empty file.
        BodyTooLarge, TooManyImages: more than may come.
        BadField: an unknown field, or one that can't be what it is.
    """
    folder = await threads.upload(files.create, intake.job_id)
    packer = Packer(folder / "packed", threads.upload, intake.archive.max_bytes)
    fields = {
        "archive": FileField(1, lambda: _twice("archive"), intake.archive.write, intake.archive.max_bytes),
        "images": FileField(MOST_FILES, _too_many, sink_of=packer.sink),
        "labels": FileField(1, lambda: _twice("labels"), intake.labels.write, MAX_LABELS_BYTES),
    }
    try:
        form = await read_form(request, fields)
        for part in form.files:
            if part.name == "images" and not part.size:  # kept all the same, so that it is told to be empty
                await packer.sink(part)(b"")
        await packer.finish()
    finally:
        await packer.close()
    await intake.flush()
    wanted = _checked(form, intake, packer.count)
    if packer.count:
        await threads.upload(os.replace, packer.path, intake.archive.path)
    return wanted


def keep_dataset(
    files: JobFiles,
    datasets: DatasetFiles,
    limits: ArchiveLimits,
    max_bytes: int,
    intake: Intake,
    wanted: DatasetRequest,
) -> tuple[str, bool]:
    """Make a dataset of what came. Blocking.

    Args:
        max_bytes: of all datasets together.

    Returns:
        Its id, and whether it is new; one that was there is left as it is, its name too.

    Raises:
        BadArchive, UnsafeArchive, EncryptedArchive, ArchiveTooLarge, EmptyArchive, BadSetting: as check_archive does.
        DatasetsFull: all datasets together would have more bytes than they may.
    """
    archive, labels = intake.archive.path, intake.labels.path
    summary = check_archive(archive, limits, wanted.mode)
    hashed, labelled = _sha256(archive), _sha256(labels) if labels.exists() else None
    record = DatasetRecord(
        id=dataset_id(hashed, labelled, summary.mode),
        name=wanted.name or wanted.file_name,
        digest=f"sha256:{hashed}",
        mode=summary.mode,
        size_bytes=archive.stat().st_size + (labels.stat().st_size if labelled else 0),
        pictures=summary.pictures,
        videos=summary.videos,
        file_name=wanted.file_name,
        labels=labelled is not None,
        created_at=datetime.now(UTC),
    )
    folder = files.folder(intake.job_id)
    write_json(folder / RECORD, record.model_dump(mode="json"))
    return record.id, datasets.add(folder, record, max_bytes)


def _checked(form: Form, intake: Intake, packed: int) -> DatasetRequest:
    for field in form.fields:
        if field not in _FIELDS:
            raise BadField(field, f"unknown field {field[:80]!r}; known are {', '.join(_FIELDS)}")
    archive = form.first("archive")
    if archive and packed:
        raise BadField("images", "both an archive and images came; send one archive, or the files themselves")
    if archive is None and not packed:
        raise BadArchive(f"no archive and no images came; {_SEND}")
    if archive and intake.archive.is_empty:
        raise BadArchive(f"the archive is an empty file; {_SEND}")
    if form.first("labels") and intake.labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    mode, name = form.fields.get("mode", "").strip(), form.fields.get("name", "").strip()
    if mode not in MODES:
        raise BadField("mode", f"mode is {mode[:80]!r}; it must be stills, clips or auto")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise BadField("name", f"name is {name[:80]!r}; it may have {_LONGEST_NAME} printable characters")
    file_name = PurePosixPath(archive.filename.replace("\\", "/")).name[-_LONGEST_FILE_NAME:] if archive else ""
    return DatasetRequest(name or None, mode or "auto", file_name or None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_many() -> TooManyImages:
    return TooManyImages(f"more than {MOST_FILES} files in the field images; pack them into an archive")


def _twice(name: str) -> BadField:
    return BadField(name, f"more than one file came in the field {name}; send one")

"""An exported version → checked, member by member → a version of this server. Blocking; for threads.

Nothing of it is trusted: neither names nor sizes nor checksums, and no number before it was looked at. A version is
published only when all of it is what a training here would have written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from service.contract.durable_files import write_json
from service.contract.errors import ArchiveTooLarge, BadArchive, BadVersionFile, EncryptedArchive, UnsafeArchive
from service.contract.media.archive_members import ArchiveLimits, Member, detect_kind, iter_members
from service.contract.versions.additions import NAMES_FILE
from service.contract.versions.export_manifest import (
    FORMAT,
    MANIFEST,
    MAX_ADDITION_BYTES,
    MAX_JSON_BYTES,
    MAX_MEMBERS,
    OPTIONAL,
    REQUIRED,
    WEIGHTS,
    Manifest,
    is_member,
)
from service.contract.versions.store import ADDITIONS, VersionStore, check_category

from .import_checks import Checked, check_documents, check_weights

_EXPECTED = "expected a zip that GET /priors/{category}/versions/{version}/export gave"
_PART_BYTES = 2**20
_MANIFEST_BYTES = 2**20


def import_version(store: VersionStore, archive: Path, folder: Path, category: str, max_bytes: int) -> str:
    """Publish what an archive holds as a version of a category.

    Args:
        archive: the upload.
        folder: to unpack into; it does not exist, lies on the data root's disk, and is the caller's to remove.
        category: where it goes; that of its origin does not matter.
        max_bytes: of all files together, once unpacked.

    Returns:
        The version's name, that of its origin.

    Raises:
        BadVersionFile: no exported version, damaged, of a later release, or something in it is not what it must be.
        UnsafeArchive, EncryptedArchive, ArchiveTooLarge: as they say.
        VersionExists, NameTaken: the category has a version or an alias of its name.
    """
    check_category(category)
    limits = ArchiveLimits(MAX_MEMBERS + 1, max_bytes, float("inf"), _MANIFEST_BYTES)
    try:
        if detect_kind(archive) != "zip":
            raise BadVersionFile(f"the upload is no zip; {_EXPECTED}")
        manifest = _read_manifest(archive, limits)
        folder.mkdir()
        checked = _unpack(archive, folder, manifest, limits)
    except (UnsafeArchive, EncryptedArchive, ArchiveTooLarge):
        raise
    except BadArchive as error:
        raise BadVersionFile(f"the upload is damaged; {_EXPECTED}") from error
    write_json(folder / "version.json", checked.info_for(category, manifest))
    _stage_additions(folder / ADDITIONS, checked)
    store.publish(folder, category, checked.version)
    return checked.version


def _unpack(archive: Path, folder: Path, manifest: Manifest, limits: ArchiveLimits) -> Checked:
    documents: dict[str, Any] = {}
    for member in _listed(archive, limits, manifest):
        if member.name == WEIGHTS:
            _copy(member, folder / WEIGHTS, manifest)
            continue
        data = _read(member, manifest)
        documents[member.name] = _parse(member.name, data)
        if member.name in (*REQUIRED, *OPTIONAL):
            (folder / member.name).write_bytes(data)
    checked = check_documents(documents, manifest)
    check_weights(folder / WEIGHTS, checked.config)
    return checked


def _stage_additions(folder: Path, checked: Checked) -> None:
    """What users had added to the version, published with it."""
    if checked.names:
        folder.mkdir(parents=True)
        write_json(folder / NAMES_FILE, {"names": list(checked.names)})
    for found in checked.landmarks:
        (folder / "landmarks").mkdir(parents=True, exist_ok=True)
        write_json(folder / "landmarks" / f"{found.name}.json", found.model_dump(mode="json"))


def _read_manifest(archive: Path, limits: ArchiveLimits) -> Manifest:
    with closing(iter_members(archive, "zip", limits)) as listing:  # which keeps the zip open
        member = next((member for member in listing if member.name == MANIFEST), None)
        if member is None:
            raise BadVersionFile(f"the zip holds no {MANIFEST}; {_EXPECTED}")
        if member.size > _MANIFEST_BYTES:
            raise BadVersionFile(f"{MANIFEST} has {member.size} bytes; {_MANIFEST_BYTES} are allowed")
        content = _parse(MANIFEST, _bytes_of(member))
    found = content.get("format")
    if type(found) is int and found > FORMAT:
        raise BadVersionFile(f"the file is of format {found}; this release reads format {FORMAT}: use a later release")
    if found != FORMAT:
        raise BadVersionFile(f"{MANIFEST} says format {str(found)[:40]!r}; expected {FORMAT}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadVersionFile(f"{MANIFEST}: {where[:80]}: {fault['msg'][:200]}; {_EXPECTED}") from error
    strange = [name for name in manifest.files if not is_member(name)]
    lacking = [name for name in REQUIRED if name not in manifest.files]
    if strange or lacking:
        why = f"names {strange[0][:80]!r}, which is no part of a version" if strange else f"does not name {lacking[0]}"
        raise BadVersionFile(f"{MANIFEST} {why}; {_EXPECTED}")
    return manifest


def _listed(archive: Path, limits: ArchiveLimits, manifest: Manifest) -> Iterator[Member]:
    """The members that the manifest names, each once; all of them came in the end."""
    seen: set[str] = set()
    for member in iter_members(archive, "zip", limits):
        if member.name in seen:
            raise BadVersionFile(f"{member.name[:80]!r} is twice in the zip")
        seen.add(member.name)
        if member.name == MANIFEST:
            continue
        if member.name not in manifest.files:
            raise BadVersionFile(f"{member.name[:80]!r} is in the zip and not in its {MANIFEST}")
        yield member
    absent = sorted(manifest.files.keys() - seen)
    if absent:
        raise BadVersionFile(f"{absent[0][:80]!r} is in {MANIFEST} and not in the zip")


def _read(member: Member, manifest: Manifest) -> bytes:
    most = MAX_JSON_BYTES if member.name in (*REQUIRED, *OPTIONAL) else MAX_ADDITION_BYTES
    if member.size > most:
        raise BadVersionFile(f"{member.name} has {member.size} bytes; {most} are allowed")
    data = _bytes_of(member)
    _check_sum(member, manifest, len(data), hashlib.sha256(data).hexdigest())
    return data


def _copy(member: Member, to: Path, manifest: Manifest) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with member.open() as source, to.open("xb") as out:
            while size <= member.size and (part := source.read(_PART_BYTES)):
                size += len(part)
                digest.update(part)
                out.write(part)
    except OSError:  # no room
        raise
    except Exception as error:  # hostile bytes may make a reader raise anything
        raise BadVersionFile(f"{member.name} can't be unpacked ({str(error)[:100]}); {_EXPECTED}") from error
    _check_sum(member, manifest, size, digest.hexdigest())


def _bytes_of(member: Member) -> bytes:
    try:
        return member.read()
    except Exception as error:  # hostile bytes may make a reader raise anything
        raise BadVersionFile(f"{member.name} can't be unpacked ({str(error)[:100]}); {_EXPECTED}") from error


def _check_sum(member: Member, manifest: Manifest, size: int, digest: str) -> None:
    wanted = manifest.files[member.name]
    if size != wanted.size:
        raise BadVersionFile(f"{member.name} has {size} bytes and {MANIFEST} says {wanted.size}; export it again")
    if digest != wanted.sha256:
        raise BadVersionFile(f"{member.name} has another SHA-256 than {MANIFEST} says: it was damaged; export it again")


def _parse(name: str, data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} in it")

    try:
        value = json.loads(data, parse_constant=refuse)
        json.dumps(
            value, ensure_ascii=False, allow_nan=False
        ).encode()  # as it will be answered: no 1e999, no half letters
    except (ValueError, RecursionError) as error:
        raise BadVersionFile(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadVersionFile(f"{name} is not a JSON object")
    return value

"""Import an exported version: unpack and check its zip, and publish it. Blocking.

The zip is not trusted: neither names nor sizes, checksums or numbers. A version is published only if a training here
could have written all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from service.contract.durable_files import write_json
from service.contract.errors import ArchiveTooLarge, BadArchive, BadVersionFile, EncryptedArchive, UnsafeArchive
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members
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

from .import_checks import CheckedVersion, check_documents, check_weights, validate

_EXPECTED = "expected a zip from GET /priors/{category}/versions/{version}/export"
_CHUNK_BYTES = 2**20
_MAX_MANIFEST_BYTES = 2**20


def import_version(store: VersionStore, archive: Path, folder: Path, category: str, max_bytes: int) -> str:
    """Publish the version in a zip.

    Args:
        archive: the zip.
        folder: to unpack into; it must not exist yet, and lie on the data root's disk. The caller removes it.
        category: to publish in; it may differ from the category of its origin.
        max_bytes: limit for all unpacked files together.

    Returns:
        The version's name, the same as at its origin.

    Raises:
        BadVersionFile: the zip is not an exported version, is damaged, or comes from a later release.
        UnsafeArchive, EncryptedArchive, ArchiveTooLarge: from reading the zip.
        VersionExists, NameTaken: the category has a version or an alias of this name.
    """
    check_category(category)
    limits = ArchiveLimits(MAX_MEMBERS + 1, max_bytes, float("inf"), _MAX_MANIFEST_BYTES)
    try:
        if detect_kind(archive) != "zip":
            raise BadVersionFile(f"the upload is not a zip; {_EXPECTED}")
        manifest = _read_manifest(archive, limits)
        folder.mkdir()
        checked = _unpack(archive, folder, manifest, limits)
    except (UnsafeArchive, EncryptedArchive, ArchiveTooLarge):
        raise
    except BadArchive as error:
        raise BadVersionFile(f"the upload is damaged; {_EXPECTED}") from error
    write_json(folder / "version.json", checked.info_for(category, manifest))
    _write_additions(folder / ADDITIONS, checked)
    store.publish(folder, category, checked.version)
    return checked.version


def _read_manifest(archive: Path, limits: ArchiveLimits) -> Manifest:
    with closing(iter_members(archive, "zip", limits)) as listing:  # closing it closes the zip
        member = next((member for member in listing if member.name == MANIFEST), None)
        if member is None:
            raise BadVersionFile(f"the zip has no {MANIFEST}; {_EXPECTED}")
        if member.size > _MAX_MANIFEST_BYTES:
            raise BadVersionFile(f"{MANIFEST} has {member.size} bytes; {_MAX_MANIFEST_BYTES} are allowed")
        document = _parse_json(MANIFEST, b"".join(_chunks(member)))
    found = document.get("format")
    if type(found) is int and found > FORMAT:
        raise BadVersionFile(f"the file has format {found}; this release reads format {FORMAT}: use a later release")
    if found != FORMAT:
        raise BadVersionFile(f"{MANIFEST} has format {str(found)[:40]!r}; expected {FORMAT}")
    manifest = validate(Manifest, document, MANIFEST)
    unknown = [name for name in manifest.files if not is_member(name)]
    missing = [name for name in REQUIRED if name not in manifest.files]
    if unknown or missing:
        why = f"lists {unknown[0][:80]!r}, which no version has" if unknown else f"does not list {missing[0]}"
        raise BadVersionFile(f"{MANIFEST} {why}; {_EXPECTED}")
    return manifest


def _unpack(archive: Path, folder: Path, manifest: Manifest, limits: ArchiveLimits) -> CheckedVersion:
    documents: dict[str, Any] = {}
    for member in _listed_members(archive, limits, manifest):
        if member.name == WEIGHTS:
            _copy(member, folder / WEIGHTS, manifest)
            continue
        data = _read(member, manifest)
        documents[member.name] = _parse_json(member.name, data)
        if member.name in (*REQUIRED, *OPTIONAL):
            (folder / member.name).write_bytes(data)
    checked = check_documents(documents, manifest)
    check_weights(folder / WEIGHTS, checked.config)
    return checked


def _write_additions(folder: Path, checked: CheckedVersion) -> None:
    """Write the users' names and landmarks, which are published with the version."""
    if checked.names:
        folder.mkdir(parents=True)
        write_json(folder / NAMES_FILE, {"names": list(checked.names)})
    for landmarks in checked.landmarks:
        (folder / "landmarks").mkdir(parents=True, exist_ok=True)
        write_json(folder / "landmarks" / f"{landmarks.name}.json", landmarks.model_dump(mode="json"))


def _listed_members(archive: Path, limits: ArchiveLimits, manifest: Manifest) -> Iterator[Member]:
    """Yield the members that the manifest lists. Raise BadVersionFile for repeated, unlisted and missing ones."""
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
    missing = sorted(manifest.files.keys() - seen)
    if missing:
        raise BadVersionFile(f"{missing[0][:80]!r} is in {MANIFEST} and not in the zip")


def _read(member: Member, manifest: Manifest) -> bytes:
    max_bytes = MAX_JSON_BYTES if member.name in (*REQUIRED, *OPTIONAL) else MAX_ADDITION_BYTES
    if member.size > max_bytes:
        raise BadVersionFile(f"{member.name} has {member.size} bytes; {max_bytes} are allowed")
    data = b"".join(_chunks(member))
    _check_listed(member, manifest, len(data), hashlib.sha256(data).hexdigest())
    return data


def _copy(member: Member, path: Path, manifest: Manifest) -> None:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        for chunk in _chunks(member):
            size += len(chunk)
            digest.update(chunk)
            out.write(chunk)
    _check_listed(member, manifest, size, digest.hexdigest())


def _chunks(member: Member) -> Iterator[bytes]:
    """Yield a member's bytes, up to one chunk more than its size."""
    size = 0
    try:
        with member.open() as source:
            while size <= member.size and (chunk := source.read(_CHUNK_BYTES)):
                size += len(chunk)
                yield chunk
    except Exception as error:  # zipfile may raise anything for hostile bytes
        raise BadVersionFile(f"{member.name} can't be unpacked ({str(error)[:100]}); {_EXPECTED}") from error


def _check_listed(member: Member, manifest: Manifest, size: int, digest: str) -> None:
    listed = manifest.files[member.name]
    if size != listed.size:
        raise BadVersionFile(f"{member.name} has {size} bytes and {MANIFEST} says {listed.size}; export it again")
    if digest != listed.sha256:
        raise BadVersionFile(f"{member.name} has another SHA-256 than {MANIFEST} says: it was damaged; export it again")


def _parse_json(name: str, data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} in it")

    try:
        value = json.loads(data, parse_constant=refuse)
        # written as a response will be: refuses 1e999 and lone surrogates
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadVersionFile(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadVersionFile(f"{name} is not a JSON object")
    return value

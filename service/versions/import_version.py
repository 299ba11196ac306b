"""Import an exported version: unpack and check its zip, and publish it. Blocking.

The zip is not trusted: neither names nor sizes, checksums or numbers. A version is published only if a training here
could have written all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from service.contract.durable_files import is_disk_full, read_json, sha256_of, write_json
from service.contract.errors import (
    ArchiveTooLarge,
    BadArchive,
    BadVersionFile,
    EncryptedArchive,
    UnsafeArchive,
    VersionExists,
)
from service.contract.jobs.progress import timestamp
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members
from service.contract.versions.export_manifest import (
    FORMAT,
    MANIFEST,
    MAX_ADDITION_BYTES,
    MAX_JSON_BYTES,
    MAX_MEMBERS,
    OPTIONAL,
    REQUIRED,
    WEIGHTS,
    FileFacts,
    Manifest,
    is_member,
)
from service.contract.versions.store import ADDITIONS, VersionStore

from .import_checks import VERSION_FORMAT, check_agreement, check_documents, naming, parse_json, read_weights

_PARTS = (*REQUIRED, *OPTIONAL)
_EXPECTED = "expected a zip from GET /priors/{category}/versions/{version}/export"
_MAX_MANIFEST_BYTES = 2**20


def import_version(
    store: VersionStore, archive: Path, folder: Path, category: str, max_bytes: int, request: str | None = None
) -> tuple[str, bool]:
    """Publish the version in a zip.

    Args:
        archive: the zip.
        folder: to unpack into; it must not exist yet, and lie on the data root's disk. The caller removes it.
        category: to publish in; it may differ from the category of its origin.
        max_bytes: limit for all unpacked files together.
        request: names the request, if it may be sent again.

    Returns:
        The version's name, the same as at its origin, and whether the same request imported it before.

    Raises:
        BadVersionFile: the zip is not an exported version, is damaged, or comes from a later release.
        UnsafeArchive, EncryptedArchive, ArchiveTooLarge: from reading the zip.
        VersionExists, NameTaken: the category has a version or an alias of this name.
    """
    limits = ArchiveLimits(MAX_MEMBERS + 1, max_bytes, max_picture_bytes=_MAX_MANIFEST_BYTES)
    try:
        if detect_kind(archive) != "zip":
            raise BadVersionFile(f"the upload is not a zip; {_EXPECTED}")
        manifest = _read_manifest(archive, limits)
        _unpack(archive, folder, manifest, limits)
    except (UnsafeArchive, EncryptedArchive, ArchiveTooLarge):
        raise
    except BadArchive as error:
        raise BadVersionFile(f"the upload is damaged; {_EXPECTED}") from error
    documents = {
        name: parse_json(name, _path_of(folder, name).read_bytes()) for name in manifest.files if name != WEIGHTS
    }
    info, config = check_documents(documents, manifest)
    check_agreement(read_weights(folder / WEIGHTS, config), documents, config)
    published = {
        "format": VERSION_FORMAT,
        "category": category,
        **info.model_dump(exclude_none=True),
        "settings": config.to_dict(),
        "imported": {"from": manifest.category, "at": timestamp(), **({"request": request} if request else {})},
        "files": {name: manifest.files[name].sha256 for name in _PARTS[1:] if name in manifest.files},
    }
    write_json(folder / "version.json", published)
    try:
        store.publish(folder, category, info.version)
    except VersionExists:
        there = read_json(store.file(category, info.version, "version.json"))
        if request is None or there.get("imported", {}).get("request") != request:
            raise
        return info.version, True
    return info.version, False


def _read_manifest(archive: Path, limits: ArchiveLimits) -> Manifest:
    with closing(iter_members(archive, "zip", limits)) as listing:  # closing it closes the zip
        member = next((member for member in listing if member.name == MANIFEST), None)
        if member is None:
            raise BadVersionFile(f"the zip has no {MANIFEST}; {_EXPECTED}")
        if member.size > _MAX_MANIFEST_BYTES:
            raise BadVersionFile(f"{MANIFEST} has {member.size} bytes; {_MAX_MANIFEST_BYTES} are allowed")
        with _unpacking(member):
            data = member.read()
    document = parse_json(MANIFEST, data)
    found = document.get("format")
    if found != FORMAT:
        what_to_do = "use a later one" if type(found) is int and found > FORMAT else _EXPECTED
        raise BadVersionFile(f"{MANIFEST} has format {found!r:.40}; this release reads format {FORMAT}: {what_to_do}")
    with naming(MANIFEST):
        manifest = Manifest.model_validate(document)
    unknown = [name for name in manifest.files if not is_member(name)]
    missing = [name for name in REQUIRED if name not in manifest.files]
    if unknown or missing:
        why = f"lists {unknown[0][:80]!r}, which no version has" if unknown else f"does not list {missing[0]}"
        raise BadVersionFile(f"{MANIFEST} {why}; {_EXPECTED}")
    return manifest


def _unpack(archive: Path, folder: Path, manifest: Manifest, limits: ArchiveLimits) -> None:
    """Unpack the files that the manifest lists. Raise BadVersionFile for repeated, unlisted and missing ones."""
    seen: set[str] = set()
    for member in iter_members(archive, "zip", limits):
        if member.name in seen:
            raise BadVersionFile(f"{member.name[:80]!r} is twice in the zip")
        seen.add(member.name)
        if member.name == MANIFEST:
            continue
        if member.name not in manifest.files:
            raise BadVersionFile(f"{member.name[:80]!r} is in the zip and not in its {MANIFEST}")
        _copy(member, _path_of(folder, member.name), manifest.files[member.name])
    missing = sorted(manifest.files.keys() - seen)
    if missing:
        raise BadVersionFile(f"{missing[0][:80]!r} is in {MANIFEST} and not in the zip")


def _path_of(folder: Path, name: str) -> Path:
    """Return where :meth:`VersionStore.publish` expects a member: what users added lies apart."""
    return folder / name if name in _PARTS else folder / ADDITIONS / name


def _copy(member: Member, path: Path, listed: FileFacts) -> None:
    """Unpack a member, and compare it with the manifest."""
    max_bytes = MAX_JSON_BYTES if member.name in _PARTS else MAX_ADDITION_BYTES
    if member.name != WEIGHTS and member.size > max_bytes:
        raise BadVersionFile(f"{member.name} has {member.size} bytes; {max_bytes} are allowed")
    if member.size != listed.size:
        raise BadVersionFile(
            f"{member.name} has {member.size} bytes and {MANIFEST} says {listed.size}; export it again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unpacking(member):
        member.copy(path)
    if sha256_of(path) != listed.sha256:
        raise BadVersionFile(f"{member.name} has another SHA-256 than {MANIFEST} says: it was damaged; export it again")


@contextmanager
def _unpacking(member: Member) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile may raise anything for hostile bytes
        if is_disk_full(error):
            raise
        raise BadVersionFile(f"{member.name} can't be unpacked ({str(error)[:100]}); {_EXPECTED}") from error

"""A version on disk → one zip that streams, read a little at a time. Blocking; for threads."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from service.contract.errors import StoreCorrupt
from service.contract.versions.export_manifest import MANIFEST, NAMES, OPTIONAL, REQUIRED, FileFacts, Manifest

from .reader import Versions

_PART_BYTES = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same version gives the same bytes


@dataclass(frozen=True)
class _Source:
    name: str
    file: IO[bytes]
    facts: FileFacts


def export_version(versions: Versions, category: str, version: str) -> Iterator[bytes]:
    """The zip of a version, in parts. All of its files are opened and checked before the first part comes.

    Args:
        version: its name, not an alias.

    Raises:
        UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName.
        StoreCorrupt: a file is missing, or is not what was published.
    """
    with ExitStack() as opened:
        sources = [_source(name, path, opened) for name, path in _files(versions, category, version).items()]
        _check_published(versions, category, version, sources)
        manifest = Manifest(category=category, version=version, files={source.name: source.facts for source in sources})
        sink = _Sink()
        with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), manifest.model_dump_json(indent=1))
            yield sink.taken()
            for source in sources:
                entry = zipfile.ZipInfo(source.name, _EPOCH)
                entry.file_size = source.facts.size  # lets it choose the form for large files beforehand
                with archive.open(entry, "w") as out:
                    while part := source.file.read(_PART_BYTES):
                        out.write(part)
                        yield sink.taken()
        yield sink.taken()


def _files(versions: Versions, category: str, version: str) -> dict[str, Path]:
    folder = versions.store.path(category, version)
    versions.store.stamp(category, version)
    files = {name: folder / name for name in REQUIRED}
    files |= {name: folder / name for name in OPTIONAL if (folder / name).exists()}
    additions = versions.additions
    names = additions.names_path(category, version)
    if names.exists():
        files[NAMES] = names
    for name in additions.landmark_sets(category, version):
        files[f"landmarks/{name}.json"] = additions.landmarks_path(category, version, name)
    return files


def _source(name: str, path: Path, opened: ExitStack) -> _Source:
    try:
        file = opened.enter_context(path.open("rb"))
    except FileNotFoundError as error:
        raise StoreCorrupt(f"the version lacks its {name}, or was deleted just now") from error
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    return _Source(name, file, FileFacts(size=size, sha256=digest))


def _check_published(versions: Versions, category: str, version: str, sources: list[_Source]) -> None:
    """Whether the files are those whose checksums were written when the version was published."""
    published = versions.store.info(category, version).get("files") or {}
    for source in sources:
        if published.get(source.name, source.facts.sha256) != source.facts.sha256:
            raise StoreCorrupt(
                f"{source.name} of version '{version}' of category '{category}' is not as it was published"
            )


class _Sink:
    """What is written, until it is taken; a file for zipfile that can't seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere."""

    def taken(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data

"""Export a version from disk as a zip stream. Blocking."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from service.contract.errors import StoreCorrupt
from service.contract.versions.export_manifest import MANIFEST, NAMES, OPTIONAL, REQUIRED, FileFacts, Manifest

from .reader import Versions

_CHUNK_BYTES = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip; a constant, so that equal versions give equal bytes


def export_version(versions: Versions, category: str, version: str) -> Iterator[bytes]:
    """Yield a version's zip in chunks. All files are opened and checked before the first chunk.

    Args:
        version: its name, not an alias.

    Raises:
        UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName.
        StoreCorrupt: a file is missing, or has changed since the version was published.
    """
    published = versions.store.info(category, version).get("files") or {}
    with ExitStack() as opened:
        files: dict[str, BufferedReader] = {}
        facts: dict[str, FileFacts] = {}
        for name, path in _list_files(versions, category, version).items():
            try:
                files[name] = file = opened.enter_context(path.open("rb"))
            except FileNotFoundError as error:
                raise StoreCorrupt(f"the version lacks its {name}, or was deleted just now") from error
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if published.get(name, digest) != digest:
                raise StoreCorrupt(
                    f"{name} of version '{version}' of category '{category}' changed since its publication"
                )
            facts[name] = FileFacts(size=file.tell(), sha256=digest)
            file.seek(0)
        manifest = Manifest(category=category, version=version, files=facts)
        sink = _Sink()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), manifest.model_dump_json(indent=1))
            yield sink.take()
            for name, file in files.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.file_size = facts[name].size  # selects ZIP64 for large files
                with archive.open(entry, "w") as out:
                    while chunk := file.read(_CHUNK_BYTES):
                        out.write(chunk)
                        yield sink.take()
        yield sink.take()


def _list_files(versions: Versions, category: str, version: str) -> dict[str, Path]:
    """Return the paths of a version's files and of what users added to it, by their names in the zip."""
    folder, additions = versions.store.complete(category, version), versions.additions
    files = {name: folder / name for name in REQUIRED}
    files |= {name: folder / name for name in OPTIONAL if (folder / name).exists()}
    names = additions.names_path(category, version)
    if names.exists():
        files[NAMES] = names
    for name in additions.landmark_sets(category, version):
        files[f"landmarks/{name}.json"] = additions.landmarks_path(category, version, name)
    return files


class _Sink(RawIOBase):
    """A file for zipfile, without seeking, whose written bytes are taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._written)
        self._written.clear()
        return data

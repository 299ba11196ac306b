"""Export a version from disk as a zip stream. Blocking."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

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
    with ExitStack() as opened:
        files = {name: _open(name, path, opened) for name, path in _list_files(versions, category, version).items()}
        facts = {name: facts for name, (_, facts) in files.items()}
        _check_unchanged(versions, category, version, facts)
        manifest = Manifest(category=category, version=version, files=facts)
        sink = _Sink()
        with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), manifest.model_dump_json(indent=1))
            yield sink.take()
            for name, (file, _) in files.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.file_size = facts[name].size  # selects ZIP64 for large files
                with archive.open(entry, "w") as out:
                    while chunk := file.read(_CHUNK_BYTES):
                        out.write(chunk)
                        yield sink.take()
        yield sink.take()


def _list_files(versions: Versions, category: str, version: str) -> dict[str, Path]:
    """Return the paths of a version's files and of what users added to it, by their names in the zip."""
    folder, additions = versions.store.path(category, version), versions.additions
    versions.store.identity(category, version)  # raises if it does not exist
    files = {name: folder / name for name in REQUIRED}
    files |= {name: folder / name for name in OPTIONAL if (folder / name).exists()}
    names = additions.names_path(category, version)
    if names.exists():
        files[NAMES] = names
    for name in additions.landmark_sets(category, version):
        files[f"landmarks/{name}.json"] = additions.landmarks_path(category, version, name)
    return files


def _open(name: str, path: Path, opened: ExitStack) -> tuple[IO[bytes], FileFacts]:
    try:
        file = opened.enter_context(path.open("rb"))
    except FileNotFoundError as error:
        raise StoreCorrupt(f"the version lacks its {name}, or was deleted just now") from error
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    return file, FileFacts(size=size, sha256=digest)


def _check_unchanged(versions: Versions, category: str, version: str, facts: dict[str, FileFacts]) -> None:
    """Compare the files with the checksums of their publication."""
    published = versions.store.info(category, version).get("files") or {}
    for name, found in facts.items():
        if published.get(name, found.sha256) != found.sha256:
            raise StoreCorrupt(f"{name} of version '{version}' of category '{category}' changed since its publication")


class _Sink:
    """A file for zipfile, without seeking, whose written bytes are yielded."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing to flush."""

    def take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

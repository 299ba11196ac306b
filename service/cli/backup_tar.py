"""One tar of what the platform can't compute again, taken while it runs.

categories/<category>/aliases.json                    {alias: version}
categories/<category>/versions/<version>/…            the files of a version
categories/<category>/additions/<version>/…           names of keypoints and landmarks
datasets/<id>/…  estimates/<id>/…  keys/<id>.json  webhook-secret        as below the data root
manifest.json                                         the last member: format, time, size and SHA-256 of all others
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, Field, ValidationError

from service.access.keys import KeyStore
from service.contract.datasets.dataset import DatasetRecord
from service.contract.datasets.store import RECORD, DatasetFiles
from service.contract.durable_files import folder_names, hold_lock, sha256_of, write_json
from service.contract.errors import UnknownVersion
from service.contract.settings import CommonSettings
from service.contract.versions.export_manifest import FileFacts
from service.contract.versions.shared import SharedVersions, open_versions
from service.contract.versions.store import ADDITIONS, CategoryFolder, VersionStore
from service.estimates.background.shared_store import open_estimates
from service.runtime.secrets import WEBHOOK_SECRET_FILE, has_webhook_secret, webhook_secret, write_private

MANIFEST = "manifest.json"
_ALIASES = "aliases.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,5}")
_CHUNK_BYTES = 2**20


class BackupError(ValueError):
    """A file is not a backup, or can't be restored here."""


class Manifest(BaseModel):
    """The content of manifest.json."""

    kind: Literal["ppl-backup"] = "ppl-backup"
    format: Literal[1] = 1
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    files: dict[str, FileFacts] = Field(default_factory=dict)


def gather(settings: CommonSettings, draft: Path) -> None:
    """Link everything into a folder; each category, dataset and estimate is as it was at one moment."""
    store, root = open_versions(settings), settings.data_root
    if isinstance(store, SharedVersions):
        store.poll()
    for category in store.categories():
        _gather_category(store, category, draft / "categories" / category)
    _gather_datasets(DatasetFiles.open(settings), draft / "datasets")
    estimates = open_estimates(settings)
    estimates.poll()
    for estimate_id in estimates.list_ended():
        estimates.complete(estimate_id)
        _link_tree(estimates.path(estimate_id), draft / "estimates" / estimate_id)
    KeyStore.open(settings).follow()
    _link_tree(root / "keys", draft / "keys")
    if has_webhook_secret(settings):
        write_private(draft / WEBHOOK_SECRET_FILE, webhook_secret(settings) + "\n")


def _gather_category(store: VersionStore, category: str, draft: Path) -> None:
    state = store.state(category)
    while True:
        complete = set()
        for version in state.versions():
            with suppress(UnknownVersion):  # deleted meanwhile
                store.complete(category, version)
                complete.add(version)
        with state.lock():
            if not set(state.versions()) <= complete:  # one was published meanwhile
                continue
            for version in state.versions():
                _link_tree(state.folder / "versions" / version, draft / "versions" / version)
                _link_tree(store.additions_path(category, version), draft / ADDITIONS / version)
            draft.mkdir(parents=True, exist_ok=True)
            write_json(draft / _ALIASES, state.aliases())
            return


def _gather_datasets(datasets: DatasetFiles, draft: Path) -> None:
    datasets.poll()
    ids = datasets.ids()
    for dataset_id in ids:
        datasets.complete(dataset_id)
    datasets.root.mkdir(exist_ok=True)
    with hold_lock(datasets.root / ".lock"):
        for dataset_id in ids:
            if datasets.archive(dataset_id).exists():  # otherwise it was deleted meanwhile
                _link_tree(datasets.folder(dataset_id), draft / dataset_id)


def _link_tree(source: Path, target: Path) -> None:
    """Link the files below a folder, except hidden ones; those that are deleted meanwhile are left out."""
    for path in source.rglob("[!.]*"):
        if path.is_file():
            with suppress(FileNotFoundError):
                _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)  # the platform replaces files and never writes into them
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def write_tar(draft: Path, stream: IO[bytes]) -> Manifest:
    """Write the gathered files and their manifest as a tar, and return the manifest."""
    manifest = Manifest()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in draft.rglob("*") if path.is_file()):
            name = path.relative_to(draft).as_posix()
            manifest.files[name] = FileFacts(size=path.stat().st_size, sha256=sha256_of(path))
            archive.add(path, name, recursive=False, filter=_without_owner)
        (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        archive.add(draft / MANIFEST, MANIFEST, filter=_without_owner)
    return manifest


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(stream: IO[bytes], draft: Path) -> None:
    """Unpack and check a backup. Raises BackupError."""
    found: dict[str, FileFacts] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not member.isreg() or not _NAME.fullmatch(member.name) or member.name in found:
                    raise BackupError(
                        f"the tar has a member {member.name[:80]!r}; a tar of `ppl backup` has only files of versions, "
                        "datasets, estimates and keys; use an unchanged one"
                    )
                content = archive.extractfile(member)
                assert content is not None
                path = draft / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o666)
                with os.fdopen(descriptor, "wb") as file:
                    while chunk := content.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
                found[member.name] = FileFacts(size=member.size, sha256=digest.hexdigest())
        found.pop(MANIFEST, None)
        manifest = Manifest.model_validate_json((draft / MANIFEST).read_bytes())
    except (tarfile.TarError, FileNotFoundError, EOFError) as error:
        raise BackupError(f"the file is not a complete tar of `ppl backup` ({error}); copy it again") from error
    except ValidationError as error:
        raise BackupError(
            "the manifest can't be read, or is of a later release; use that release, or another backup"
        ) from error
    for name in found.keys() | manifest.files.keys():
        if found.get(name) != manifest.files.get(name):
            raise BackupError(
                f"{name[:80]} differs from the manifest in size or SHA-256; the backup is damaged, use another"
            )


def restore(settings: CommonSettings, draft: Path) -> Counter[str]:
    """Add the parts of an unpacked backup that are missing here; return how many of each kind. Raises BackupError."""
    store, datasets, root = open_versions(settings), DatasetFiles.open(settings), settings.data_root
    counts: Counter[str] = Counter()
    for folder in _folders(draft / "categories"):
        for version in sorted(folder_names(folder / "versions")):
            counts["versions"] += _restore_version(store, folder, version)
        aliases = json.loads((folder / _ALIASES).read_bytes())
        if aliases:
            store.change(folder.name, partial(_move_aliases, aliases))
    for folder in _folders(draft / "datasets"):
        record = DatasetRecord.model_validate_json((folder / RECORD).read_bytes())
        counts["datasets"] += datasets.add(folder, record, sys.maxsize)
    keys = KeyStore.open(settings)
    keys.follow()
    for kind in ("estimates", "keys", WEBHOOK_SECRET_FILE):
        source = draft / kind
        for path in source.iterdir() if source.is_dir() else [source] if source.exists() else []:
            target = root / path.relative_to(draft)
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                os.rename(path, target)
                counts[kind] += 1
    keys.send()
    open_estimates(settings).poll()  # sends them to the object store
    if (root / WEBHOOK_SECRET_FILE).exists():
        webhook_secret(settings)  # as this
    return counts


def _restore_version(store: VersionStore, category: Path, version: str) -> bool:
    source = category / "versions" / version
    if version in store.state(category.name).versions():
        here = store.file(category.name, version, "version.json").read_bytes()
        if here != (source / "version.json").read_bytes():
            raise BackupError(
                f"category '{category.name}' has another version '{version}'; delete it, or restore elsewhere"
            )
        return False
    with store.staging(category.name, version) as staged:
        for path in source.iterdir():
            os.rename(path, staged / path.name)
        if (category / ADDITIONS / version).exists():
            os.rename(category / ADDITIONS / version, staged / ADDITIONS)
        store.publish(staged, category.name, version)
    return True


def _move_aliases(aliases: dict[str, str], state: CategoryFolder) -> None:
    for alias, version in aliases.items():
        if version not in state.versions():
            raise BackupError(f"the alias '{alias}' of category '{state.folder.name}' names no version that is there")
        state.put_alias(alias, version)


def _folders(root: Path) -> list[Path]:
    return [root / name for name in sorted(folder_names(root))]

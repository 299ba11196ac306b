"""Install the sample categories that come with the package."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path

from service.contract.errors import PPLError, UnknownCategory, VersionExists
from service.contract.versions.store import VersionStore

log = logging.getLogger(__name__)


def install_samples(store: VersionStore, samples: Path | None = None) -> list[str]:
    """Publish and activate each sample version whose category has no version yet.

    Errors (a full disk, a read-only data root) are logged, as a gateway works without samples.

    Args:
        samples: folder of published versions, a folder each; by default those of the package.

    Returns:
        The categories installed.
    """
    if samples is None:
        with as_file(files("service") / "samples") as packed:
            return install_samples(store, packed)
    installed = []
    for folder in sorted(path.parent for path in samples.glob("*/version.json")):
        try:
            if _install(store, folder):
                installed.append(folder.name)
        except (OSError, ValueError, KeyError, PPLError) as error:
            log.warning("sample category not installed: category=%s error=%s", folder.name, error)
    return installed


def _install(store: VersionStore, folder: Path) -> bool:
    info = json.loads((folder / "version.json").read_text(encoding="utf-8"))
    category, version = info["category"], info["version"]
    try:
        names = store.versions(category)
    except UnknownCategory:
        names = []
    if names and (names != [version] or store.active(category)):
        return False
    if not names:
        # another gateway that starts at this moment may be first
        with suppress(VersionExists), store.staging(category, version) as staged:
            shutil.copytree(folder, staged, dirs_exist_ok=True)
            store.publish(staged, category, version)
    store.activate(category, version)
    log.info("sample category installed: category=%s version=%s", category, version)
    return True

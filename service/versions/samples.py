"""The categories that come with the platform: put where there is none of their name, to be tried at once."""

from __future__ import annotations

import json
import logging
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from service.contract.errors import PPLError, UnknownCategory
from service.contract.versions.store import VersionStore

log = logging.getLogger(__name__)


def install_samples(store: VersionStore, samples: Path | None = None) -> list[str]:
    """Publish and activate each sample version whose category has no version yet.

    A fault (no room, a read-only data root) is logged and leaves the rest as it is: a gateway serves without samples.

    Args:
        samples: folder of folders, each a version as training publishes it; those of the package where None.

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
            log.warning("the sample category %s was not installed: %s", folder.name, error)
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
        with store.staging(category, version) as staged:
            shutil.copytree(folder, staged, dirs_exist_ok=True)
            store.publish(staged, category, version)
    store.activate(category, version)
    log.info("the sample category %s is there: version %s", category, version)
    return True

"""What users add to a version after it was published: names of its keypoints, and landmarks fitted on them.

It lies beside the versions, which never change, and goes when its version is deleted:

categories/<category>/additions/<version>/keypoint-names.json     {"names": [K names]}
categories/<category>/additions/<version>/landmarks/<name>.json   a document of :mod:`.landmarks`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.prior_values import read_names

from .errors import BadKeypointNames, StoreCorrupt
from .files import read_json, write_json
from .store import VersionStore

NAMES_FILE = "keypoint-names.json"


def check_names(value: Any, count: int) -> tuple[str, ...]:
    """Names for K keypoints.

    Raises:
        BadKeypointNames: not K different ones of 1 to 64 printable characters.
    """
    try:
        return read_names(value, count)
    except ValueError as error:
        raise BadKeypointNames(f"these can't be the names of {count} keypoints: {error}") from error


def numbered(names: Sequence[str] | None) -> bool:
    """Whether keypoints have no names but those that publishing gives them: keypoint_0, keypoint_1, …"""
    return not names or all(name == f"keypoint_{index}" for index, name in enumerate(names))


class Additions:
    """What was added to the versions of a data root. Reading needs no lock.

    Every method takes the name of a version, not an alias, and raises BadCategoryName and BadVersionName for what
    can't be names.
    """

    def __init__(self, store: VersionStore) -> None:
        self._store = store

    def names_path(self, category: str, version: str) -> Path:
        """The file of the keypoints' names, whether it exists or not."""
        return self._store.additions_path(category, version) / NAMES_FILE

    def names(self, category: str, version: str) -> tuple[str, ...] | None:
        """The names given to a version's keypoints; None where nobody gave any."""
        try:
            names = read_json(self.names_path(category, version)).get("names")
        except FileNotFoundError:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise StoreCorrupt(f"the keypoint names of version '{version}' of category '{category}' can't be read")
        return tuple(names)

    def put_names(
        self,
        category: str,
        version: str,
        names: Sequence[str],
        check: Callable[[tuple[str, ...] | None], object] = lambda now: None,
    ) -> None:
        """Name a version's keypoints.

        Args:
            names: as :func:`check_names` gave them.
            check: told the names given before, None where there were none; what it raises leaves all as it is.

        Raises:
            UnknownCategory, UnknownVersion: there is no such version (any more).
        """
        path = self.names_path(category, version)
        with self._store.pointers(category).lock():
            self._store.stamp(category, version)
            check(self.names(category, version))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"names": list(names)})

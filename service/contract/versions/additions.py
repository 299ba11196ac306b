"""Additions to published versions: names of keypoints, and landmarks fitted on them.

They are kept beside the versions, which never change, and are deleted with them:

categories/<category>/additions/<version>/keypoint-names.json     {"names": [K names]}
categories/<category>/additions/<version>/landmarks/<name>.json   a document of :mod:`.landmarks`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.version.prior_values import read_names
from service.contract.durable_files import read_json
from service.contract.errors import BadKeypointNames, BadLandmarks, Conflict, NameTaken, StoreCorrupt, UnknownLandmarks

from .landmarks import MOST_SETS, LandmarkSet, check_set_name
from .store import CategoryFolder, VersionStore, check_version

NAMES_FILE = "keypoint-names.json"


def check_names(value: Any, count: int) -> tuple[str, ...]:
    """Return valid names for K keypoints. Raises BadKeypointNames."""
    try:
        return read_names(value, count)
    except ValueError as error:
        raise BadKeypointNames(f"the names of {count} keypoints are not valid: {error}") from error


def has_default_names(names: Sequence[str] | None) -> bool:
    """Return whether keypoints have only their default names keypoint_0, keypoint_1, …"""
    return not names or all(name == f"keypoint_{index}" for index, name in enumerate(names))


class Additions:
    """The additions to the versions of a data root. Reading needs no lock.

    Methods take the name of a version, not an alias, and raise BadCategoryName or BadVersionName for invalid names.
    """

    def __init__(self, store: VersionStore) -> None:
        self._store = store

    def names_path(self, category: str, version: str) -> Path:
        """Return the path of the keypoints' names, which may not exist."""
        return self._store.additions_path(category, version) / NAMES_FILE

    def names(self, category: str, version: str) -> tuple[str, ...] | None:
        """Return the names given to a version's keypoints, if any."""
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
        """Name a version's keypoints. Raises UnknownCategory, UnknownVersion.

        Args:
            names: names from :func:`check_names`.
            check: called with the current names, None without any; an error from it cancels the change.
        """

        def put(state: CategoryFolder) -> None:
            self._store.identity(category, version)
            check(self.names(category, version))
            state.put_addition(version, NAMES_FILE, {"names": list(names)})

        self._store.change(category, put)

    def landmarks_path(self, category: str, version: str, name: str) -> Path:
        """Return the path of a set of landmarks, which may not exist. Raises BadLandmarks for an invalid name."""
        return self._store.additions_path(category, version) / "landmarks" / f"{check_set_name(name)}.json"

    def landmark_sets(self, category: str, version: str) -> list[str]:
        """Return the names of a version's sets of landmarks, sorted."""
        folder = self.landmarks_path(category, version, "any").parent
        return sorted(path.stem for path in folder.glob("[!.]*.json"))

    def landmarks(self, category: str, version: str, name: str) -> LandmarkSet:
        """Return a set of landmarks. Raises UnknownLandmarks, StoreCorrupt."""
        path = self.landmarks_path(category, version, name)
        try:
            return LandmarkSet.parse(read_json(path))
        except FileNotFoundError as error:
            raise self._unknown_error(category, version, name) from error
        except BadLandmarks as error:
            raise StoreCorrupt(f"landmarks '{name}' of version '{version}' of '{category}' can't be read") from error

    def landmarks_request(self, category: str, version: str, name: str) -> str | None:
        """Return the name of the request that added a set of landmarks, if it had one; None if there is no set."""
        try:
            return read_json(self.landmarks_path(category, version, name)).get("request")
        except FileNotFoundError:
            return None

    def put_landmarks(self, category: str, version: str, found: LandmarkSet, request: str | None = None) -> None:
        """Add a set of landmarks.

        Args:
            request: names the request, if it may be sent again.

        Raises:
            UnknownCategory, UnknownVersion.
            NameTaken: the version has one of this name.
            Conflict: the limit on sets is reached.
        """

        def put(state: CategoryFolder) -> None:
            self._store.identity(category, version)
            self.check_free(category, version, found.name)
            document = found.model_dump(mode="json") | ({"request": request} if request else {})
            state.put_addition(version, f"landmarks/{found.name}.json", document)

        self._store.change(category, put)

    def check_free(self, category: str, version: str, name: str) -> None:
        """Raise NameTaken or Conflict unless a set of landmarks of this name can be added."""
        sets = self.landmark_sets(category, version)
        if check_set_name(name) in sets:
            raise NameTaken(
                f"version '{version}' of category '{category}' has landmarks '{name}' already; choose another name, "
                "or delete them first"
            )
        if len(sets) >= MOST_SETS:
            raise Conflict(
                f"version '{version}' of category '{category}' has {MOST_SETS} sets of landmarks; delete one"
            )

    def remove_landmarks(self, category: str, version: str, name: str) -> None:
        """Remove a set of landmarks. Raises UnknownLandmarks."""
        check_set_name(name)
        check_version(version)
        try:
            self._store.change(category, lambda state: state.remove_addition(version, f"landmarks/{name}.json"))
        except FileNotFoundError as error:
            raise self._unknown_error(category, version, name) from error

    def _unknown_error(self, category: str, version: str, name: str) -> UnknownLandmarks:
        sets = ", ".join(self.landmark_sets(category, version)[:20]) or "none"
        return UnknownLandmarks(
            f"version '{version}' of category '{category}' has no landmarks '{name}'; it has {sets}. Landmarks are "
            "fitted for one version: another one finds other keypoints"
        )

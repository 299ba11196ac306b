# Generated from service/client/aio/versions.py by service.client.generate: change it there.
"""Calls on versions, their aliases and their landmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.client.errors import APIError, InputError
from service.client.paths import prior_path, quote_segment
from service.client.types import (
    AliasEntry,
    FittedLandmarks,
    Landmarks,
    LandmarksEntry,
    LandmarksPage,
    PriorDiff,
    VersionEntry,
)
from service.client.uploads import file_part, list_named_pictures

from .transport import Transport


class AliasCalls:
    """Calls on aliases, the names that point to versions. Reached as ``client.aliases``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, category: str) -> Iterator[AliasEntry]:
        """Iterate over the aliases: ``active`` first, then by name."""
        return self._transport.pages(f"{prior_path(category)}/aliases", AliasEntry)

    def get(self, category: str, alias: str) -> AliasEntry:
        """Return an alias and its version."""
        return self._transport.request(AliasEntry, "GET", _alias_path(category, alias))

    def put(self, category: str, alias: str, version: str, expected: str | None = None) -> AliasEntry:
        """Point an alias to a version; ``put(category, "active", older)`` rolls back.

        Args:
            version: a version, or another alias that points to it.
            expected: the version that the alias must point to now, else APIError with status 412 is raised and
                nothing changes; any version by default.
        """
        if expected is None:
            try:
                expected = (self.get(category, alias)).version
            except APIError as error:
                if error.code != "unknown_alias":
                    raise
        headers = {"If-Match": f'"{expected}"'} if expected else {}
        content = {"json": {"version": version}, "headers": headers}
        return self._transport.request(AliasEntry, "PUT", _alias_path(category, alias), **content)

    def delete(self, category: str, alias: str) -> None:
        """Remove an alias; its version stays. ``active`` can only be moved."""
        self._transport.send("DELETE", _alias_path(category, alias))


class VersionCalls:
    """Calls on the versions of a category. Reached as ``client.versions``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, category: str) -> Iterator[VersionEntry]:
        """Iterate over the versions, newest first."""
        return self._transport.pages(f"{prior_path(category)}/versions", VersionEntry)

    def delete(self, category: str, version: str) -> None:
        """Delete a version for good. The server refuses if an alias points to it."""
        self._transport.send("DELETE", _version_path(category, version))

    def diff(
        self, category: str, older: str, newer: str = "active", match: str = "auto", strong: float | None = None
    ) -> PriorDiff:
        """Compare the priors of two versions.

        Args:
            older, newer: versions or aliases.
            match: pair keypoints by "number", by "position", or by whichever fits better ("auto").
            strong: smallest weight of a link to count, as a share of its prior's strongest link; the server's
                default if None.
        """
        params: dict[str, str | float] = {"from": older, "to": newer, "match": match}
        if strong is not None:
            params["strong"] = strong
        return self._transport.request(PriorDiff, "GET", f"{prior_path(category)}/diff", params=params)

    def export(self, category: str, version: str, to: str | os.PathLike[str]) -> Path:
        """Write a version into a file that another server can import.

        Args:
            version: a version or alias.
            to: the file; an older one is replaced once the download is complete.
        """
        return self._transport.download(f"{_version_path(category, version)}/export", Path(to))

    def import_file(self, category: str, file: str | os.PathLike[str], activate: bool | None = None) -> VersionEntry:
        """Create a version from a file that :meth:`export` wrote.

        Args:
            category: of the new version; may differ from the exported one.
            activate: whether it becomes the active version; by default only if the category has none.
        """
        fields = {} if activate is None else {"activate": str(activate).lower()}
        with ExitStack() as stack:
            files = {"file": file_part(Path(file), stack)}
            path = f"{prior_path(category)}/versions/import"
            return self._transport.request(VersionEntry, "POST", path, data=fields, files=files)


class LandmarkCalls:
    """Calls on landmarks, user-defined points computed from a version's keypoints. Reached as ``client.landmarks``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def fit(
        self,
        category: str,
        name: str,
        pictures: Sequence[str | os.PathLike[str]],
        labels: str | os.PathLike[str],
        version: str | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
    ) -> FittedLandmarks:
        """Fit landmarks on labelled pictures, typically 10 to 50.

        Args:
            name: of the landmark set, as ``estimate(landmarks=name)`` takes it.
            pictures: files and folders; labels name the pictures of a folder by their path below it.
            labels: a CSV or COCO keypoints JSON file.
            boxes: the object in each picture as x, y, width, height in pixels; only if all pictures are files.
        """
        named = list_named_pictures(pictures)
        if boxes is not None and len(boxes) != len(named):
            raise InputError(f"{len(named)} pictures came with {len(boxes)} boxes; each picture needs one")
        fields = {"name": name, **({"version": version} if version else {})}
        if boxes is not None:
            fields["boxes"] = json.dumps([list(box) for box in boxes])
        with ExitStack() as stack:
            files: list[tuple[str, Any]] = [("labels", file_part(Path(labels), stack))]
            files += [("images", (shown, file_part(path, stack)[1])) for shown, path in named]
            path = f"{prior_path(category)}/landmarks"
            return self._transport.request(FittedLandmarks, "POST", path, data=fields, files=files)

    def list(self, category: str, version: str | None = None) -> Iterator[LandmarksEntry]:
        """Iterate over the landmark sets of a version by name."""
        params = {"version": version} if version else None
        page = self._transport.request(LandmarksPage, "GET", f"{prior_path(category)}/landmarks", params=params)
        for item in page.items:
            yield item

    def get(self, category: str, name: str, version: str | None = None) -> Landmarks:
        """Return a landmark set with its maps and errors."""
        params = {"version": version} if version else None
        return self._transport.request(Landmarks, "GET", _landmarks_path(category, name), params=params)

    def delete(self, category: str, name: str, version: str | None = None) -> None:
        """Delete a landmark set."""
        params = {"version": version} if version else None
        self._transport.send("DELETE", _landmarks_path(category, name), params=params)


def _alias_path(category: str, alias: str) -> str:
    return f"{prior_path(category)}/aliases/{quote_segment(alias)}"


def _version_path(category: str, version: str) -> str:
    return f"{prior_path(category)}/versions/{quote_segment(version)}"


def _landmarks_path(category: str, name: str) -> str:
    return f"{prior_path(category)}/landmarks/{quote_segment(name)}"

"""Calls on versions, their aliases and their landmarks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.client.connection import api_path, version_params
from service.client.errors import APIError, InputError
from service.client.types import (
    AliasEntry,
    FittedLandmarks,
    Landmarks,
    LandmarksEntry,
    LandmarksPage,
    PriorDiff,
    VersionEntry,
)
from service.client.uploads import AnyPath, file_part, list_named_pictures

from .transport import CallGroup


class AliasCalls(CallGroup):
    """Calls on aliases, the names that point to versions. Reached as ``client.aliases``."""

    def list(self, category: str) -> AsyncIterator[AliasEntry]:
        """Iterate over the aliases: ``active`` first, then by name."""
        return self._transport.pages(api_path("priors", category, "aliases"), AliasEntry)

    async def get(self, category: str, alias: str) -> AliasEntry:
        """Return an alias and its version."""
        return await self._transport.request(AliasEntry, "GET", api_path("priors", category, "aliases", alias))

    async def put(self, category: str, alias: str, version: str, expected: str | None = None) -> AliasEntry:
        """Point an alias to a version; ``put(category, "active", older)`` rolls back.

        Args:
            version: a version, or another alias that points to it.
            expected: the version that the alias must point to now, else APIError with status 412 is raised and
                nothing changes; any version by default.
        """
        if expected is None:
            try:
                expected = (await self.get(category, alias)).version
            except APIError as error:
                if error.code != "unknown_alias":
                    raise
        content = {"json": {"version": version}, "headers": {"If-Match": f'"{expected}"'} if expected else {}}
        path = api_path("priors", category, "aliases", alias)
        return await self._transport.request(AliasEntry, "PUT", path, **content)

    async def delete(self, category: str, alias: str) -> None:
        """Remove an alias; its version stays. ``active`` can only be moved."""
        await self._transport.send("DELETE", api_path("priors", category, "aliases", alias))


class VersionCalls(CallGroup):
    """Calls on the versions of a category. Reached as ``client.versions``."""

    def list(self, category: str) -> AsyncIterator[VersionEntry]:
        """Iterate over the versions, newest first."""
        return self._transport.pages(api_path("priors", category, "versions"), VersionEntry)

    async def delete(self, category: str, version: str) -> None:
        """Delete a version for good. The server refuses if an alias points to it."""
        await self._transport.send("DELETE", api_path("priors", category, "versions", version))

    async def diff(
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
        return await self._transport.request(PriorDiff, "GET", api_path("priors", category, "diff"), params=params)

    async def export(self, category: str, version: str, to: AnyPath) -> Path:
        """Write a version into a file that another server can import.

        Args:
            version: a version or alias.
            to: the file; an older one is replaced once the download is complete.
        """
        return await self._transport.download(api_path("priors", category, "versions", version, "export"), Path(to))

    async def import_file(self, category: str, file: AnyPath, activate: bool | None = None) -> VersionEntry:
        """Create a version from a file that :meth:`export` wrote.

        Args:
            category: of the new version; may differ from the exported one.
            activate: whether it becomes the active version; by default only if the category has none.
        """
        fields = {} if activate is None else {"activate": str(activate).lower()}
        with ExitStack() as stack:
            files = {"file": file_part(file, stack)}
            path = api_path("priors", category, "versions", "import")
            return await self._transport.request(VersionEntry, "POST", path, data=fields, files=files)


class LandmarkCalls(CallGroup):
    """Calls on landmarks, user-defined points computed from a version's keypoints. Reached as ``client.landmarks``."""

    async def fit(
        self,
        category: str,
        name: str,
        pictures: Sequence[AnyPath],
        labels: AnyPath,
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
        fields = {"name": name, **version_params(version)}
        if boxes is not None:
            fields["boxes"] = json.dumps([list(box) for box in boxes])
        with ExitStack() as stack:
            files: list[tuple[str, Any]] = [("labels", file_part(labels, stack))]
            files += [("images", (shown, file_part(path, stack)[1])) for shown, path in named]
            path = api_path("priors", category, "landmarks")
            return await self._transport.request(FittedLandmarks, "POST", path, data=fields, files=files)

    async def list(self, category: str, version: str | None = None) -> AsyncIterator[LandmarksEntry]:
        """Iterate over the landmark sets of a version by name."""
        path, params = api_path("priors", category, "landmarks"), version_params(version)
        page = await self._transport.request(LandmarksPage, "GET", path, params=params)
        for item in page.items:
            yield item

    async def get(self, category: str, name: str, version: str | None = None) -> Landmarks:
        """Return a landmark set with its maps and errors."""
        path = api_path("priors", category, "landmarks", name)
        return await self._transport.request(Landmarks, "GET", path, params=version_params(version))

    async def delete(self, category: str, name: str, version: str | None = None) -> None:
        """Delete a landmark set."""
        path = api_path("priors", category, "landmarks", name)
        await self._transport.send("DELETE", path, params=version_params(version))

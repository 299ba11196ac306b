"""The client's calls about versions and the names that point to them.

await ppl.aliases.put("bird", "active", "20261123T064501-1f3a9c")      # roll back
await ppl.versions.delete("bird", "20261124T081500-77ab21")
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from service.client.errors import APIError, InputError
from service.client.paths import quoted
from service.client.types import (
    AliasEntry,
    FittedLandmarks,
    Landmarks,
    LandmarksEntry,
    LandmarksPage,
    PriorDiff,
    VersionEntry,
)
from service.client.uploads import file_part, pictures_in

if TYPE_CHECKING:
    from .client import AsyncClient

_UNKNOWN = "unknown_alias"


class AsyncAliasCalls:
    """Names that point to versions. Reached as ``client.aliases``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def list(self, category: str) -> AsyncIterator[AliasEntry]:
        """``active`` first, the others by name."""
        return self._client.pages(f"{prior_path(category)}/aliases", AliasEntry)

    async def get(self, category: str, alias: str) -> AliasEntry:
        """Where an alias points."""
        return self._client.read(AliasEntry, await self._client.send("GET", _alias_path(category, alias)))

    async def put(self, category: str, alias: str, version: str, expected: str | None = None) -> AliasEntry:
        """Point an alias to a version.

        Args:
            version: a version, or another alias that points to it.
            expected: the version that it must point to now, else nothing is changed and APIError is raised with
                the status 412; whatever it points to where None.
        """
        if expected is None:
            try:
                expected = (await self.get(category, alias)).version
            except APIError as error:
                if error.code != _UNKNOWN:
                    raise
        headers = {"If-Match": f'"{expected}"'} if expected else {}
        answer = await self._client.send(
            "PUT", _alias_path(category, alias), json={"version": version}, headers=headers
        )
        return self._client.read(AliasEntry, answer)

    async def delete(self, category: str, alias: str) -> None:
        """Remove an alias; its version stays. ``active`` can only be moved."""
        await self._client.send("DELETE", _alias_path(category, alias))


class AsyncVersionCalls:
    """The versions of a category. Reached as ``client.versions``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def list(self, category: str) -> AsyncIterator[VersionEntry]:
        """The newest first."""
        return self._client.pages(f"{prior_path(category)}/versions", VersionEntry)

    async def delete(self, category: str, version: str) -> None:
        """Delete a version for good; one that an alias points to is refused."""
        await self._client.send("DELETE", f"{prior_path(category)}/versions/{quoted(version)}")

    async def diff(
        self, category: str, older: str, newer: str = "active", match: str = "auto", strong: float | None = None
    ) -> PriorDiff:
        """How the prior of one version differs from that of another.

        Args:
            older, newer: versions, or aliases of such.
            match: which keypoints are the same: of one "number", near in "position", or what fits ("auto").
            strong: share of its prior's strongest link from which on a link counts; the server's default where None.
        """
        params: dict[str, str | float] = {"from": older, "to": newer, "match": match}
        if strong is not None:
            params["strong"] = strong
        answer = await self._client.send("GET", f"{prior_path(category)}/diff", params=params)
        return self._client.read(PriorDiff, answer)

    async def export(self, category: str, version: str, to: str | os.PathLike[str]) -> Path:
        """Write a version into one file that another server imports.

        Args:
            version: a version, or an alias of one.
            to: the file; it takes the place of an older one once all of it is there.
        """
        return await self._client.download(f"{prior_path(category)}/versions/{quoted(version)}/export", Path(to))

    async def import_file(
        self, category: str, file: str | os.PathLike[str], activate: bool | None = None
    ) -> VersionEntry:
        """Make a version of a file that :meth:`export` wrote.

        Args:
            category: where it goes, that of its origin or another.
            activate: whether it becomes the active version; where None it does if the category has none.
        """
        fields = {} if activate is None else {"activate": str(activate).lower()}
        with ExitStack() as stack:
            files = {"file": file_part(Path(file), stack)}
            answer = await self._client.send(
                "POST", f"{prior_path(category)}/versions/import", data=fields, files=files
            )
        return self._client.read(VersionEntry, answer)


class AsyncLandmarkCalls:
    """Points of a user's own, told from the keypoints of a version. Reached as ``client.landmarks``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def fit(
        self,
        category: str,
        name: str,
        pictures: Sequence[str | os.PathLike[str]],
        labels: str | os.PathLike[str],
        version: str | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
    ) -> FittedLandmarks:
        """Fit landmarks on labelled pictures, 10 to 50 as a rule.

        Args:
            name: of the set; ``estimate`` takes it as ``landmarks``.
            pictures: files, and folders of them; of those in a folder the labels may name the folders below it too.
            labels: a CSV or COCO keypoints JSON file.
            boxes: where the thing is in each picture, as x, y, width, height in pixels; with files only.
        """
        named = list(_named(pictures))
        if boxes is not None and len(boxes) != len(named):
            raise InputError(f"{len(named)} pictures came with {len(boxes)} boxes; each picture needs one")
        fields = {"name": name, **({"version": version} if version else {})}
        if boxes is not None:
            fields["boxes"] = json.dumps([list(box) for box in boxes])
        with ExitStack() as stack:
            files: list[tuple[str, Any]] = [("labels", file_part(Path(labels), stack))]
            files += [("images", (told, file_part(path, stack)[1])) for told, path in named]
            answer = await self._client.send("POST", f"{prior_path(category)}/landmarks", data=fields, files=files)
        return self._client.read(FittedLandmarks, answer)

    async def list(self, category: str, version: str | None = None) -> AsyncIterator[LandmarksEntry]:
        """The sets of landmarks of a version, by name."""
        query = f"?version={quoted(version)}" if version else ""
        page = await self._client.send("GET", f"{prior_path(category)}/landmarks{query}")
        for item in self._client.read(LandmarksPage, page).items:
            yield item

    async def get(self, category: str, name: str, version: str | None = None) -> Landmarks:
        """A set of landmarks with its maps and errors."""
        return self._client.read(Landmarks, await self._one("GET", category, name, version))

    async def delete(self, category: str, name: str, version: str | None = None) -> None:
        """Delete a set of landmarks."""
        await self._one("DELETE", category, name, version)

    async def _one(self, method: str, category: str, name: str, version: str | None) -> httpx.Response:
        params = {"version": version} if version else None
        return await self._client.send(method, f"{prior_path(category)}/landmarks/{quoted(name)}", params=params)


def prior_path(category: str) -> str:
    """The address of a category's prior."""
    return f"/priors/{quoted(category)}"


def _alias_path(category: str, alias: str) -> str:
    return f"{prior_path(category)}/aliases/{quoted(alias)}"


def _named(pictures: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, Path]]:
    for path in map(Path, pictures):
        if path.is_dir():
            yield from ((found.relative_to(path).as_posix(), found) for found in pictures_in(path))
        else:
            yield path.name, path

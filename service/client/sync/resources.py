# Generated from service/client/aio/resources.py by service.client.generate: change it there.
"""Calls on datasets, versions, their aliases and their landmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.client.batches import boxes_field
from service.client.connection import OnProgress, api_path, given
from service.client.errors import APIError, InputError
from service.client.retries import new_idempotency_key
from service.client.types import (
    AliasEntry,
    CreatedDataset,
    Dataset,
    DatasetPicture,
    FittedLandmarks,
    Landmarks,
    LandmarksEntry,
    PriorDiff,
    VersionEntry,
)
from service.client.uploads import AnyPath, file_part, list_named_pictures, open_archive

from .concurrency import to_thread
from .transport import Transport


class CallGroup:
    """Base of the calls on one kind of resource."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport


class DatasetCalls(CallGroup):
    """Calls on datasets. Reached as ``client.datasets``."""

    def create(
        self,
        pictures: AnyPath | Sequence[AnyPath],
        name: str | None = None,
        mode: str | None = None,
        labels: AnyPath | None = None,
        boxes: AnyPath | None = None,
    ) -> CreatedDataset:
        """Upload a dataset and return it without waiting for its inspection.

        Args:
            pictures: a zip, tar or tar.gz, a video, a folder, or several files and folders; all but a single file
                are packed into a temporary one first.
            name: the file's name by default.
            mode: "stills" or "clips"; the server decides by the content by default.
            labels: a file of keypoints, as :meth:`train` takes; the dataset's jobs are evaluated with it.
            boxes: a file of boxes, as for :meth:`AsyncClient.train`; the dataset's jobs use them.
        """
        paths = [Path(pictures)] if isinstance(pictures, (str, os.PathLike)) else [Path(path) for path in pictures]
        if not paths:
            raise InputError("no pictures were given; give at least one file or folder")
        with ExitStack() as stack:
            files: dict[str, Any] = {"archive": to_thread(stack.enter_context, open_archive(paths))}
            for field, path in (("labels", labels), ("boxes", boxes)):
                if path is not None:
                    files[field] = file_part(path, stack)
            content = {"data": given(name=name, mode=mode), "files": files}
            return self._transport.request(CreatedDataset, "POST", "/datasets", **content)

    def get(self, dataset_id: str) -> Dataset:
        """Return a dataset and what its inspection has found so far."""
        return self._transport.request(Dataset, "GET", api_path("datasets", dataset_id))

    def list(self) -> Iterator[Dataset]:
        """Iterate over the datasets, newest first."""
        return self._transport.pages("/datasets", Dataset)

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset. The server refuses while a job that has not ended uses it."""
        self._transport.delete_path(api_path("datasets", dataset_id))

    def contact_sheet(self, dataset_id: str) -> bytes:
        """Return a JPEG of sample pictures; the dataset must be ready."""
        return (self._transport.send("GET", api_path("datasets", dataset_id, "contact-sheet"))).content

    def pictures(self, dataset_id: str) -> Iterator[DatasetPicture]:
        """Iterate over the pictures of a dataset, by number and name, in the upload's order."""
        return self._transport.pages(api_path("datasets", dataset_id, "pictures"), DatasetPicture)

    def picture(self, dataset_id: str, number: int) -> bytes:
        """Return a picture as JPEG of its own size, its EXIF orientation applied."""
        return (self._transport.send("GET", api_path("datasets", dataset_id, "pictures", str(number)))).content

    def frame(self, dataset_id: str, name: str) -> bytes:
        """Return a frame of a video as JPEG of its own size; ``name`` is as boxes name it, "walk.mp4#000012"."""
        path = api_path("datasets", dataset_id, "frame")
        return (self._transport.send("GET", path, params={"name": name})).content

    def wait(
        self,
        dataset_id: str,
        on_progress: OnProgress[Dataset] = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> Dataset:
        """Wait until a worker has inspected the dataset, whatever it found. Raises TimeoutError after ``timeout_s``."""
        path = api_path("datasets", dataset_id)
        return self._transport.poll(Dataset, path, on_progress, poll_s, timeout_s)


class AliasCalls(CallGroup):
    """Calls on aliases, the names that point to versions. Reached as ``client.aliases``."""

    def list(self, category: str) -> Iterator[AliasEntry]:
        """Iterate over the aliases: ``active`` first, then by name."""
        return self._transport.pages(api_path("priors", category, "aliases"), AliasEntry)

    def get(self, category: str, alias: str) -> AliasEntry:
        """Return an alias and its version."""
        return self._transport.request(AliasEntry, "GET", api_path("priors", category, "aliases", alias))

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
        content = {"json": {"version": version}, "headers": {"If-Match": f'"{expected}"'} if expected else {}}
        path = api_path("priors", category, "aliases", alias)
        try:
            return self._transport.request(AliasEntry, "PUT", path, **content)
        except APIError as error:
            if error.status == 412 and error.repeated and (now := self.get(category, alias)).version == version:
                return now  # moved by the attempt that had no response
            raise

    def delete(self, category: str, alias: str) -> None:
        """Remove an alias; its version stays. ``active`` can only be moved."""
        self._transport.delete_path(api_path("priors", category, "aliases", alias))


class VersionCalls(CallGroup):
    """Calls on the versions of a category. Reached as ``client.versions``."""

    def list(self, category: str) -> Iterator[VersionEntry]:
        """Iterate over the versions, newest first."""
        return self._transport.pages(api_path("priors", category, "versions"), VersionEntry)

    def delete(self, category: str, version: str) -> None:
        """Delete a version for good. The server refuses if an alias points to it."""
        self._transport.delete_path(api_path("priors", category, "versions", version))

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
        params = {"from": older, "to": newer, "match": match, **given(strong=strong)}
        return self._transport.request(PriorDiff, "GET", api_path("priors", category, "diff"), params=params)

    def export(self, category: str, version: str, to: AnyPath) -> Path:
        """Write a version into a file that another server can import.

        Args:
            version: a version or alias.
            to: the file; an older one is replaced once the download is complete.
        """
        return self._transport.download(api_path("priors", category, "versions", version, "export"), Path(to))

    def import_file(self, category: str, file: AnyPath, activate: bool | None = None) -> VersionEntry:
        """Create a version from a file that :meth:`export` wrote.

        Args:
            category: category of the new version; may differ from the exported one.
            activate: whether it becomes the active version; by default only if the category has none.
        """
        fields = {} if activate is None else {"activate": str(activate).lower()}
        with ExitStack() as stack:
            files = {"file": file_part(file, stack)}
            path = api_path("priors", category, "versions", "import")
            content = {"data": fields, "files": files, "headers": new_idempotency_key()}
            return self._transport.request(VersionEntry, "POST", path, **content)


class LandmarkCalls(CallGroup):
    """Calls on landmarks, user-defined points computed from a version's keypoints. Reached as ``client.landmarks``."""

    def fit(
        self,
        category: str,
        name: str,
        pictures: Sequence[AnyPath],
        labels: AnyPath,
        version: str | None = None,
        boxes: Sequence[Sequence[float]] | AnyPath | None = None,
        labels_fit: str | None = None,
    ) -> FittedLandmarks:
        """Fit landmarks on labelled pictures, typically 10 to 50.

        Args:
            name: name of the landmark set for ``estimate(landmarks=name)``.
            pictures: files and folders; labels name the pictures of a folder by their path below it.
            labels: a file of CSV, DeepLabCut, SLEAP, Label Studio or COCO.
            boxes: the object in each picture as x, y, width, height in pixels, if all pictures are files; or a file
                of boxes.
            labels_fit: "scale" scales labels that state another size of their pictures, of the same aspect ratio, and
                turns those of the stored picture as its EXIF says; "exact" (the default) refuses them.
        """
        named = list_named_pictures(pictures)
        if isinstance(boxes, Sequence) and not isinstance(boxes, str) and len(boxes) != len(named):
            raise InputError(f"{len(named)} pictures came with {len(boxes)} boxes; each picture needs one")
        fields = {"name": name, **given(version=version, labels_fit=labels_fit), **boxes_field(boxes)}
        with ExitStack() as stack:
            files: list[tuple[str, Any]] = [("labels", file_part(labels, stack))]
            files += [("images", (shown, file_part(path, stack)[1])) for shown, path in named]
            path = api_path("priors", category, "landmarks")
            content = {"data": fields, "files": files, "headers": new_idempotency_key()}
            return self._transport.request(FittedLandmarks, "POST", path, **content)

    def list(self, category: str, version: str | None = None) -> Iterator[LandmarksEntry]:
        """Iterate over the landmark sets of a version by name."""
        return self._transport.pages(api_path("priors", category, "landmarks"), LandmarksEntry, given(version=version))

    def get(self, category: str, name: str, version: str | None = None) -> Landmarks:
        """Return a landmark set with its maps and errors."""
        path = api_path("priors", category, "landmarks", name)
        return self._transport.request(Landmarks, "GET", path, params=given(version=version))

    def delete(self, category: str, name: str, version: str | None = None) -> None:
        """Delete a landmark set."""
        path = api_path("priors", category, "landmarks", name)
        self._transport.delete_path(path, params=given(version=version))

# Generated from service/client/aio/datasets.py by service.client.generate: change it there.
"""Calls on datasets: pictures that are uploaded once and trained on many times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.client.connection import api_path
from service.client.errors import InputError
from service.client.types import CreatedDataset, Dataset
from service.client.uploads import AnyPath, file_part, open_archive

from .concurrency import to_thread
from .transport import CallGroup


class DatasetCalls(CallGroup):
    """Calls on datasets. Reached as ``client.datasets``."""

    def create(
        self,
        pictures: AnyPath | Sequence[AnyPath],
        name: str | None = None,
        mode: str | None = None,
        labels: AnyPath | None = None,
    ) -> CreatedDataset:
        """Upload a dataset and return it without waiting for its inspection.

        Args:
            pictures: a zip, tar or tar.gz, a video, a folder, or several files and folders; all but a single file
                are packed into a temporary one first.
            name: the file's name by default.
            mode: "stills" or "clips"; the server decides by the content by default.
            labels: a CSV or COCO JSON file of keypoints; the dataset's jobs are evaluated with it.
        """
        paths = [Path(pictures)] if isinstance(pictures, (str, os.PathLike)) else [Path(path) for path in pictures]
        if not paths:
            raise InputError("no pictures were given; give at least one file or folder")
        fields = {field: value for field, value in (("name", name), ("mode", mode)) if value}
        with ExitStack() as stack:
            files: dict[str, Any] = {"archive": to_thread(stack.enter_context, open_archive(paths))}
            if labels is not None:
                files["labels"] = file_part(labels, stack)
            return self._transport.request(CreatedDataset, "POST", "/datasets", data=fields, files=files)

    def get(self, dataset_id: str) -> Dataset:
        """Return a dataset and what its inspection has found so far."""
        return self._transport.request(Dataset, "GET", api_path("datasets", dataset_id))

    def list(self) -> Iterator[Dataset]:
        """Iterate over the datasets, newest first."""
        return self._transport.pages("/datasets", Dataset)

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset. The server refuses while a job that has not ended uses it."""
        self._transport.send("DELETE", api_path("datasets", dataset_id))

    def contact_sheet(self, dataset_id: str) -> bytes:
        """Return a JPEG of sample pictures; the dataset must be ready."""
        return (self._transport.send("GET", api_path("datasets", dataset_id, "contact-sheet"))).content

    def wait(
        self,
        dataset_id: str,
        on_progress: Callable[[Dataset], object] | None = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> Dataset:
        """Wait until a worker has inspected the dataset, whatever it found, and return it.

        Raises:
            TimeoutError: the inspection has not ended after ``timeout_s``.
        """
        path = api_path("datasets", dataset_id)
        return self._transport.poll(Dataset, path, lambda it: it.status.ended, on_progress, poll_s, timeout_s)

"""The client's calls about datasets: pictures sent once, and trained from as often as wanted.

dataset = await ppl.datasets.wait((await ppl.datasets.create("photos/birds", name="garden")).id)
print(dataset.found.pictures, dataset.found.skipped_files)
job = await ppl.train("bird", dataset=dataset.id)
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client.errors import InputError
from service.client.paths import quoted
from service.client.types import CreatedDataset, Dataset, DatasetStatus
from service.client.uploads import archive_of_all, file_part

from .concurrency import in_thread, sleep

if TYPE_CHECKING:
    from .client import AsyncClient

AnyPath = str | os.PathLike[str]


class AsyncDatasetCalls:
    """Pictures that are kept. Reached as ``client.datasets``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        pictures: AnyPath | Sequence[AnyPath],
        name: str | None = None,
        mode: str | None = None,
        labels: AnyPath | None = None,
    ) -> CreatedDataset:
        """Send a dataset; returns it without waiting for what is found in it.

        Args:
            pictures: a zip, tar or tar.gz, a video, a folder, or several files and folders; all but a file by itself
                are packed into a temporary one first.
            name: what to call it; the file's name where None.
            mode: "stills" or "clips"; by what came where None.
            labels: a CSV or COCO JSON file of keypoints; the jobs of the dataset are measured by it.
        """
        paths = [Path(pictures)] if isinstance(pictures, (str, os.PathLike)) else [Path(path) for path in pictures]
        if not paths:
            raise InputError("no pictures were named")
        given = {"name": name, "mode": mode}
        with ExitStack() as stack:
            files: dict[str, Any] = {"archive": await in_thread(stack.enter_context, archive_of_all(paths))}
            if labels is not None:
                files["labels"] = file_part(Path(labels), stack)
            fields = {field: value for field, value in given.items() if value}
            answer = await self._client.send("POST", "/datasets", data=fields, files=files)
        return self._client.read(CreatedDataset, answer)

    async def get(self, dataset_id: str) -> Dataset:
        """A dataset, and what was found in it so far."""
        return self._client.read(Dataset, await self._client.send("GET", _path(dataset_id)))

    def list(self) -> AsyncIterator[Dataset]:
        """The newest first."""
        return self._client.pages("/datasets", Dataset)

    async def delete(self, dataset_id: str) -> None:
        """Delete a dataset for good; one that a job uses which has not ended is refused."""
        await self._client.send("DELETE", _path(dataset_id))

    async def contact_sheet(self, dataset_id: str) -> bytes:
        """A JPEG of pictures spread over the dataset, once it is ready."""
        return (await self._client.send("GET", f"{_path(dataset_id)}/contact-sheet")).content

    async def wait(
        self,
        dataset_id: str,
        on_progress: Callable[[Dataset], object] = lambda dataset: None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> Dataset:
        """Wait until a worker has looked into a dataset, whatever it found, and return it.

        Raises:
            TimeoutError: it is still looked into after ``timeout_s``.
        """
        begun = time.monotonic()
        while True:
            dataset = await self.get(dataset_id)
            on_progress(dataset)
            if dataset.status is not DatasetStatus.INSPECTING:
                return dataset
            if timeout_s is not None and time.monotonic() - begun > timeout_s:
                raise TimeoutError(f"dataset {dataset_id} is not looked through after {timeout_s:g} s")
            await sleep(poll_s)


def _path(dataset_id: str) -> str:
    return f"/datasets/{quoted(dataset_id)}"

"""``ppl datasets``: send pictures once, see what is in them, train from them as often as wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.client.types import Dataset, DatasetStatus

from .options import URL, AsJson, Url, write_file
from .output import console as output
from .output import datasets as shown

datasets = typer.Typer(name="datasets", help="Pictures kept to train from, and what is in them.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the dataset.")]


@datasets.command("create")
def create_dataset(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="A folder, zip, tar, tar.gz or video; or several files and folders."),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it; the file's name by default.")] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="stills, or clips: each video and each folder is one.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Keypoints of some of the pictures, CSV or COCO JSON: to measure by.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write its contact sheet, a JPEG, to this file.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait for what is found in it.")] = True,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Send pictures and show what was found in them."""
    with output.errors_shown(as_json), Client(url) as client:
        created = client.datasets.create(paths, name, mode, labels)
        if created.already_there and not as_json:
            output.out.print("these very bytes were there already; nothing was added")
        dataset: Dataset = created
        if wait or sheet:
            dataset = _wait(client, created.id, as_json)
        if sheet and dataset.status is DatasetStatus.READY:
            write_file(sheet, client.datasets.contact_sheet(created.id))
        if as_json:
            output.print_json(dataset.model_dump(mode="json") | {"already_there": created.already_there})
        else:
            shown.show_dataset(dataset)
        if dataset.status is DatasetStatus.FAILED:
            raise typer.Exit(1)


@datasets.command("list")
def list_datasets(url: Url = URL, as_json: AsJson = False) -> None:
    """List the datasets, the newest first."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.datasets.list())
        if as_json:
            output.print_json({"items": [dataset.model_dump(mode="json") for dataset in found], "next_cursor": None})
        else:
            shown.show_datasets(found)


@datasets.command("show")
def show_dataset(dataset_id: DatasetId, url: Url = URL, as_json: AsJson = False) -> None:
    """Show what was found in a dataset."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.datasets.get(dataset_id)
        if as_json:
            output.print_json(found.model_dump(mode="json"))
        else:
            shown.show_dataset(found)


@datasets.command("delete")
def delete_dataset(dataset_id: DatasetId, url: Url = URL, as_json: AsJson = False) -> None:
    """Delete a dataset for good; versions trained from it stay."""
    with output.errors_shown(as_json), Client(url) as client:
        client.datasets.delete(dataset_id)
        output.show_done({"deleted": dataset_id}, f"deleted: dataset {dataset_id}", as_json)


@datasets.command("sheet")
def write_sheet(
    dataset_id: DatasetId,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file; DATASET.jpg by default.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Write a picture of pictures that are spread over a dataset."""
    with output.errors_shown(as_json), Client(url) as client:
        path = out or Path(f"{dataset_id}.jpg")
        write_file(path, client.datasets.contact_sheet(dataset_id))
        output.show_done({"dataset": dataset_id, "file": str(path)}, f"written: {path}", as_json)


def _wait(client: Client, dataset_id: str, as_json: bool) -> Dataset:
    if as_json:
        return client.datasets.wait(dataset_id)

    def told(dataset: Dataset) -> str:
        seen = dataset.found.pictures + dataset.found.videos + dataset.found.skipped
        return f"looking into {dataset_id}: {seen} of {dataset.files} files"

    try:
        with output.out.status(f"looking into {dataset_id}") as status:
            return client.datasets.wait(dataset_id, lambda dataset: status.update(told(dataset)))
    except KeyboardInterrupt:
        output.out.print(f"the looking goes on. `ppl datasets show {dataset_id}` shows what was found.")
        raise typer.Exit(130) from None

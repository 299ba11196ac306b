"""``ppl datasets``: upload pictures once, inspect them, train on them many times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.client.types import Dataset, DatasetStatus

from .options import URL, AsJson, Url
from .output import console as output
from .output import datasets as text

datasets = typer.Typer(name="datasets", help="Uploaded pictures to train on.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the dataset.")]


@datasets.command("create")
def create_dataset(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="A folder, zip, tar, tar.gz or video; or several files and folders."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the dataset; the file's name by default.")] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="stills, or clips: each video and each folder is one.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Keypoints of some of the pictures, CSV or COCO JSON, for evaluation.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the contact sheet, a JPEG, to this file.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait for the inspection.")] = True,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Upload pictures and show what the inspection finds."""
    with output.connect(url, as_json) as client:
        created = client.datasets.create(paths, name, mode, labels)
        if created.already_there and not as_json:
            output.out.print("a dataset with the same bytes exists already; nothing was added")
        dataset: Dataset = created
        if wait or sheet:
            dataset = _wait(client, created.id, as_json)
        if sheet and dataset.status is DatasetStatus.READY:
            output.write_file(sheet, client.datasets.contact_sheet(created.id))
        if as_json:
            output.print_json(output.to_json(dataset) | {"already_there": created.already_there})
        else:
            text.show_dataset(dataset)
        if dataset.status is DatasetStatus.FAILED:
            raise typer.Exit(1)


@datasets.command("list")
def list_datasets(url: Url = URL, as_json: AsJson = False) -> None:
    """List the datasets, newest first."""
    with output.connect(url, as_json) as client:
        output.show_list(client.datasets.list(), as_json, text.show_datasets)


@datasets.command("show")
def show_dataset(dataset_id: DatasetId, url: Url = URL, as_json: AsJson = False) -> None:
    """Show what the inspection of a dataset found."""
    with output.connect(url, as_json) as client:
        output.show(client.datasets.get(dataset_id), as_json, text.show_dataset)


@datasets.command("delete")
def delete_dataset(dataset_id: DatasetId, url: Url = URL, as_json: AsJson = False) -> None:
    """Delete a dataset for good; versions trained on it stay."""
    with output.connect(url, as_json) as client:
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
    """Write the contact sheet, a JPEG of sample pictures."""
    with output.connect(url, as_json) as client:
        path = output.write_file(out or Path(f"{dataset_id}.jpg"), client.datasets.contact_sheet(dataset_id))
        output.show_done({"dataset": dataset_id, "file": str(path)}, f"written: {path}", as_json)


def _wait(client: Client, dataset_id: str, as_json: bool) -> Dataset:
    if as_json:
        return client.datasets.wait(dataset_id)

    def describe(dataset: Dataset) -> str:
        seen = dataset.found.pictures + dataset.found.videos + dataset.found.skipped
        return f"inspecting {dataset_id}: {seen} of {dataset.files} files"

    try:
        with output.out.status(f"inspecting {dataset_id}") as status:
            return client.datasets.wait(dataset_id, lambda dataset: status.update(describe(dataset)))
    except KeyboardInterrupt:
        output.out.print(f"the inspection continues; `ppl datasets show {dataset_id}` shows its result")
        raise typer.Exit(130) from None

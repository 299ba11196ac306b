"""``ppl datasets``: upload pictures once, inspect them, train on them many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.text import Text

from service.client.types import Dataset, DatasetPicture, DatasetStatus, MotionFound

from .commands import Commands, Session
from .console import duration, out, print_json, print_table, print_warnings, to_json, write_file

datasets = Commands(name="datasets", help="Uploaded pictures to train on.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the dataset.")]

_COLOURS = {DatasetStatus.READY: "green", DatasetStatus.FAILED: "red", DatasetStatus.INSPECTING: "cyan"}
_BAR = 40  # characters of the longest bar


@datasets.command("create")
def create_dataset(
    session: Session,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="A folder, zip, tar, tar.gz or video; or several files and folders."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the dataset; the file's name by default.")] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="stills, or clips: each video and each folder is one.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Keypoints of some pictures for evaluation: CSV, DeepLabCut, SLEAP, Label Studio, COCO."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Where the thing is in each picture: CSV, COCO or MegaDetector's JSON.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the contact sheet, a JPEG, to this file.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait for the inspection.")] = True,
) -> None:
    """Upload pictures and show what the inspection finds."""
    client = session.client
    created = client.datasets.create(paths, name, mode, labels, boxes)
    if created.already_there and not session.as_json:
        out.print("a dataset with the same bytes exists already; nothing was added")
    dataset = _wait(session, created.id) if wait or sheet else created
    if sheet and dataset.status is DatasetStatus.READY:
        write_file(sheet, client.datasets.contact_sheet(created.id))
    if session.as_json:
        print_json(to_json(dataset) | {"already_there": created.already_there})
    else:
        print_dataset(dataset)
    if dataset.status is DatasetStatus.FAILED:
        raise typer.Exit(1)


@datasets.command("list")
def list_datasets(session: Session) -> None:
    """List the datasets, newest first."""
    session.show_list(session.client.datasets.list(), print_datasets)


@datasets.command("show")
def show_dataset(session: Session, dataset_id: DatasetId) -> None:
    """Show what the inspection of a dataset found."""
    session.show(session.client.datasets.get(dataset_id), print_dataset)


@datasets.command("delete")
def delete_dataset(session: Session, dataset_id: DatasetId) -> None:
    """Delete a dataset for good; versions trained on it stay."""
    session.client.datasets.delete(dataset_id)
    session.show_done({"deleted": dataset_id}, f"deleted: dataset {dataset_id}")


@datasets.command("sheet")
def write_sheet(
    session: Session,
    dataset_id: DatasetId,
    file: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file; DATASET.jpg by default.")
    ] = None,
) -> None:
    """Write the contact sheet, a JPEG of sample pictures."""
    path = write_file(file or Path(f"{dataset_id}.jpg"), session.client.datasets.contact_sheet(dataset_id))
    session.show_done({"dataset": dataset_id, "file": str(path)}, f"written: {path}")


@datasets.command("pictures")
def list_pictures(
    session: Session,
    dataset_id: DatasetId,
    number: Annotated[
        int | None, typer.Option(min=0, help="Write the picture of this number to a file, as JPEG.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write this frame of a video instead, such as walk.mp4#000012.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="NUMBER.jpg or frame.jpg by default.")
    ] = None,
) -> None:
    """List the pictures of a dataset by number, or write one of them, or a frame of a video."""
    calls = session.client.datasets
    if frame is not None:
        path = write_file(file or Path("frame.jpg"), calls.frame(dataset_id, frame))
    elif number is not None:
        path = write_file(file or Path(f"{number}.jpg"), calls.picture(dataset_id, number))
    else:
        session.show_list(calls.pictures(dataset_id), print_pictures)
        return
    session.show_done({"dataset": dataset_id, "file": str(path)}, f"written: {path}")


def print_pictures(pictures: Iterable[DatasetPicture]) -> None:
    """Print pictures as a table."""
    print_table(("number", "name"), ((it.number, it.name) for it in pictures), if_empty="no pictures, only videos")


def print_dataset(dataset: Dataset) -> None:
    """Print a dataset and what its inspection found."""
    name = f"  {escape(dataset.name)}" if dataset.name else ""
    out.print(f"dataset {dataset.id}  [{_COLOURS[dataset.status]}]{dataset.status}[/]{name}")
    if dataset.error:
        out.print(f"  [red]{escape(dataset.error.detail)}[/] [dim]({dataset.error.code})[/]")
    findings = list(_findings(dataset))
    width = max(len(label) for label, _ in findings)
    for label, finding in findings:
        out.print(f"  [dim]{label:<{width}}[/]  {escape(finding)}")
    found = dataset.found
    for label, count, lines in (
        ("left out", found.skipped, [f"{item.name}: {item.reason}" for item in found.skipped_files]),
        ("there twice", found.duplicates, [f"{item.name} = {item.same_as}" for item in found.duplicate_files]),
    ):
        for line in lines:
            out.print(f"  {label}: {escape(line)}")
        if count > len(lines):
            out.print(f"  {label}: {count - len(lines)} more")
    print_warnings(found.warnings)
    if dataset.status is DatasetStatus.READY:
        out.print(f"look at it:  ppl datasets sheet {dataset.id}")
        out.print(f"train on it: ppl train CATEGORY --dataset {dataset.id}")
    if dataset.step_s:
        out.print(f"a thousand steps of training take about {duration(1000 * dataset.step_s)}")


def print_datasets(datasets: Iterable[Dataset]) -> None:
    """Print datasets as a table."""
    columns = ("dataset", "name", "created", "status", "mode", "pictures", "clips", "left out", "size")
    rows = []
    for it in datasets:
        found, created = it.found, it.created_at[:16].replace("T", " ")
        status, size = Text(it.status, style=_COLOURS[it.status]), _size(it.size_bytes)
        counts = found.pictures, found.clips or found.videos, found.skipped
        rows.append((it.id, it.name, created, status, it.mode, *counts, size))
    print_table(columns, rows, if_empty="no datasets yet; `ppl datasets create` uploads one")


def _findings(dataset: Dataset) -> Iterator[tuple[str, str]]:
    found = dataset.found
    yield "taken for", f"{dataset.mode}, {dataset.files} files, {_size(dataset.size_bytes)}"
    formats = ", ".join(f"{count} {name}" for name, count in found.formats.items())
    yield "pictures", f"{found.pictures} ({formats})" if formats else str(found.pictures)
    if found.videos:
        yield "videos", str(found.videos)
    if dataset.mode == "clips":
        yield "clips", str(found.clips)
    if found.labels:
        held_out = f", {found.labels.held_out} of them held out" if found.labels.held_out is not None else ""
        yield "labelled", f"{found.labels.pictures}{held_out}"
    if dataset.boxes:
        yield "boxes", "yes"
    if found.motion:
        yield "by motion", _describe_motion(found.motion)
    yield "left out", str(found.skipped)
    yield "there twice", str(found.duplicates)
    if found.sizes:
        for word in ("smallest", "median", "largest"):
            width, height = getattr(found.sizes, word)
            yield word, f"{width} x {height}"
        most = max(group.count for group in found.sizes.by_shorter_side)
        for group in found.sizes.by_shorter_side:
            bar = "▇" * max(1, round(_BAR * group.count / most))
            yield f"{group.from_px}-{group.below_px - 1} px", f"{bar} {group.count}"


def _describe_motion(motion: MotionFound) -> str:
    if motion.sure:
        return f"found in {motion.found} of {motion.frames} frames, {motion.side_px:g} px wide; training crops to it"
    why = f" ({motion.note})" if motion.note else ""
    return f"nothing found surely in {motion.frames} frames{why}"


def _size(count: int) -> str:
    size, units = float(count), ["GiB", "MiB", "KiB", "bytes"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.3g} {units[-1]}"


def _wait(session: Session, dataset_id: str) -> Dataset:
    if session.as_json:
        return session.client.datasets.wait(dataset_id)

    def describe(dataset: Dataset) -> str:
        seen = dataset.found.pictures + dataset.found.videos + dataset.found.skipped
        return f"inspecting {dataset_id}: {seen} of {dataset.files} files"

    try:
        with out.status(f"inspecting {dataset_id}") as status:
            return session.client.datasets.wait(dataset_id, lambda dataset: status.update(describe(dataset)))
    except KeyboardInterrupt:
        out.print(f"the inspection continues; `ppl datasets show {dataset_id}` shows its result")
        raise typer.Exit(130) from None

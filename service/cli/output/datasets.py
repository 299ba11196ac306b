"""Text output of datasets."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from service.client.types import Dataset, DatasetStatus

from .console import make_table, out, print_table

_COLOURS = {DatasetStatus.READY: "green", DatasetStatus.FAILED: "red", DatasetStatus.INSPECTING: "cyan"}
_BAR = 40  # characters of the longest bar
_UNITS = ("bytes", "KiB", "MiB", "GiB")


def show_dataset(dataset: Dataset) -> None:
    """Print a dataset and what its inspection found."""
    name = f"  {escape(dataset.name)}" if dataset.name else ""
    out.print(f"dataset {dataset.id}  [{_COLOURS[dataset.status]}]{dataset.status}[/]{name}")
    if dataset.error:
        out.print(f"  [red]{escape(dataset.error.detail)}[/] [dim]({dataset.error.code})[/]")
    print_table(_findings(dataset))
    found = dataset.found
    for label, count, lines in (
        ("left out", found.skipped, [f"{item.name}: {item.reason}" for item in found.skipped_files]),
        ("there twice", found.duplicates, [f"{item.name} = {item.same_as}" for item in found.duplicate_files]),
    ):
        for line in lines:
            out.print(f"  {label}: {escape(line)}")
        if count > len(lines):
            out.print(f"  {label}: {count - len(lines)} more")
    if dataset.status is DatasetStatus.READY:
        out.print(f"look at it:  ppl datasets sheet {dataset.id}")
        out.print(f"train on it: ppl train CATEGORY --dataset {dataset.id}")


def show_datasets(datasets: Iterable[Dataset]) -> None:
    """Print datasets as a table."""
    table = make_table("dataset", "name", "created", "status", "mode", "pictures", "clips", "left out", "size")
    for dataset in datasets:
        found, created = dataset.found, dataset.created_at[:16].replace("T", " ")
        counts = map(str, (found.pictures, found.clips or found.videos, found.skipped))
        status = f"[{_COLOURS[dataset.status]}]{dataset.status}[/]"
        size = _size(dataset.size_bytes)
        table.add_row(dataset.id, escape(dataset.name or ""), created, status, dataset.mode, *counts, size)
    print_table(table, if_empty="no datasets yet; `ppl datasets create` uploads one")


def _findings(dataset: Dataset) -> Table:
    found = dataset.found
    table = make_table("", "", header=False)
    table.columns[0].style = "dim"
    table.add_row("  taken for", f"{dataset.mode}, {dataset.files} files, {_size(dataset.size_bytes)}")
    table.add_row("  pictures", f"{found.pictures}{_formats(found.formats)}")
    if found.videos:
        table.add_row("  videos", str(found.videos))
    if dataset.mode == "clips":
        table.add_row("  clips", str(found.clips))
    if found.labels:
        held_out = f", {found.labels.held_out} of them held out" if found.labels.held_out is not None else ""
        table.add_row("  labelled", f"{found.labels.pictures}{held_out}")
    table.add_row("  left out", str(found.skipped))
    table.add_row("  there twice", str(found.duplicates))
    if found.sizes:
        for word in ("smallest", "median", "largest"):
            width, height = getattr(found.sizes, word)
            table.add_row(f"  {word}", f"{width} x {height}")
        most = max(group.count for group in found.sizes.by_shorter_side)
        for group in found.sizes.by_shorter_side:
            bar = "▇" * max(1, round(_BAR * group.count / most))
            table.add_row(f"  {group.from_px}-{group.below_px - 1} px", f"{bar} {group.count}")
    return table


def _formats(formats: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {name}' for name, count in formats.items())})" if formats else ""


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"

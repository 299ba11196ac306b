"""``ppl estimates``: estimates that are worked on in the background."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from service.client import Client, InputError
from service.client.types import BackgroundEstimate, EstimateStatus

from .options import URL, AsJson, Url
from .output import console as output

estimates = typer.Typer(name="estimates", help="Estimates in the background.", no_args_is_help=True)

EstimateId = Annotated[str, typer.Argument(metavar="ID", help="Id of the estimate.")]


@estimates.command("list")
def list_estimates(url: Url = URL, as_json: AsJson = False) -> None:
    """List the estimates in the background that are kept, the newest first."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.estimates())
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
            return
        table = Table("id", "status", "category", "done", "of", "failed", "created")
        for item in found:
            total = "" if item.progress.total is None else str(item.progress.total)
            created = item.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
            done, failed = str(item.progress.done), str(item.progress.failed)
            table.add_row(item.id, str(item.status), item.category, done, total, failed, created)
        output.tables.print(table)


@estimates.command("show")
def show_estimate(
    estimate_id: EstimateId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for the end, and print the poses.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the poses to this file.")] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show an estimate in the background; with --follow or --out its poses."""
    with output.errors_shown(as_json), Client(url) as client:
        if follow or out:
            finish(client, estimate_id, as_json, out)
            return
        found = client.estimate_job(estimate_id)
        if as_json:
            output.print_json(found)
        else:
            show_background(found, False)


@estimates.command("cancel")
def cancel_estimate(estimate_id: EstimateId, url: Url = URL, as_json: AsJson = False) -> None:
    """Stop an estimate in the background."""
    with output.errors_shown(as_json), Client(url) as client:
        show_background(client.cancel_estimate(estimate_id), as_json)


@estimates.command("delete")
def delete_estimate(estimate_id: EstimateId, url: Url = URL, as_json: AsJson = False) -> None:
    """Remove an estimate that ended, with its result."""
    with output.errors_shown(as_json), Client(url) as client:
        client.delete_estimate(estimate_id)
        output.show_done({"deleted": estimate_id}, f"deleted: {estimate_id}", as_json)


def show_background(found: BackgroundEstimate, as_json: bool) -> None:
    """One fact a line."""
    if as_json:
        output.print_json(found)
        return
    progress = found.progress
    of = "" if progress.total is None else f" of {progress.total}"
    failed = f", {progress.failed} gave no pose" if progress.failed else ""
    output.out.print(f"estimate {found.id}  {found.status}  category {found.category}, version {found.version}")
    output.out.print(f"  {progress.done}{of} pictures{failed}")
    if found.error:
        output.out.print(f"  [red]{escape(found.error.detail)}[/] [dim]({found.error.code})[/]")


def finish(client: Client, estimate_id: str, as_json: bool, out: Path | None = None) -> None:
    """Wait for the end, and print or write the poses; exit code 1 where some picture gave none, which stderr tells."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=output.err, disable=as_json or not output.err.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)

        def show(found: BackgroundEstimate) -> None:
            progress = found.progress
            bar.update(task, description=str(found.status), completed=progress.done, total=progress.total)

        found = client.wait_estimate(estimate_id, show)
    if found.status is not EstimateStatus.SUCCEEDED:
        show_background(found, as_json)
        raise typer.Exit(1)
    poses = client.estimate_result(estimate_id)
    if out is not None:
        try:
            out.write_bytes(poses)
        except OSError as error:
            raise InputError(f"can't write {out}: {error.strerror}") from error
        output.show_done({"id": estimate_id, "written": str(out)}, f"written: {out}", as_json)
    else:
        sys.stdout.write(poses.decode() + ("" if poses.endswith(b"\n") else "\n"))
    errors = (found.result.errors if found.result else found.errors) or []
    for told in errors:
        if as_json:
            output.fail(told.model_dump(mode="json", exclude_none=True), as_json)
        else:
            output.err.print(f"[red]{escape(told.detail)}[/]")
    if errors:
        raise typer.Exit(1)

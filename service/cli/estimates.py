"""``ppl estimates``: estimates in the background."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.client import Client
from service.client.types import BackgroundEstimate, EstimateStatus

from .options import URL, AsJson, Url
from .output import console as output
from .output.estimates import show_background, show_background_list

estimates = typer.Typer(name="estimates", help="Estimates in the background.", no_args_is_help=True)

EstimateId = Annotated[str, typer.Argument(metavar="ID", help="Id of the estimate.")]


@estimates.command("list")
def list_estimates(url: Url = URL, as_json: AsJson = False) -> None:
    """List the estimates in the background, newest first."""
    with output.connect(url, as_json) as client:
        output.show_list(client.estimates(), as_json, show_background_list)


@estimates.command("show")
def show_estimate(
    estimate_id: EstimateId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for the end, and print the poses.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the poses to this file.")] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show an estimate in the background; with --follow or --out its poses."""
    with output.connect(url, as_json) as client:
        if follow or out:
            finish(client, estimate_id, as_json, out)
        else:
            output.show(client.estimate_job(estimate_id), as_json, show_background)


@estimates.command("cancel")
def cancel_estimate(estimate_id: EstimateId, url: Url = URL, as_json: AsJson = False) -> None:
    """Stop an estimate in the background."""
    with output.connect(url, as_json) as client:
        output.show(client.cancel_estimate(estimate_id), as_json, show_background)


@estimates.command("delete")
def delete_estimate(estimate_id: EstimateId, url: Url = URL, as_json: AsJson = False) -> None:
    """Delete an estimate that has ended, with its result."""
    with output.connect(url, as_json) as client:
        client.delete_estimate(estimate_id)
        output.show_done({"deleted": estimate_id}, f"deleted: {estimate_id}", as_json)


def finish(client: Client, estimate_id: str, as_json: bool, out: Path | None = None) -> None:
    """Wait for the end of an estimate, then print or write its poses.

    Raises:
        typer.Exit: with code 1 if it or any of its pictures failed; the errors are printed on stderr.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=output.err, disable=as_json or not output.err.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)

        def update_bar(estimate: BackgroundEstimate) -> None:
            progress = estimate.progress
            bar.update(task, description=str(estimate.status), completed=progress.done, total=progress.total)

        estimate = client.wait_estimate(estimate_id, update_bar)
    if estimate.status is not EstimateStatus.SUCCEEDED:
        output.show(estimate, as_json, show_background)
        raise typer.Exit(1)
    poses = client.estimate_result(estimate_id)
    if out is not None:
        output.write_file(out, poses)
        output.show_done({"id": estimate_id, "written": str(out)}, f"written: {out}", as_json)
    else:
        sys.stdout.write(poses.decode() + ("" if poses.endswith(b"\n") else "\n"))
    errors = (estimate.result.errors if estimate.result else estimate.errors) or []
    for error in errors:
        if as_json:
            output.fail(error.model_dump(mode="json", exclude_none=True), as_json)
        else:
            output.err.print(f"[red]{escape(error.detail)}[/]")
    if errors:
        raise typer.Exit(1)

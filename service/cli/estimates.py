"""``ppl estimates``: estimates in the background."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from service.client.types import BackgroundEstimate, EstimateStatus, EstimateWithResult

from .commands import Commands, Session
from .console import counting_bar, err, fail, make_problem, out, print_table

estimates = Commands(name="estimates", help="Estimates in the background.", no_args_is_help=True)

EstimateId = Annotated[str, typer.Argument(metavar="ID", help="Id of the estimate.")]


@estimates.command("list")
def list_estimates(session: Session) -> None:
    """List the estimates in the background, newest first."""
    session.show_list(session.client.estimates(), _print_all)


@estimates.command("show")
def show_estimate(
    session: Session,
    estimate_id: EstimateId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for the end, and print the poses.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the poses to this file.")] = None,
) -> None:
    """Show an estimate in the background; with --follow or --out its poses."""
    if follow or out:
        finish(session, estimate_id, out)
    else:
        session.show(session.client.estimate_job(estimate_id), print_background)


@estimates.command("cancel")
def cancel_estimate(session: Session, estimate_id: EstimateId) -> None:
    """Stop an estimate in the background."""
    session.show(session.client.cancel_estimate(estimate_id), print_background)


@estimates.command("delete")
def delete_estimate(session: Session, estimate_id: EstimateId) -> None:
    """Delete an estimate that has ended, with its result."""
    session.client.delete_estimate(estimate_id)
    session.show_done({"deleted": estimate_id}, f"deleted: {estimate_id}")


def finish(
    session: Session,
    estimate_id: str,
    file: Path | None = None,
    overlay: Path | None = None,
    *,
    prints: bool = True,
) -> None:
    """Wait for the end of an estimate, then print or write its poses.

    Args:
        overlay: where to write the video with its poses drawn.
        prints: whether to print the poses if they are not written to a file.

    Raises:
        typer.Exit: with code 1 if it or any of its pictures failed; the errors are printed on stderr.
    """
    estimate = wait(session, estimate_id)
    if overlay is not None and estimate.overlay_url:
        session.client.save_estimate(estimate_id, overlay, "overlay")
        err.print(f"written: {escape(str(overlay))}")
    if file is not None:
        session.client.save_estimate(estimate_id, file)
        if estimate.raw_url:  # the table has no place for the poses without smoothing
            raw = file.with_stem(f"{file.stem}_raw")
            session.client.save_estimate(estimate_id, raw, "raw")
            err.print(f"written: {escape(str(raw))}")
        session.show_done({"id": estimate_id, "written": str(file)}, f"written: {file}")
    elif prints:
        last = b""
        for last in session.client.stream_estimate(estimate_id):
            sys.stdout.buffer.write(last)
        sys.stdout.buffer.write(b"" if last.endswith(b"\n") or estimate.format == "slp" else b"\n")
        sys.stdout.flush()
    errors = (estimate.result.errors if estimate.result else estimate.errors) or []
    for error in errors:
        if session.as_json:
            fail(error.model_dump(mode="json", exclude_none=True), as_json=True)
        else:
            err.print(f"[red]{escape(error.detail)}[/]")
    if errors:
        raise typer.Exit(1)


def wait(session: Session, estimate_id: str) -> EstimateWithResult:
    """Wait until an estimate has succeeded.

    Raises:
        typer.Exit: it failed or was cancelled; said on stderr, as stdout may be the user's file of poses.
    """
    with counting_bar("waiting", quiet=session.as_json) as update:

        def show(estimate: BackgroundEstimate) -> None:
            progress = estimate.progress
            update(description=str(estimate.status), completed=progress.done, total=progress.total)

        estimate = session.client.wait_estimate(estimate_id, show)
    if estimate.error:
        raise fail(estimate.error.model_dump(mode="json", exclude_none=True), session.as_json)
    if estimate.status is not EstimateStatus.SUCCEEDED:
        raise fail(make_problem("cancelled", f"estimate {estimate_id} was {estimate.status}"), session.as_json)
    return estimate


def print_background(estimate: BackgroundEstimate) -> None:
    """Print an estimate in the background, one fact per line."""
    progress = estimate.progress
    total = "" if progress.total is None else f" of {progress.total}"
    failed = f", {progress.failed} failed" if progress.failed else ""
    where = f"category {estimate.category}, version {estimate.version}"
    out.print(f"estimate {estimate.id}  {estimate.status}  {where}")
    out.print(f"  {progress.done}{total} pictures{failed}")
    if estimate.error:
        out.print(f"  [red]{escape(estimate.error.detail)}[/] [dim]({estimate.error.code})[/]")


def _print_all(estimates: Iterable[BackgroundEstimate]) -> None:
    rows = []
    for it in estimates:
        counts, created = (it.progress.done, it.progress.total, it.progress.failed), it.created_at.astimezone()
        rows.append((it.id, it.status, it.category, *counts, f"{created:%Y-%m-%d %H:%M}"))
    print_table(("id", "status", "category", "done", "of", "failed", "created"), rows)

"""``ppl pause``, ``resume``, ``forget``, ``events`` and ``checkpoints``: what can be done with a job."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from service.client import Client
from service.contract.jobs.events import EventKind, JobEvent

from .options import URL, AsJson, JobId, Url
from .output import console as output


def pause(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Set a training job aside; `ppl resume` lets it go on from where it was."""
    with output.errors_shown(as_json), Client(url) as client:
        job = client.pause(job_id)
        output.print_json(job) if as_json else output.show_job(job)


def resume(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Put a paused training job back into the queue."""
    with output.errors_shown(as_json), Client(url) as client:
        job = client.resume(job_id)
        output.print_json(job) if as_json else output.show_job(job)


def forget(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Remove the record of a training job that ended; the version that it made stays."""
    with output.errors_shown(as_json), Client(url) as client:
        client.delete(job_id)
        output.show_done({"deleted": job_id}, f"job {job_id} is forgotten", as_json)


def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Only events later than this one.")] = 0,
    url: Url = URL,
    as_json: Annotated[bool, typer.Option("--json", help="One event of JSON a line; errors as for other commands.")] = (
        False
    ),
) -> None:
    """Show what happened to a training job, event by event."""
    with output.errors_shown(as_json), Client(url) as client:
        try:
            for event in client.events(job_id, after, follow=follow):
                output.print_json(event) if as_json else output.out.print(_line(event))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def checkpoints(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """List the checkpoints that a training job wrote."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.checkpoints(job_id)
        if as_json:
            output.print_json({"items": output.plain(found)})
        else:
            output.show_checkpoints(found)


def _line(event: JobEvent) -> str:
    at = event.at.astimezone().strftime("%H:%M:%S")
    return f"{event.id:>5}  {at}  {event.kind:<10}  {escape(_said(event))}"


def _said(event: JobEvent) -> str:
    data = event.data
    if event.kind is EventKind.LOG:
        return str(data.get("message"))
    if event.kind is EventKind.PROGRESS:
        return f"step {data.get('step')} of {data.get('total_steps')}"
    if event.kind is EventKind.COMPLETED:
        error = data.get("error") or {}
        words = [data.get("status"), data.get("version") or "", error.get("detail", "")]
        return "  ".join(str(word) for word in words if word)
    return "  ".join(f"{name} {_figure(value)}" for name, value in data.items())


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)

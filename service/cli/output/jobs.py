"""Text output of jobs, their checkpoints and events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.markup import escape

from service.client import Job, JobStatus
from service.client.types import Checkpoint, EventKind, JobEvent

from .console import make_table, out, print_table
from .evaluation import show_scores
from .progress import duration, loss_text

_COLOURS = {
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.PAUSED: "magenta",
}


def show_job(job: Job) -> None:
    """Print a job, one fact per line."""
    out.print(f"job {job.id}  {_colour_status(job.status)}  category {job.category}")
    progress, metrics = job.progress, job.metrics
    if job.queue_position is not None:
        left = f", ends in about {duration(progress.eta_s)}" if progress.eta_s is not None else ""
        out.print(f"  number {job.queue_position} in the queue{left}")
    if progress.step:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
        out.print(f"  step {progress.step} of {progress.total_steps}{left}, loss {loss_text(job)}")
    if job.version:
        out.print(f"  version {job.version}")
    if job.continued_from:
        out.print(f"  continues from {job.continued_from.category}@{job.continued_from.version}")
    if job.dataset:
        out.print(f"  dataset {job.dataset.id}  {escape(job.dataset.name or '')}".rstrip())
    if metrics.get("skipped"):
        files = "".join(f"\n    {format_skipped(item)}" for item in metrics.get("skipped_files", []))
        out.print(f"  {metrics['skipped']} pictures could not be read:{escape(files)}")
    held_out = f", {metrics['held_out']} of them held out" if "held_out" in metrics else ""
    if metrics.get("mode") == "clips":
        out.print(f"  {metrics.get('clips', '?')} clips, {metrics.get('images', '?')} frames in all{held_out}")
    elif "images" in metrics:
        out.print(f"  {metrics['images']} pictures{held_out}")
    if job.evaluation:
        show_scores(job.evaluation)
    if job.webhook:
        reason = f": {escape(job.webhook.last_error)}" if job.webhook.last_error else ""
        out.print(f"  webhook {job.webhook.status} after {job.webhook.attempts} attempts{reason}")
    if job.error:
        out.print(f"  [red]{escape(job.error.detail)}[/] [dim]({job.error.code})[/]")


def show_jobs(jobs: Iterable[Job]) -> None:
    """Print jobs as a table."""
    table = make_table("job", "category", "status", "step", "created", "version")
    for job in jobs:
        step = f"{job.progress.step}/{job.progress.total_steps}"
        created = f"{job.created_at:%Y-%m-%d %H:%M}"
        table.add_row(job.id, job.category, _colour_status(job.status), step, created, job.version or "")
    print_table(table, if_empty="no jobs yet")


def show_checkpoints(checkpoints: Iterable[Checkpoint]) -> None:
    """Print checkpoints as a table."""
    table = make_table("step", "saved", "size", "loss")
    for checkpoint in checkpoints:
        saved, size = f"{checkpoint.saved_at.astimezone():%Y-%m-%d %H:%M:%S}", checkpoint.size_bytes / 2**20
        loss = f"{checkpoint.losses['total']:.3f}" if "total" in checkpoint.losses else "-"
        table.add_row(str(checkpoint.step), saved, f"{size:.1f} MiB", loss)
    print_table(table, if_empty="no checkpoints yet")


def show_event(event: JobEvent) -> None:
    """Print an event on one line."""
    at = event.at.astimezone().strftime("%H:%M:%S")
    out.print(f"{event.id:>5}  {at}  {event.kind:<10}  {escape(_event_text(event))}")


def format_skipped(item: Any) -> str:
    """Return a skipped file with the reason; old versions stored the name alone."""
    return f"{item['name']}: {item['reason']}" if isinstance(item, dict) and "reason" in item else str(item)


def _colour_status(status: JobStatus) -> str:
    return f"[{_COLOURS.get(status, 'white')}]{status}[/]"


def _event_text(event: JobEvent) -> str:
    data = event.data
    if event.kind is EventKind.LOG:
        return str(data.get("message"))
    if event.kind is EventKind.PROGRESS:
        return f"step {data.get('step')} of {data.get('total_steps')}"
    if event.kind is EventKind.COMPLETED:
        error = data.get("error") or {}
        words = [data.get("status"), data.get("version") or "", error.get("detail", "")]
        return "  ".join(str(word) for word in words if word)
    return "  ".join(f"{name} {_value_text(value)}" for name, value in data.items())


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)

"""``ppl train``, ``job``, ``jobs`` and what is done to a job: ``cancel``, ``pause``, ``resume``, ``publish``, …"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from service.client import InputError, Job, JobStatus
from service.client.connection import given
from service.client.types import Checkpoint, EventKind, JobEvent

from .commands import BoxesFile, Category, LabelsFit, Locate, Session, TrainingAlign
from .console import (
    duration,
    loss_text,
    out,
    print_json,
    print_path,
    print_table,
    print_warnings,
    say,
    to_json,
    training_progress,
    write_file,
)
from .evaluate import print_scores
from .priors import print_quality

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until the job ends.")]

_COLOURS = {
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.PAUSED: "magenta",
}


def train(
    session: Session,
    category: Category,
    path: Annotated[
        Path | None, typer.Argument(help="A folder of pictures or clips, a zip, tar or tar.gz of it, or a video.")
    ] = None,
    follow: Follow = False,
    preset: Annotated[str | None, typer.Option(help="compact (for CPUs) or paper.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the model, as in --set steps=2000; repeatable."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Keypoints of some pictures: CSV, DeepLabCut, SLEAP, Label Studio, COCO. Never for training."
        ),
    ] = None,
    boxes: BoxesFile = None,
    locate: Locate = None,
    align: TrainingAlign = None,
    labels_fit: LabelsFit = None,
    prior_file: Annotated[
        Path | None, typer.Option("--prior", help="A prior to start from, as `ppl prior --json` prints it.")
    ] = None,
    prior_from: Annotated[
        str | None, typer.Option(metavar="CATEGORY[@VERSION]", help="Start from the prior of this category.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="Whether the version becomes the active one.")
    ] = True,
    activate_always: Annotated[
        bool, typer.Option("--activate-always", help="Make the version active also if its quality is failed.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(metavar="ID", help="Train on this dataset instead of uploading pictures.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Name of this request: the same key gives the same job.")
    ] = None,
    continue_from: Annotated[
        str | None, typer.Option(metavar="[CATEGORY@]VERSION", help="Start from the weights of this version.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Receives a signed POST when the job has ended.")
    ] = None,
) -> None:
    """Learn the pose prior of uploaded pictures, or of a dataset."""
    job = session.client.train(
        category,
        path,
        preset,
        _parse_settings(assignments or []) | given(locate=locate, align=align, labels_fit=labels_fit),
        labels=labels,
        boxes=boxes,
        prior=prior_file,
        prior_from=prior_from,
        activate="always" if activate_always else activate,
        dataset=dataset,
        idempotency_key=idempotency_key,
        webhook_url=webhook,
        continue_from=continue_from,
    )
    _show(session, job, follow)


def job(
    session: Session,
    job_id: JobId,
    follow: Follow = False,
    preview: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Write a PNG of what the job has learned so far.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="OUT.csv", help="Write where the thing was found; edit it and send it back as --boxes."),
    ] = None,
) -> None:
    """Show a training job."""
    _show(session, session.client.job(job_id), follow)
    for path, read in ((preview, session.client.preview), (boxes, lambda job: session.client.boxes(job).encode())):
        if path:
            write_file(path, read(job_id))
            if not session.as_json:
                print_path(path)


def jobs(
    session: Session,
    category: Annotated[str | None, typer.Option(help="Only jobs of this category.")] = None,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
) -> None:
    """List the training jobs, newest first."""
    session.show_list(session.client.jobs(category, status), _print_jobs)


def cancel(session: Session, job_id: JobId) -> None:
    """Stop a training job."""
    session.show(session.client.cancel(job_id), _print_job)


def pause(session: Session, job_id: JobId) -> None:
    """Pause a training job; `ppl resume` continues it."""
    session.show(session.client.pause(job_id), _print_job)


def resume(session: Session, job_id: JobId) -> None:
    """Put a paused training job back into the queue."""
    session.show(session.client.resume(job_id), _print_job)


def publish(session: Session, job_id: JobId) -> None:
    """Make a version of what a running training has learned so far, to estimate from; it does not become active."""
    job = session.client.job(job_id)
    version = session.client.publish(job_id)
    done = f"version {version}: `ppl estimate {job.category} PICTURE --version {version}` uses it"
    session.show_done({"category": job.category, "version": version}, done)


def forget(session: Session, job_id: JobId) -> None:
    """Delete the record of a training job that has ended; its version stays."""
    session.client.delete(job_id)
    session.show_done({"deleted": job_id}, f"deleted: job {job_id}")


def events(
    session: Session,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Only events later than this one.")] = 0,
) -> None:
    """Show the events of a training job; with --json, one to a line."""
    try:
        for event in session.client.events(job_id, after, follow=follow):
            session.show(event, _print_event)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def checkpoints(session: Session, job_id: JobId) -> None:
    """List the checkpoints of a training job."""
    found = session.client.checkpoints(job_id)
    if session.as_json:
        print_json({"items": to_json(found)})
    else:
        _print_checkpoints(found)


def _show(session: Session, job: Job, follow: bool) -> None:
    if follow and not job.status.ended:
        job = _follow(session, job)
    session.show(job, _print_job)
    if follow and job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def _follow(session: Session, job: Job) -> Job:
    if session.as_json:
        return session.client.wait(job.id)
    out.print(f"job {job.id}")
    try:
        with training_progress() as show:
            return session.client.wait(job.id, show)
    except KeyboardInterrupt:
        out.print(f"the job continues: `ppl job {job.id} --follow` shows it, `ppl cancel {job.id}` stops it")
        raise typer.Exit(130) from None


def _parse_settings(assignments: list[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InputError(f"--set came with '{name}{equals}'; it takes NAME=VALUE, as in --set steps=2000")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _print_job(job: Job) -> None:
    """Print a job, one fact per line."""
    out.print(f"job {job.id}  [{_COLOURS.get(job.status, 'white')}]{job.status}[/]  category {job.category}")
    progress, metrics = job.progress, job.metrics
    if job.queue_position is not None:
        left = f", ends in about {duration(progress.eta_s)}" if progress.eta_s is not None else ""
        out.print(f"  number {job.queue_position} in the queue{left}")
    if progress.step:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
        out.print(f"  step {progress.step} of {progress.total_steps}{left}, loss {loss_text(job)}")
    for made in job.checkpoint_versions:
        out.print(f"  version {made.version} after step {made.step}")
    if job.version:
        out.print(f"  version {job.version}")
    if job.continued_from:
        out.print(f"  continues from {job.continued_from.category}@{job.continued_from.version}")
    if job.dataset:
        out.print(f"  dataset {job.dataset.id}  {escape(job.dataset.name or '')}".rstrip())
    if metrics.get("skipped"):
        files = "".join(f"\n    {_describe_skipped(item)}" for item in metrics.get("skipped_files", []))
        out.print(f"  {metrics['skipped']} pictures are left out:{escape(files)}")
    if located := metrics.get("located"):
        side = f", {located['side_px']:g} px wide" if "side_px" in located else ""
        if "sent" in located:
            side += f" ({located['sent']} frames by boxes, {located['found']} by motion)"
        out.print(
            f"  the thing is located by {located['by']}{side}{escape('; ' + (located.get('note') or '')).rstrip('; ')}"
        )
    print_warnings(job.warnings)
    held_out = f", {metrics['held_out']} of them held out" if "held_out" in metrics else ""
    if metrics.get("mode") == "clips":
        out.print(f"  {metrics.get('clips', '?')} clips, {metrics.get('images', '?')} frames in all{held_out}")
    elif "images" in metrics:
        out.print(f"  {metrics['images']} pictures{held_out}")
    if job.quality:
        print_quality(job.quality)
    if job.evaluation:
        print_scores(job.evaluation)
    if job.webhook:
        reason = f": {escape(job.webhook.last_error)}" if job.webhook.last_error else ""
        out.print(f"  webhook {job.webhook.status} after {job.webhook.attempts} attempts{reason}")
    if job.error:
        out.print(f"  [red]{escape(job.error.detail)}[/] [dim]({job.error.code})[/]")


def _print_jobs(jobs: Iterable[Job]) -> None:
    rows = []
    for it in jobs:
        status = Text(it.status, style=_COLOURS.get(it.status, "white"))
        step = f"{it.progress.step}/{it.progress.total_steps}"
        rows.append((it.id, it.category, status, step, f"{it.created_at:%Y-%m-%d %H:%M}", it.version))
    print_table(("job", "category", "status", "step", "created", "version"), rows, if_empty="no jobs yet")


def _print_checkpoints(checkpoints: Iterable[Checkpoint]) -> None:
    rows = []
    for it in checkpoints:
        loss = f"{it.losses['total']:.3f}" if "total" in it.losses else "-"
        rows.append(
            (it.step, f"{it.saved_at.astimezone():%Y-%m-%d %H:%M:%S}", f"{it.size_bytes / 2**20:.1f} MiB", loss)
        )
    print_table(("step", "saved", "size", "loss"), rows, if_empty="no checkpoints yet")


def _print_event(event: JobEvent) -> None:
    say(f"{event.id:>5}  {event.at.astimezone():%H:%M:%S}  {event.kind:<10}  {_event_text(event)}")


def _describe_skipped(item: Any) -> str:
    """Return a skipped file with the reason; old versions stored the name alone."""
    return f"{item['name']}: {item['reason']}" if isinstance(item, dict) and "reason" in item else str(item)


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

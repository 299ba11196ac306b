"""``ppl train``, ``job``, ``jobs``, ``cancel``, ``pause``, ``resume``, ``forget``, ``events`` and ``checkpoints``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import Client, InputError, Job, JobStatus

from .options import URL, AsJson, Category, Follow, JobId, Url
from .output import console as output
from .output.jobs import show_checkpoints, show_event, show_job, show_jobs
from .output.progress import training_progress


def train(
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
        typer.Option(help="Keypoints of some pictures, CSV or COCO JSON: for evaluation, never for training."),
    ] = None,
    prior_file: Annotated[
        Path | None, typer.Option("--prior", help="A prior to start from, as `ppl prior --json` prints it.")
    ] = None,
    prior_from: Annotated[
        str | None, typer.Option(metavar="CATEGORY[@VERSION]", help="Start from the prior of this category.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="Whether the version becomes the active one.")
    ] = True,
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
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Learn the pose prior of uploaded pictures, or of a dataset."""
    with output.connect(url, as_json) as client:
        job = client.train(
            category,
            path,
            preset,
            _parse_settings(assignments or []),
            labels=labels,
            prior=prior_file,
            prior_from=prior_from,
            activate=activate,
            dataset=dataset,
            idempotency_key=idempotency_key,
            webhook_url=webhook,
            continue_from=continue_from,
        )
        _show(client, job, follow, as_json)


def job(job_id: JobId, follow: Follow = False, url: Url = URL, as_json: AsJson = False) -> None:
    """Show a training job."""
    with output.connect(url, as_json) as client:
        _show(client, client.job(job_id), follow, as_json)


def jobs(
    category: Annotated[str | None, typer.Option(help="Only jobs of this category.")] = None,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """List the training jobs, newest first."""
    with output.connect(url, as_json) as client:
        output.show_list(client.jobs(category, status), as_json, show_jobs)


def cancel(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Stop a training job."""
    with output.connect(url, as_json) as client:
        output.show(client.cancel(job_id), as_json, show_job)


def pause(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Pause a training job; `ppl resume` continues it."""
    with output.connect(url, as_json) as client:
        output.show(client.pause(job_id), as_json, show_job)


def resume(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Put a paused training job back into the queue."""
    with output.connect(url, as_json) as client:
        output.show(client.resume(job_id), as_json, show_job)


def forget(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Delete the record of a training job that has ended; its version stays."""
    with output.connect(url, as_json) as client:
        client.delete(job_id)
        output.show_done({"deleted": job_id}, f"deleted: job {job_id}", as_json)


def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Only events later than this one.")] = 0,
    url: Url = URL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON event per line; errors as for other commands.")] = (
        False
    ),
) -> None:
    """Show the events of a training job."""
    with output.connect(url, as_json) as client:
        try:
            for event in client.events(job_id, after, follow=follow):
                output.show(event, as_json, show_event)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def checkpoints(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """List the checkpoints of a training job."""
    with output.connect(url, as_json) as client:
        found = client.checkpoints(job_id)
        if as_json:
            output.print_json({"items": output.to_json(found)})
        else:
            show_checkpoints(found)


def _show(client: Client, job: Job, follow: bool, as_json: bool) -> None:
    if follow and not job.status.ended:
        job = _follow(client, job, as_json)
    output.show(job, as_json, show_job)
    if follow and job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def _follow(client: Client, job: Job, as_json: bool) -> Job:
    if as_json:
        return client.wait(job.id)
    output.out.print(f"job {job.id}")
    try:
        with training_progress(output.out) as show:
            return client.wait(job.id, show)
    except KeyboardInterrupt:
        output.out.print(f"the job continues: `ppl job {job.id} --follow` shows it, `ppl cancel {job.id}` stops it")
        raise typer.Exit(130) from None


def _parse_settings(assignments: list[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InputError(f"--set came with '{name}{equals}'; it takes NAME=VALUE, as in --set steps=2000")
    return {name.strip(): value.strip() for name, _, value in pairs}

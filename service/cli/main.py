"""``ppl``: start the platform, train on pictures, estimate poses."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from service.cli.output.progress import TrainingProgress
from service.client import Client, InputError, Job, JobStatus

from .datasets import datasets
from .estimate import estimate
from .estimates import estimates
from .evaluate import evaluate
from .jobs import checkpoints, events, forget, pause, resume
from .keypoint_names import names
from .keys import keys
from .landmarks import landmarks
from .options import URL, AsJson, Category, Follow, JobId, Url, refused_settings
from .output import console as output
from .priors import history, memory, prior, priors
from .status import status
from .versions import aliases, versions
from .webhooks import webhooks

app = typer.Typer(
    name="ppl",
    help="Pose priors learned without labels: train on pictures of one kind of thing, then estimate its poses.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (PPL_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (PPL_PORT); 0 takes a free one.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of all data (PPL_DATA_ROOT).")] = None,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine: Valkey, both workers and the API. Ctrl-C ends it."""
    from service.runtime.settings import Settings
    from service.stack import stack as embedded  # the other commands need neither uvicorn nor redis
    from service.stack.data_lock import DataRootInUseError
    from service.stack.supervisor import ChildFailedError
    from service.stack.valkey import ValkeyMissingError

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("service").setLevel(logging.INFO)
    given: dict[str, Any] = {"host": host, "port": port or None, "data_root": data_root}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise output.fail(_problem("bad_setting", refused_settings(error)), as_json, 2) from error

    signals = _Signals()
    try:
        embedded.run_stack(
            settings, signals.stop, lambda running: _announce(running, as_json), signals.now, any_port=port == 0
        )
    except (embedded.StackError, DataRootInUseError, ValkeyMissingError, ChildFailedError, OSError) as error:
        raise output.fail(_problem("not_started", str(error)), as_json) from error


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
        typer.Option(help="Keypoints of some of the pictures, CSV or COCO JSON: to measure by, never to train on."),
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
        str | None, typer.Option(metavar="ID", help="Train on this dataset; no pictures are sent then.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Names this request: sent again, it gives the same job.")
    ] = None,
    continue_from: Annotated[
        str | None, typer.Option(metavar="[CATEGORY@]VERSION", help="Start from the weights of this version.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the job's end is told, by a signed POST.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Learn the pose prior of pictures that are uploaded, or of a dataset."""
    with output.errors_shown(as_json), Client(url) as client:
        chosen = _settings(assignments or [])
        given: dict[str, Any] = {"labels": labels, "prior": prior_file, "prior_from": prior_from, "activate": activate}
        given |= {"dataset": dataset, "idempotency_key": idempotency_key}
        given |= {"webhook_url": webhook, "continue_from": continue_from}
        job = client.train(category, path, preset, chosen, **given)
        _show(client, job, follow, as_json)


def job(job_id: JobId, follow: Follow = False, url: Url = URL, as_json: AsJson = False) -> None:
    """Show a training job."""
    with output.errors_shown(as_json), Client(url) as client:
        _show(client, client.job(job_id), follow, as_json)


def jobs(
    category: Annotated[str | None, typer.Option(help="Only jobs of this category.")] = None,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs of this status.")] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """List the training jobs, the newest first."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.jobs(category, status))
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            output.show_jobs(found)


def cancel(job_id: JobId, url: Url = URL, as_json: AsJson = False) -> None:
    """Stop a training job."""
    with output.errors_shown(as_json), Client(url) as client:
        _show(client, client.cancel(job_id), False, as_json)


_PANELS: dict[str, tuple[Any, ...]] = {
    "The server": (up, status, keys),
    "Training": (train, jobs, job, cancel, pause, resume, forget, events, checkpoints, datasets, webhooks),
    "What was learned": (priors, prior, memory, history, names, evaluate, versions, aliases),
    "Poses": (estimate, estimates, landmarks),
}
for panel, commands in _PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(rich_help_panel=panel)(command)


def main() -> None:
    """The entry point of the command ``ppl``."""
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows, or LANG=C, can't take every name and sign
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        app()
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again as it ends
        sys.exit(output.fail(_problem("disk_full", "can't write the output: the disk is full"), False).exit_code)


class _Signals:
    """Ctrl-C, SIGTERM and a closed terminal ask for an end; a second Ctrl-C for an end at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or the background of a script
                signal.signal(number, self._on_signal)

    def now(self) -> bool:
        return self._count > 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += number == signal.SIGINT or not self._count
        self.stop.set()


def _announce(running: Any, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "url": running.url,
                "docs": running.docs,
                "data_root": str(running.data_root),
                "logs": str(running.logs),
                "pids": running.pids,
                "first_api_key": str(running.first_key) if running.first_key else None,
            }
        )
        return
    output.out.print("[bold green]PPL is up.[/]")
    for name, where in (
        ("API", running.url),
        ("docs", running.docs),
        ("data", running.data_root),
        ("logs", running.logs),
    ):
        output.out.print(f"  {name:<5} {escape(str(where))}")
    if running.first_key:
        output.out.print(
            f"  key   {escape(str(running.first_key))}  (the first API key: read it, then remove the file)"
        )
    output.out.print("Ctrl-C ends it; the data stays.")


def _show(client: Client, job: Job, follow: bool, as_json: bool) -> None:
    if follow and not job.status.ended:
        job = _follow(client, job, as_json)
    if as_json:
        output.print_json(job)
    else:
        output.show_job(job)
    if follow and job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def _follow(client: Client, job: Job, as_json: bool) -> Job:
    if as_json:
        return client.wait(job.id)
    output.out.print(f"job {job.id}")
    try:
        with TrainingProgress(output.out) as progress:
            return client.wait(job.id, progress.update)
    except KeyboardInterrupt:
        output.out.print(f"the job goes on. `ppl job {job.id} --follow` shows it, `ppl cancel {job.id}` stops it.")
        raise typer.Exit(130) from None


def _settings(assignments: list[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InputError(f"--set takes NAME=VALUE, as in --set steps=2000, not '{name}{equals}'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _problem(code: str, detail: str) -> dict[str, Any]:
    title = code.replace("_", " ").capitalize()
    return {"type": "about:blank", "title": title, "status": None, "detail": detail, "code": code}

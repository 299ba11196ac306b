"""The progress of a command: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.client import Job, JobStatus

from .console import err, out

_LINE_EVERY_S = 10.0


@contextmanager
def counting_bar(description: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield a function that sets ``completed``, ``total`` or ``description`` of a bar on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        yield partial(bar.update, bar.add_task(description, total=None))


@contextmanager
def training_progress() -> Iterator[Callable[[Job], None]]:
    """Yield a function that shows the current state of a job."""
    columns = ("{task.description}", "step {task.fields[step]}", "loss {task.fields[loss]}", "{task.fields[left]}")
    description, *fields = map(TextColumn, columns)
    bar = Progress(description, BarColumn(bar_width=None), *fields, console=out, expand=True)
    task = bar.add_task("waiting", total=1, step="-", loss="-", left="")
    last_stage, next_line_at = "", 0.0

    def show(job: Job) -> None:
        nonlocal last_stage, next_line_at
        progress = job.progress
        step, loss = f"{progress.step}/{progress.total_steps}", loss_text(job)
        left = "" if progress.eta_s is None else f"{duration(progress.eta_s)} left"
        stage = "evaluating" if progress.stage == "evaluating" else str(job.status)
        if job.queue_position is not None:
            stage += f", number {job.queue_position}"
        if out.is_terminal:
            bar.update(task, description=stage, completed=progress.fraction, step=step, loss=loss, left=left)
            return
        is_running = job.status is JobStatus.RUNNING
        if stage != last_stage or (is_running and time.monotonic() >= next_line_at):
            last_stage, next_line_at = stage, time.monotonic() + _LINE_EVERY_S
            out.print(f"{stage}  step {step}  loss {loss}  {left}".rstrip() if is_running else stage)

    with bar if out.is_terminal else nullcontext():
        yield show


def loss_text(job: Job) -> str:
    """Return the last total loss; a dash before the first step."""
    loss = job.metrics.get("total")
    return f"{loss:.3f}" if isinstance(loss, (int, float)) else "-"


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""The progress of a training job: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from service.client import Job, JobStatus

_LINE_EVERY_S = 10.0


class TrainingProgress:
    """A progress display; use it as a context around the calls of :meth:`update`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.fields[step]}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("waiting", total=1, step="-", loss="-", left="")
        self._last_stage = ""
        self._next_line_at = 0.0

    def __enter__(self) -> TrainingProgress:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def update(self, job: Job) -> None:
        """Show the job's current state."""
        progress = job.progress
        step, loss = f"{progress.step}/{progress.total_steps}", loss_text(job)
        left = "" if progress.eta_s is None else f"{duration(progress.eta_s)} left"
        stage = "evaluating" if progress.stage == "evaluating" else str(job.status)
        if job.queue_position is not None:
            stage += f", number {job.queue_position}"
        if self._live:
            fields: dict[str, Any] = {"step": step, "loss": loss, "left": left}
            self._bar.update(self._task, description=stage, completed=progress.fraction, **fields)
            return
        running = job.status is JobStatus.RUNNING
        if stage == self._last_stage and not (running and time.monotonic() >= self._next_line_at):
            return
        self._last_stage, self._next_line_at = stage, time.monotonic() + _LINE_EVERY_S
        line = f"{stage}  step {step}  loss {loss}  {left}".rstrip() if running else stage
        self._console.print(line, highlight=False)


def loss_text(job: Job) -> str:
    """Return the last total loss; a dash before the first step."""
    loss = job.metrics.get("total")
    return f"{loss:.3f}" if isinstance(loss, (int, float)) else "-"


def duration(seconds: float | None) -> str:
    """Return seconds as m:ss or h:mm:ss; a dash if unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

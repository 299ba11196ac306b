"""The output of the commands: JSON for programs; text, tables and progress for people; errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from service.client import History, InputError, Job, JobStatus, Prior
from service.client.types import Dataset, PictureWarning, PriorDiff
from service.client.uploads import printable_name

Value = TypeVar("Value")

# text from elsewhere, such as file names, must not send control sequences to the terminal
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\n\t")}, "\N{REPLACEMENT CHARACTER}")
# in the JSON of these, unset members are null; in that of the others they are left out, as in the API
_KEEP_NONE = (Dataset, History, Job, Prior, PriorDiff)
_LINE_EVERY_S = 10.0  # of a training's progress without a terminal
_RIGHT_ALIGNED = frozenset(("x", "y", "score", "step", "moved", "clips", "left out", "size"))


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Replace control characters."""
        return super().render_str(text.translate(_CONTROLS), **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)
# wider than any terminal, as ids must not be cut off
_tables = _Console(highlight=False, width=1000)


def open_in_browser(url: str) -> None:
    """Open an address in the browser, if the terminal runs on a local display; no error if none opens."""
    has_display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.stdout.isatty() and has_display and not os.environ.get("SSH_CONNECTION"):
        with suppress(webbrowser.Error):
            webbrowser.open(url)


def fail(problem: dict[str, Any], as_json: bool, exit_code: int = 1) -> typer.Exit:
    """Print a problem on stderr and return the exit for the caller to raise."""
    if as_json:
        sys.stderr.write(json.dumps(problem, ensure_ascii=False) + "\n")
    else:
        err.print(f"[bold red]error:[/] {escape(str(problem['detail']))} [dim]({problem['code']})[/]")
    return typer.Exit(exit_code)


def make_problem(code: str, detail: str, kind: str = "about:blank") -> dict[str, Any]:
    """Return a problem document (RFC 9457) for an error that is not the server's."""
    title = code.replace("_", " ").capitalize()
    return {"type": kind, "title": title, "status": None, "detail": detail, "code": code}


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(to_json(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def to_json(value: Any) -> Any:
    """Return a model, or a list of models, as JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=not isinstance(value, _KEEP_NONE))
    return [to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def show(value: Value, as_json: bool, render: Callable[[Value], object]) -> None:
    """Print a value as JSON, or with ``render``."""
    if as_json:
        print_json(value)
    else:
        render(value)


def say(message: object) -> None:
    """Print a text that is not markup."""
    out.print(escape(str(message)))


def print_path(path: Path) -> None:
    """Print the name of a file that was written."""
    say(f"written: {printable_name(path)}")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], if_empty: str | None = None) -> None:
    """Print a table without lines, or a message if it has no rows.

    Args:
        columns: column titles; columns of numbers are right-aligned.
        rows: cells; None is empty, and only rich's Text is styled.
    """
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in _RIGHT_ALIGNED else "left")
    for row in rows:
        table.add_row(*("" if it is None else it if isinstance(it, Text) else escape(str(it)) for it in row))
    if if_empty is not None and not table.row_count:
        out.print(if_empty)
    else:
        _tables.print(table)


def write_file(path: Path, data: bytes) -> Path:
    """Write a file. Raises InputError if that fails."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}") from error
    return path


def print_warnings(warnings: Iterable[PictureWarning]) -> None:
    """Print the warnings about pictures."""
    for warning in warnings:
        out.print(f"  [yellow]warning:[/] {escape(warning.detail)} [dim]({warning.code})[/]")


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
    last_stage, next_line_at, warned = "", 0.0, False

    def show(job: Job) -> None:
        nonlocal last_stage, next_line_at, warned
        progress = job.progress
        step, loss = f"{progress.step}/{progress.total_steps}", loss_text(job)
        left = "" if progress.eta_s is None else f"{duration(progress.eta_s)} left"
        if not warned and job.warnings:
            warned = True
            print_warnings(job.warnings)
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

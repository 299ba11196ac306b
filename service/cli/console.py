"""The output of the commands: JSON for programs, text and tables for people, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from service.client import History, InputError, Job, Prior
from service.client.types import Dataset, PriorDiff
from service.client.uploads import printable_name

Value = TypeVar("Value")

# text from elsewhere, such as file names, must not send control sequences to the terminal
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\n\t")}, "\N{REPLACEMENT CHARACTER}")
# in the JSON of these, unset members are null; in that of the others they are left out, as in the API
_KEEP_NONE = (Dataset, History, Job, Prior, PriorDiff)
_RIGHT_ALIGNED = frozenset(("x", "y", "score", "step", "moved", "clips", "left out", "size"))


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Replace control characters."""
        return super().render_str(text.translate(_CONTROLS), **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)
# wider than any terminal, as ids must not be cut off
_tables = _Console(highlight=False, width=1000)


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


def print_written(path: Path) -> None:
    """Print the name of a file that was written."""
    say(f"written: {printable_name(path)}")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], if_empty: str | None = None) -> None:
    """Print a table without lines, or a message if it has no rows.

    Args:
        columns: those of numbers are aligned to the right.
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

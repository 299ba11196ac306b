"""What the commands' arguments and options have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service.client import InputError

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout; an error as problem JSON on stderr.")]
Url = Annotated[
    str, typer.Option("--url", envvar="PPL_URL", help="Address of the server.", show_envvar=True, metavar="URL")
]
Category = Annotated[str, typer.Argument(help="Name of the category: a-z, 0-9, - and _.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
Version = Annotated[
    str | None, typer.Option("--version", help="Version of the prior, or an alias of one; the active one by default.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until the job ends.")]
URL = "http://127.0.0.1:8000"


def refused_settings(error: ValidationError) -> str:
    """Which of the environment's settings are refused, and why."""
    told = []
    for item in error.errors(include_url=False):
        name, why = "_".join(map(str, item["loc"])).upper(), item["msg"].removeprefix("Value error, ")
        told.append(f"PPL_{name}: {why}" if name else why)
    return "; ".join(told)


def write_file(path: Path, data: bytes) -> Path:
    """Write a file that a user named. Raises InputError where that can't be."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}") from error
    return path

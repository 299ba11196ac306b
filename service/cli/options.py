"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError

from service.client.connection import DEFAULT_URL as URL

__all__ = ["URL", "AsJson", "Category", "Follow", "JobId", "Url", "Version", "describe_invalid_settings"]

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


def describe_invalid_settings(error: ValidationError) -> str:
    """Return the invalid environment variables and the reasons."""
    reasons = []
    for item in error.errors(include_url=False):
        name, reason = "_".join(map(str, item["loc"])).upper(), item["msg"].removeprefix("Value error, ")
        reasons.append(f"PPL_{name}: {reason}" if name else reason)
    return "; ".join(reasons)

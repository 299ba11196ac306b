"""The command ``ppl``: its subcommands by subject, and its entry point."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import typer

from .backup import backup, restore
from .commands import Commands
from .console import fail, make_problem
from .datasets import datasets
from .estimate import estimate
from .estimates import estimates
from .evaluate import evaluate
from .jobs import cancel, checkpoints, events, forget, job, jobs, pause, publish, resume, train
from .keys import keys
from .priors import history, memory, names, prior, priors
from .server import status, webhooks
from .up import up
from .versions import aliases, landmarks, versions

app = Commands(
    name="ppl",
    help="Learn pose priors from unlabelled pictures of one category, then estimate poses.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

_PANELS: dict[str, tuple[Any, ...]] = {
    "Server": (up, status, keys, backup, restore),
    "Training": (train, jobs, job, cancel, pause, resume, publish, forget, events, checkpoints, datasets, webhooks),
    "Priors and versions": (priors, prior, memory, history, names, evaluate, versions, aliases),
    "Poses": (estimate, estimates, landmarks),
}
for panel, commands in _PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line."""
    # a pipe on Windows, or LANG=C, can't encode every character
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        app()
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at its exit
        sys.exit(fail(make_problem("disk_full", "can't write the output: the disk is full"), False).exit_code)

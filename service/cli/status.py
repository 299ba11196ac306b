"""``ppl status``: whether the server can serve."""

from __future__ import annotations

import typer

from service.client import APIError, Client

from .options import URL, AsJson, Url
from .output import console as output


def status(url: Url = URL, as_json: AsJson = False) -> None:
    """Show the server's queue and workers. It fails where something is missing that estimates need."""
    with output.errors_shown(as_json), Client(url, retries=0) as client:
        try:
            ready = client.readiness()
        except APIError as error:
            checks = error.problem.get("checks")
            if as_json or not isinstance(checks, dict):
                raise
            output.show_checks({str(part): str(found) for part, found in checks.items()})
            raise typer.Exit(1) from None
        if as_json:
            output.print_json(ready)
        else:
            output.show_checks(ready.checks)

"""``ppl status`` and ``ppl webhooks``: the state of the server and its webhook secret."""

from __future__ import annotations

from collections.abc import Mapping

import typer
from rich.markup import escape

from service.client import APIError

from .options import URL, AsJson, Url
from .output import console as output

webhooks = typer.Typer(name="webhooks", help="Webhooks that report the end of jobs.", no_args_is_help=True)


def status(url: Url = URL, as_json: AsJson = False) -> None:
    """Show the server's queue and workers. Fails if a part is missing that estimates need."""
    with output.connect(url, as_json, retries=0) as client:
        try:
            ready = client.readiness()
        except APIError as error:
            checks = error.problem.get("checks")
            if as_json or not isinstance(checks, dict):
                raise
            _show_checks(checks)
            raise typer.Exit(1) from None
        output.show(ready, as_json, lambda ready: _show_checks(ready.checks))


@webhooks.callback()
def _group() -> None:
    """Webhooks that report the end of jobs (`ppl train --webhook URL`)."""


@webhooks.command("secret")
def show_secret(url: Url = URL, as_json: AsJson = False) -> None:
    """Show the secret that webhooks are signed with."""
    with output.connect(url, as_json) as client:
        secret = client.webhook_secret()
        output.show({"secret": secret}, as_json, lambda _: output.out.print(secret))


def _show_checks(checks: Mapping[str, object]) -> None:
    for part, state in checks.items():
        colour = "green" if state == "ok" else "red"
        output.out.print(f"{escape(part.replace('_', ' ')):<18} [{colour}]{escape(str(state))}[/]")

"""``ppl status`` and ``ppl webhooks``: the state of the server and its webhook secret."""

from __future__ import annotations

from collections.abc import Mapping

import typer
from rich.markup import escape

from service.client import APIError

from .commands import Commands, Session
from .console import out

webhooks = Commands(name="webhooks", help="Webhooks that report the end of jobs.", no_args_is_help=True)


def status(session: Session) -> None:
    """Show the server's queue and workers. Fails if a part is missing that estimates need."""
    session.client.retries = 0
    try:
        ready = session.client.readiness()
    except APIError as error:
        checks = error.problem.get("checks")
        if session.as_json or not isinstance(checks, dict):
            raise
        _print_checks(checks)
        raise typer.Exit(1) from None
    session.show(ready, lambda ready: _print_checks(ready.checks))


@webhooks.command("secret")
def show_secret(session: Session) -> None:
    """Show the secret that webhooks are signed with."""
    secret = session.client.webhook_secret()
    session.show_done({"secret": secret}, secret)


def _print_checks(checks: Mapping[str, object]) -> None:
    for part, state in checks.items():
        colour = "green" if state == "ok" else "red"
        out.print(f"{escape(part.replace('_', ' ')):<18} [{colour}]{escape(str(state))}[/]")

"""``ppl webhooks``: what a receiver of webhooks needs."""

from __future__ import annotations

import typer

from service.client import Client

from .options import URL, AsJson, Url
from .output import console as output

webhooks = typer.Typer(name="webhooks", help="What tells the ends of jobs elsewhere.", no_args_is_help=True)


@webhooks.callback()
def _group() -> None:
    """What tells the ends of jobs elsewhere (`ppl train --webhook URL`)."""


@webhooks.command("secret")
def show_secret(url: Url = URL, as_json: AsJson = False) -> None:
    """Show the secret that webhooks are signed with."""
    with output.errors_shown(as_json), Client(url) as client:
        secret = client.webhook_secret()
        if as_json:
            output.print_json({"secret": secret})
        else:
            output.out.print(secret)

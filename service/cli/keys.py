"""``ppl keys``: the API keys of a data root. It works on the files, so it must run on the server's machine."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.access.keys import KeyStore, Scope
from service.contract.errors import PPLError

from .commands import AsJson, Commands, read_settings
from .console import fail, make_problem, out, print_json, print_table, say, show

keys = Commands(
    name="keys",
    help="API keys. Run it on the server's machine: it works on the files of the data root.",
    no_args_is_help=True,
)

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of all data (PPL_DATA_ROOT).", envvar="PPL_DATA_ROOT")
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, as `ppl keys list` shows it.")]


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Owner or purpose of the key.")],
    scopes: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="read: estimate and look; train: everything. Repeatable; read by default."),
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it once; only its hash is stored."""
    try:
        key, text = KeyStore.open(read_settings(data_root, as_json)).create(name, scopes or [Scope.READ])
    except (ValueError, OSError) as error:
        raise _fail("bad_request", str(error), as_json, 2) from error
    except PPLError as error:
        raise _fail(str(error.code), error.detail, as_json) from error
    if as_json:
        print_json({**key.model_dump(mode="json"), "key": text})
        return
    say(f"key {key.id}  {key.name}  {', '.join(key.scopes)}")
    out.print(f"  {text}")
    out.print("It can't be shown again. Clients send it as 'Authorization: Bearer …'; `ppl` reads PPL_API_KEY.")


@keys.command("list")
def list_keys(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """List the keys, including revoked ones."""
    try:
        found = KeyStore.open(read_settings(data_root, as_json)).keys()
    except (PPLError, OSError) as error:
        raise _fail("store_corrupt", str(error), as_json) from error
    if as_json:
        print_json({"items": [key.model_dump(mode="json") for key in found]})
        return
    rows = [
        (it.id, it.name, ", ".join(it.scopes), _format_time(it.created_at), _format_time(it.revoked_at)) for it in found
    ]
    print_table(("id", "name", "scopes", "created", "revoked"), rows)


@keys.command("revoke")
def revoke_key(key_id: KeyId, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Revoke a key at once and for good. Idempotent."""
    try:
        key = KeyStore.open(read_settings(data_root, as_json)).revoke(key_id)
    except PPLError as error:
        raise _fail(str(error.code), error.detail, as_json) from error
    except OSError as error:
        raise _fail("not_written", str(error), as_json) from error
    show(key.model_dump(mode="json"), as_json, lambda _: say(f"revoked: {key.id} {key.name}"))


def _fail(code: str, detail: str, as_json: bool, exit_code: int = 1) -> typer.Exit:
    return fail(make_problem(code, detail, f"urn:ppl:problem:{code}"), as_json, exit_code)


def _format_time(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""

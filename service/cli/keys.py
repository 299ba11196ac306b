"""``ppl keys``: the API keys of a data root. Works on its files, so on the server's machine only."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from service.access.keys import ApiKey, KeyStore, Scope
from service.contract.errors import PPLError

from .options import AsJson, refused_settings
from .output import console as output

keys = typer.Typer(
    name="keys",
    help="API keys. Run it where the server runs: it works on the files of the data root.",
    no_args_is_help=True,
)

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of all data (PPL_DATA_ROOT).", envvar="PPL_DATA_ROOT")
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, as `ppl keys list` shows it.")]


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scopes: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="read: estimate and look; train: everything. Repeatable; read unless given."),
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it: once, as only its hash is kept."""
    try:
        key, text = _store(data_root).create(name, scopes or [Scope.READ])
    except (ValueError, OSError) as error:
        raise output.fail(_problem("bad_request", str(error)), as_json, 2) from error
    if as_json:
        output.print_json({**key.model_dump(mode="json"), "key": text})
        return
    output.out.print(f"key {key.id}  {escape(key.name)}  {', '.join(key.scopes)}")
    output.out.print(f"  {text}")
    output.out.print("It can't be shown again. Clients send it as 'Authorization: Bearer …'; `ppl` reads PPL_API_KEY.")


@keys.command("list")
def list_keys(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """List the keys, the revoked ones too."""
    try:
        found = _store(data_root).keys()
    except (PPLError, OSError) as error:
        raise output.fail(_problem("store_corrupt", str(error)), as_json) from error
    if as_json:
        output.print_json({"items": [key.model_dump(mode="json") for key in found]})
        return
    table = Table("id", "name", "scopes", "created", "revoked")
    for key in found:
        table.add_row(key.id, escape(key.name), ", ".join(key.scopes), _time(key.created_at), _revoked(key))
    output.tables.print(table)


@keys.command("revoke")
def revoke_key(key_id: KeyId, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Let a key open nothing any more, at once and for good."""
    try:
        key = _store(data_root).revoke(key_id)
    except PPLError as error:
        raise output.fail(_problem(str(error.code), error.detail), as_json) from error
    except OSError as error:
        raise output.fail(_problem("not_written", str(error)), as_json) from error
    output.show_done(key.model_dump(mode="json"), f"revoked: {key.id} {key.name}", as_json)


def _store(data_root: Path | None) -> KeyStore:
    from service.contract.settings import CommonSettings

    try:
        settings = CommonSettings() if data_root is None else CommonSettings(data_root=data_root)
    except ValidationError as error:
        raise output.fail(_problem("bad_setting", refused_settings(error)), False, 2) from error
    return KeyStore(settings.data_root)


def _problem(code: str, detail: str) -> dict[str, object]:
    title = code.replace("_", " ").capitalize()
    return {"type": f"urn:ppl:problem:{code}", "title": title, "status": None, "detail": detail, "code": code}


def _time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _revoked(key: ApiKey) -> str:
    return _time(key.revoked_at) if key.revoked_at else ""

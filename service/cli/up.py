"""``ppl up``: run the platform on this machine. The only command that imports the stack."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from .commands import AsJson, describe_invalid_settings
from .console import fail, make_problem, open_in_browser, out, print_json, say


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (PPL_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (PPL_PORT); 0 takes a free one.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of all data (PPL_DATA_ROOT).")] = None,
    gateways: Annotated[int, typer.Option(min=1, max=64, help="Processes that serve the API, on one socket.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine: Valkey, both workers and the API. Ctrl-C stops it."""
    # imported here: the other commands need neither uvicorn nor redis
    from service.runtime.settings import Settings
    from service.stack.data_lock import DataRootInUseError
    from service.stack.stack import StackError, run_stack
    from service.stack.supervisor import ChildFailedError
    from service.stack.valkey import ValkeyMissingError

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("service").setLevel(logging.INFO)
    options: dict[str, Any] = {"host": host, "port": port or None, "data_root": data_root}
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise fail(make_problem("bad_setting", describe_invalid_settings(error)), as_json, 2) from error

    signals = _StopSignals()
    try:
        on_ready = partial(_announce, as_json)
        run_stack(settings, signals.stop, on_ready, lambda: signals.kill_now, any_port=port == 0, gateways=gateways)
    except (StackError, DataRootInUseError, ValkeyMissingError, ChildFailedError, OSError) as error:
        raise fail(make_problem("not_started", str(error)), as_json) from error


class _StopSignals:
    """Handlers that stop the stack on Ctrl-C, SIGTERM or a closed terminal; a second Ctrl-C kills it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.kill_now = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup, and the background of a script, ignore some of them
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.kill_now = self.stop.is_set() and (self.kill_now or number == signal.SIGINT)
        self.stop.set()


def _announce(as_json: bool, running: Any) -> None:
    url, page, docs = running.url, f"{running.url}/", f"{running.url}/docs"
    data, logs = str(running.data_root), str(running.logs)
    key = str(running.first_key) if running.first_key else None
    if as_json:
        facts = {"url": url, "page": page, "docs": docs, "data_root": data, "logs": logs, "pids": running.pids}
        print_json(facts | {"first_api_key": key})
        return
    out.print("[bold green]PPL is up.[/]")
    for name, value in (("page", page), ("API", url), ("docs", docs), ("data", data), ("logs", logs)):
        say(f"  {name:<5} {value}")
    if key:
        say(f"  key   {key}  (the first API key: read it, then remove the file)")
    out.print("Ctrl-C stops it; the data stays.")
    open_in_browser(page)

"""What the commands have in common: their options, the client, and how a result is printed."""

from __future__ import annotations

import atexit
import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from pydantic import ValidationError

from service.client import Client, ClientError
from service.client.connection import DEFAULT_URL
from service.client.uploads import file_part, is_pipe

from .console import fail, make_problem, print_json, say, show, to_json

if TYPE_CHECKING:
    from service.contract.settings import CommonSettings

PIPE_PREFIX = "ppl-pipe-"  # of the temporary folder with a pipe's content

Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout; an error as problem JSON on stderr.")]
Url = Annotated[
    str, typer.Option("--url", envvar="PPL_URL", help="Address of the server.", show_envvar=True, metavar="URL")
]
Category = Annotated[str, typer.Argument(help="Name of the category: a-z, 0-9, - and _.")]
Version = Annotated[
    str | None, typer.Option("--version", help="Version of the prior, or an alias of one; the active one by default.")
]
BoxesFile = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="FILE",
        help="Where the thing is in each picture or frame: CSV (image,x,y,width,height), COCO or MegaDetector's JSON.",
    ),
]
Locate = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="In pictures and frames without a box: motion cuts out what moves before a fixed camera, auto does where "
        "it is sure; off leaves them out where boxes came, and else takes whole pictures.",
    ),
]
Align = Annotated[
    Literal["off", "heading"] | None,
    typer.Option(
        help="For views from above: heading rotates what the model sees so that the thing faces up, by the angles of "
        "the boxes, sent or found by motion; off does not. As the version was trained, by default.",
    ),
]
TrainingAlign = Annotated[
    Literal["off", "auto", "heading"] | None,
    typer.Option(
        help="For views from above: heading rotates pictures so that the thing faces up, by the angles of the boxes, "
        "sent or found by motion; auto, the default, where these are sure and turn to all sides; off never.",
    ),
]
LabelsFit = Annotated[
    Literal["exact", "scale"] | None,
    typer.Option(
        help="Labels that state another size of their pictures: exact (the default) refuses them, scale scales those "
        "of the same aspect ratio, and turns those of the stored picture as its EXIF says.",
    ),
]


@dataclass(frozen=True)
class Session:
    """The client of a command, and whether it prints JSON."""

    client: Client
    as_json: bool

    def show(self, value: Value, render: Callable[[Value], object]) -> None:
        """Print a value as JSON, or with ``render``."""
        show(value, self.as_json, render)

    def show_list(self, items: Iterable[Value], render: Callable[[list[Value]], object]) -> None:
        """Print all items as one page of the API in JSON, or with ``render``."""
        found = list(items)
        if self.as_json:
            print_json({"items": to_json(found), "next_cursor": None})
        else:
            render(found)

    def show_done(self, value: Any, message: str) -> None:
        """Print the result of a change as JSON or as a message."""
        show(value, self.as_json, lambda _: say(message))


class Commands(typer.Typer):
    """Commands of a subject. One whose first parameter is a Session gets the options --url and --json."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Register a function as a command."""
        register = super().command(name, **options)
        return lambda function: register(_add_session(function))


def _add_session(function: Any) -> Any:
    signature = inspect.signature(function, eval_str=True)
    first, *own = signature.parameters.values()
    if first.annotation is not Session:
        return function

    @wraps(function)
    def connect_and_run(url: str, as_json: bool, **arguments: Any) -> None:
        with _connect(url, as_json) as session:
            function(session, **arguments)

    common = inspect.signature(_connect, eval_str=True).parameters.values()
    connect_and_run.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    return connect_and_run


@contextmanager
def _connect(url: Url = DEFAULT_URL, as_json: AsJson = False) -> Iterator[Session]:
    """Open a client and report its errors as a message and an exit code, without a traceback."""
    try:
        with Client(url) as client:
            yield Session(client, as_json)
    except ClientError as error:
        raise fail(error.problem, as_json) from error


def save_pipe(path: Path) -> Path:
    """Copy a pipe to a temporary file, deleted at exit, and return its path; return any other path unchanged."""
    if not is_pipe(path):
        return path
    folder = tempfile.mkdtemp(prefix=PIPE_PREFIX)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with ExitStack() as stack:
        name, file = file_part(path, stack)
        copy = Path(folder, name)
        with copy.open("wb") as out:
            shutil.copyfileobj(file, out)
    return copy


def read_settings(data_root: Path | None, as_json: bool) -> CommonSettings:
    """Return the settings of the environment; fail with bad_setting if one is invalid or the store can't be opened."""
    # not at the top: most commands read no settings
    from service.contract.objects import Objects
    from service.contract.settings import CommonSettings

    try:
        settings = CommonSettings() if data_root is None else CommonSettings(data_root=data_root)
        if settings.store_url is not None:
            Objects(settings.store_url)
    except ValueError as error:
        detail = describe_invalid_settings(error) if isinstance(error, ValidationError) else str(error)
        raise fail(make_problem("bad_setting", detail), as_json, 2) from error
    return settings


def describe_invalid_settings(error: ValidationError) -> str:
    """Return the invalid environment variables and the reasons."""
    reasons = []
    for item in error.errors(include_url=False):
        name, reason = "_".join(map(str, item["loc"])).upper(), item["msg"].removeprefix("Value error, ")
        reasons.append(f"PPL_{name}: {reason}" if name else reason)
    return "; ".join(reasons)

"""``service/client*.py`` out of ``service/aio``: the same calls without ``await``.

One source for both, so that neither has a call or a repair that the other lacks, as httpcore and the clients of
Elasticsearch do it.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

SERVICE = Path(__file__).resolve().parents[2] / "service"
# source in service/aio: what is made of it in service
FILES = {
    "transport": "client_transport",
    "jobs": "client_jobs",
    "estimate": "client_estimate",
    "datasets": "client_datasets",
    "versions": "client_versions",
    "client": "client",
}
_NOTE = "# Made of service/aio/{}.py by tests/service/client_generation.py: change it there.\n"
_WORDS = {
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "AsyncIterator": "Iterator",
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "Awaitable": "",
}
_CLIENT = '''"""A client of the HTTP API; :mod:`service.aio` has the same to be awaited.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as ppl:
        job = ppl.wait(ppl.train("bird", "pictures/").id)
        estimate = ppl.estimate("bird", ["one.jpg", "two.jpg"])

It raises the errors of :mod:`service.client_errors`, all of them ClientError.
"""

'''


def made() -> dict[Path, str]:
    """Every file that is made, with its content."""
    texts = {f"{to}.py": _converted(name) for name, to in FILES.items()}
    return {SERVICE / name: _formatted(text, name) for name, text in texts.items()}


def _converted(name: str) -> str:
    text = (SERVICE / "aio" / f"{name}.py").read_text(encoding="utf-8")
    text = re.sub(r"\bCallable\[\[\], Awaitable\[(\w+)\]\]", r"Callable[[], \1]", text)
    text = re.sub(r"\(await (\w[\w.]*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))\)(?=\.)", r"\1", text)
    lines = text.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type == tokenize.NAME:
            (row, start), (_, end) = token.start, token.end
            line = lines[row - 1]
            if token.string in ("async", "await"):
                lines[row - 1] = line[:start] + line[end:].removeprefix(" ")
            elif token.string in _WORDS or token.string.startswith("Async"):
                new = _WORDS.get(token.string, token.string.removeprefix("Async"))
                lines[row - 1] = line[:start] + new + line[end:]
    text = "".join(lines)
    text = text.replace("from ..", "from .@").replace("from .concurrency", "from .@client_concurrency")
    for source, to in FILES.items():
        text = re.sub(rf"^( *)from \.{source} import", rf"\1from .{to} import", text, flags=re.MULTILINE)
    text = text.replace("from .@", "from .")
    text = re.sub(r"(?m)^(from collections\.abc import .*)$", _without_doubles, text)
    text = re.sub(r"(?m)^( *)for (\w+) in (.+):\n +yield \2$", r"\1yield from \3", text)
    head, _, rest = text.partition("from __future__")
    head = _CLIENT if name == "client" else re.sub(r"\bawait |\(await (.*?\))\)(?=\.)", r"\1", head)
    return _NOTE.format(name) + head + "from __future__" + rest.replace('"AsyncClient"', '"Client"')


def _without_doubles(match: re.Match[str]) -> str:
    before, _, names = match[1].partition(" import ")
    return f"{before} import {', '.join(sorted({name.strip() for name in names.split(',')} - {''}))}"


def _formatted(text: str, name: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        done = subprocess.run(
            [ruff, *command, "--stdin-filename", SERVICE / name, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=SERVICE.parent,
        )
        text = done.stdout
    return text

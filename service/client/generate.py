"""Generate ``service/client/sync`` from ``service/client/aio``: the same methods without ``await``.

``python -m service.client.generate`` writes the files; with ``--check`` it fails if they differ from their source.
One source for both, as in httpcore and the clients of Elasticsearch.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

CLIENT = Path(__file__).resolve().parent
_NOTE = "# Generated from service/client/aio/{}.py by service.client.generate: change it there.\n"
_MODULES = ("transport", "jobs", "estimate", "datasets", "versions", "client")
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


def generate() -> dict[Path, str]:
    """Return the content of every generated file."""
    return {CLIENT / "sync" / f"{name}.py": _formatted(_converted(name), name) for name in _MODULES}


def _converted(name: str) -> str:
    text = (CLIENT / "aio" / f"{name}.py").read_text(encoding="utf-8")
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
    text = re.sub(r"(?m)^(from collections\.abc import .*)$", _without_doubles, text)
    text = re.sub(r"(?m)^( *)for (\w+) in (.+):\n +yield \2$", r"\1yield from \3", text)
    head, _, rest = text.partition("from __future__")
    head = re.sub(r"\bawait |\(await (.*?\))\)(?=\.)", r"\1", head)
    return _NOTE.format(name) + head + "from __future__" + rest.replace('"AsyncClient"', '"Client"')


def _without_doubles(match: re.Match[str]) -> str:
    before, _, names = match[1].partition(" import ")
    return f"{before} import {', '.join(sorted({name.strip() for name in names.split(',')} - {''}))}"


def _formatted(text: str, name: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        done = subprocess.run(  # noqa: S603
            [ruff, *command, "--stdin-filename", CLIENT / "sync" / f"{name}.py", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=CLIENT.parents[1],
        )
        text = done.stdout
    return text


def main() -> None:
    """Write the files, or with ``--check`` exit with 1 and their names if they differ."""
    check = "--check" in sys.argv[1:]
    stale = [path for path, text in generate().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(
            f"not what service.client.generate makes of service/client/aio: {', '.join(path.name for path in stale)}"
        )
    for path in stale:
        path.write_text(generate()[path], encoding="utf-8")


if __name__ == "__main__":
    main()

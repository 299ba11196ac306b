"""Generate ``service/client/sync`` from ``service/client/aio`` by replacing names (unasync).

``python -m service.client.generate`` writes the files; with ``--check`` it fails if they differ.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CLIENT = Path(__file__).resolve().parent
_HAND_WRITTEN = {"__init__", "concurrency"}
_NOTE = "# Generated from service/client/aio/{} by service.client.generate: change it there.\n"
_NAMES = {
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "aread": "read",
}


def generate() -> dict[Path, str]:
    """Return the content of every generated file."""
    import unasync  # of the extra 'dev'

    sources = [path for path in (CLIENT / "aio").glob("*.py") if path.stem not in _HAND_WRITTEN]
    generated = {}
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(fromdir=str(CLIENT / "aio"), todir=folder, additional_replacements=_NAMES)
        unasync.unasync_files([str(path) for path in sources], [rule])
        for source in sources:
            path = CLIENT / "sync" / source.name
            generated[path] = _format(_NOTE.format(source.name) + Path(folder, source.name).read_text(), path)
    return generated


def main() -> None:
    """Write the files that differ, or with ``--check`` exit with 1 and their names."""
    generated = generate()
    stale = [path for path, text in generated.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:] and stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"service/client/sync differs from aio in {names}; run python -m service.client.generate")
    for path in stale:
        path.write_text(generated[path])


def _format(text: str, path: Path) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    for options in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        command = [str(ruff), *options, "--stdin-filename", str(path), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return text


if __name__ == "__main__":
    main()

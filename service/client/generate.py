"""Generate ``service/client/sync`` from ``service/client/aio`` by replacing names (unasync).

``python -m service.client.generate`` writes the files; with ``--check`` it fails if they differ.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CLIENT = Path(__file__).resolve().parent
_MODULES = ("transport", "jobs", "estimate", "datasets", "versions", "client")
_NOTE = "# Generated from service/client/aio/{}.py by service.client.generate: change it there.\n"
_NAMES = {
    "AsyncAliasCalls": "AliasCalls",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncDatasetCalls": "DatasetCalls",
    "AsyncEstimateCalls": "EstimateCalls",
    "AsyncJobCalls": "JobCalls",
    "AsyncLandmarkCalls": "LandmarkCalls",
    "AsyncTransport": "Transport",
    "AsyncVersionCalls": "VersionCalls",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "aread": "read",
}


def generate() -> dict[Path, str]:
    """Return the content of every generated file."""
    import unasync  # of the extra 'dev'

    generated = {}
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(fromdir=str(CLIENT / "aio"), todir=folder, additional_replacements=_NAMES)
        unasync.unasync_files([str(CLIENT / "aio" / f"{name}.py") for name in _MODULES], [rule])
        for name in _MODULES:
            path = CLIENT / "sync" / f"{name}.py"
            generated[path] = _format(_NOTE.format(name) + Path(folder, f"{name}.py").read_text(), path)
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

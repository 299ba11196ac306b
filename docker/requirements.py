"""Prints what pyproject.toml pins, so that an image installs it before the sources are copied.

    python requirements.py [EXTRA…] [--only NAME]

Without an extra: what every part needs. With extras: that and what they add. `--only` keeps one
package, which the worker's image uses to take torch from an index of its own.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str], only: str | None = None) -> list[str]:
    """The pinned requirements of the project and of some extras.

    Raises:
        SystemExit: an extra or a package that pyproject.toml does not have.
    """
    found = list(project["dependencies"])  # type: ignore[call-overload]
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    for extra in extras:
        if extra not in optional:
            raise SystemExit(f"pyproject.toml has no extra '{extra}'; it has {', '.join(sorted(optional))}")
        found += optional[extra]
    if only is None:
        return found
    chosen = [line for line in found if re.split(r"[^A-Za-z0-9._-]", line)[0] == only]
    if not chosen:
        raise SystemExit(f"pyproject.toml does not name {only}")
    return chosen


def main() -> None:
    """Reads pyproject.toml of the current folder and prints one requirement a line."""
    parser = argparse.ArgumentParser(description="Print the pinned requirements of pyproject.toml.")
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--only")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(project, arguments.extras, arguments.only)))


if __name__ == "__main__":
    main()

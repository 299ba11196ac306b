"""Run the tests that a change touches, for at most a minute: `make quick`, or `python -m tests.support.quick [BASE]`.

The change is all that differs from BASE (the branch's start on main, or the commit before on main itself), what is
not committed included. Tests mirror the sources, so the folder says which tests belong to a file; a search for the
module's name finds those elsewhere. That needs no database of an earlier run, as pytest-testmon does, and knows what
runs in other processes as well. Tests run in the order of how near they are, and those that the time does not reach
are skipped. Integration tests are left out: a single one may take the whole minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 45.0  # the rest of the minute is for starting and for the test in hand
_UNTIL = "PPL_QUICK_UNTIL"


def changed_files(base: str | None = None) -> list[str]:
    """Return the files that differ from a commit, and those that git does not know yet."""
    if base is None:
        start = _git("merge-base", "HEAD", "main") or _git("merge-base", "HEAD", "origin/main") or ["HEAD"]
        base = start[0]
        if base == _git("rev-parse", "HEAD")[0] and not _git("status", "--porcelain"):
            base = "HEAD~1"
    return [*_git("diff", "--name-only", base), *_git("ls-files", "--others", "--exclude-standard")]


def find_tests(changed: Iterable[str]) -> list[str]:
    """Return the test files for these files, the nearest first."""
    distances: dict[Path, int] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        path, text = file.relative_to(ROOT), file.read_text()
        if "pytest.mark.integration" not in text:
            near = [distance for source in changed if (distance := _distance(Path(source), path, text)) is not None]
            if near:
                distances[path] = min(near)
    return [str(path) for path in sorted(distances, key=lambda path: (distances[path], path))]


def _distance(source: Path, test: Path, text: str) -> int | None:
    if source == test:
        return 0
    room = Path("tests", source.parent)
    if source.parts[0] == "tests":  # a conftest or a helper
        room = source.parent
    while not (ROOT / room).is_dir():
        room = room.parent
    mirrored = room != Path("tests") and room in test.parents
    if source.suffix != ".py":
        return 3 if mirrored or (room == Path("tests") and test.parts[1] in ("docs", "docker")) else None
    if source.name == "conftest.py":
        return 3 if mirrored else None
    module = ".".join(source.with_suffix("").parts).removesuffix(".__init__")
    named = module in text or f"from {module.rpartition('.')[0]} import {source.stem}" in text
    if mirrored and (named or test.stem == f"test_{source.stem}"):
        return 1
    return 2 if named else 3 if mirrored else None


def pytest_runtest_setup() -> None:
    """Skip what the time does not reach (this module is a plugin of the run that it starts)."""
    if time.time() > float(os.environ.get(_UNTIL, "inf")):
        pytest.skip("the minute is over; `make test` runs this")


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    begun = time.time()
    tests = find_tests(changed_files(*sys.argv[1:2]))
    if not tests:
        print("the change touches no test")
        return 0
    print(f"{len(tests)} test files, the nearest: {' '.join(tests[:5])}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.quick"]
    command += ["-n", os.environ.get("TEST_PROCESSES", "3"), "--dist", "loadfile", "--no-loadscope-reorder"]
    return subprocess.run(
        [*command, *tests], cwd=ROOT, env={**os.environ, _UNTIL: str(begun + SECONDS)}, check=False
    ).returncode


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())

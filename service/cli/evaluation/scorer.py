"""The scorer, ``python -m model.evaluate``, in a process of its own: this side of the platform knows no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.client.errors import InputError

_REFUSED = "can't score: "


def run_scorer(*arguments: str | Path) -> dict[str, Any]:
    """One of its commands; see ``python -m model.evaluate --help``.

    Raises:
        InputError: it refused; the message is its own.
    """
    command = [sys.executable, "-P", "-m", "model.evaluate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 the command is our own
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise InputError(f"scoring failed: {said[-1].removeprefix(_REFUSED)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer

"""Read the results of runs and group them over their seeds."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import MEAN_POSE, ROWS, describe

Result = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """The results of one row with different seeds, in order of the seed."""

    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def title(self) -> str:
        """The row's name, and the settings that differ from the row's."""
        first = self.first
        parts = [describe(first["row"])]
        parts += [first["label"]] if first["label"] else []
        parts += [f"preset {first['preset']}"] if first["preset"] != "compact" and first["row"] != MEAN_POSE else []
        parts += [f"prior {first['prior']}"] if first.get("prior") else []
        parts += [", ".join(f"`{name}={value}`" for name, value in first["options"].items())]
        return "; ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """Return the title and the number of training steps, which together identify a row of one set."""
        return f"{self.title}, {self.first['steps']:,} steps" if self.first["row"] != MEAN_POSE else self.title

    @property
    def command(self) -> str:
        """Return the command that reproduces these results."""
        first = self.first
        words = ["python", "-m", "benchmarks.accuracy", "run", "--set", f"{first['set']}.npz", "--row", first["row"]]
        if first["row"] != MEAN_POSE:
            words += ["--preset", first["preset"]] if first["preset"] != "compact" else []
            words += ["--steps", str(first["steps"])]
            words += [word for name, value in first["options"].items() for word in ("--set-option", f"{name}={value}")]
            for name in ("label", "prior", "perceptual_weights"):
                words += [f"--{name.replace('_', '-')}", first[name]] if first.get(name) else []
            words += ["--seed", *(str(result["seed"]) for result in self.results)]
            words += ["--threads", str(first["threads"])]
        return shlex.join([*words, "--out", "benchmarks/results"])

    def values(self, *path: str) -> list[float]:
        """Return the numbers at a path of keys, one a seed; results without it are left out."""
        found = []
        for result in self.results:
            value: Any = result
            for key in path:
                value = (value or {}).get(key)
            if value is not None:
                found.append(float(value))
        return found

    def levels(self) -> list[tuple[str, float]]:
        """Return the kinds and levels of occlusion that were measured."""
        return [(row["kind"], row["level"]) for row in self.first.get("occlusion") or ()]

    def curve(self, kind: str, level: float, which: str = "errors") -> list[list[float]]:
        """Return the errors of a level of occlusion at each iteration, one a seed; ``which`` may be "hidden_errors"."""
        rows = [
            row[which]
            for result in self.results
            for row in result.get("occlusion") or ()
            if row["kind"] == kind and math.isclose(row["level"], level) and row.get(which)
        ]
        return [list(values) for values in zip(*rows, strict=True)]


def read_results(folder: Path) -> list[Result]:
    """Read every result in a folder.

    Raises:
        ValueError: a file is not a result, or the folder has none.
    """
    results = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        if not isinstance(result, dict) or result.get("format") != 1:
            raise ValueError(f"{file.name} is no result of this benchmark's format 1")
        results.append(result)
    if not results:
        raise ValueError(f"{folder} holds no result")
    return results


def groups(results: Iterable[Result]) -> list[Group]:
    """Group results over their seeds, in the order of the rows, then by name.

    Raises:
        ValueError: two results of a group have different numbers of steps, so that they can't be compared.
    """
    gathered: dict[str, list[Result]] = {}
    for result in results:
        gathered.setdefault(result["group"], []).append(result)
    for name, members in gathered.items():
        steps = sorted({result["steps"] for result in members})
        if len(steps) > 1:
            raise ValueError(f"the runs of {name} took {' and '.join(map(str, steps))} steps; expected the same")
    ordered = sorted(gathered.items(), key=lambda item: (ROWS.index(item[1][0]["row"]), item[0]))
    return [Group(tuple(sorted(members, key=lambda result: result["seed"]))) for _, members in ordered]

"""The report of a speed benchmark as text or JSON: a table, a ratio with its bar, the machine, the versions.

A subject is a module with a function that measures and returns a :class:`Report`, and ends with

    if __name__ == "__main__":
        sys.exit(run(measure, add_arguments))

so that ``python -m benchmarks.SUBJECT [--json]`` works for all. A missed bar is reported but is no
error: the exit code is 0, so that a run continues to its end.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .machine import machine, versions

Row = dict[str, Any]


class Check(NamedTuple):
    """One measured value against its bar."""

    what: str
    value: float
    bar: float
    at_least: bool = True  # else at most

    @property
    def holds(self) -> bool:
        """Whether the value reaches its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{self.what}: {self.value:.4g}, {word} {self.bar:g} {'holds' if self.holds else 'DOES NOT HOLD'}"


@dataclass
class Report:
    """The result of a benchmark.

    Attributes:
        subject: the module's name.
        title: description of the measurement.
        rows: the table; the keys of a row are its columns.
        ratio: how many times better ours is than the other, both measured in this run; larger is better. None without
            the other.
        bar: smallest ratio that is good enough.
        checks: other bars.
        notes: the conditions of the figures: presets, split of the cores, subjects left out.
    """

    subject: str
    title: str
    rows: list[Row]
    ratio: float | None = None
    bar: float | None = None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def all_checks(self) -> list[Check]:
        """Return the ratio with its bar, if there are both, and the other checks."""
        if self.ratio is None or self.bar is None:
            return self.checks
        return [Check("ratio", self.ratio, self.bar), *self.checks]

    @property
    def holds(self) -> bool | None:
        """Whether every bar is reached; None without bars."""
        checks = self.all_checks()
        return all(check.holds for check in checks) if checks else None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "subject": self.subject,
            "title": self.title,
            "rows": self.rows,
            "ratio": self.ratio,
            "bar": self.bar,
            "holds": self.holds,
            "checks": [{**check._asdict(), "holds": check.holds} for check in self.all_checks()],
            "notes": self.notes,
            "machine": machine(),
            "versions": versions(),
        }

    def __str__(self) -> str:
        lines = [self.title, "", *table(self.rows), ""]
        lines += [f"  {check}" for check in self.all_checks()] or ["  no bar to hold"]
        lines += [f"  {note}" for note in self.notes]
        for name, facts in (("machine", machine()), ("versions", versions())):
            lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    """Format rows as aligned lines under the names of their columns; a row may lack some."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return [f"  {line}" for line in lines]


def run(
    measure: Callable[[argparse.Namespace], Report],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the command line: measure and print the report. Return the exit code."""
    module = inspect.getmodule(measure)
    parser = argparse.ArgumentParser(description=module.__doc__ if module else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    if add_arguments:
        add_arguments(parser)
    options = parser.parse_args(arguments)
    with redirect_stdout(sys.stderr):  # whatever is said on the way
        report = measure(options)
    print(json.dumps(report.to_dict(), allow_nan=False) if options.json else report)
    return 0


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

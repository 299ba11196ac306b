"""Run a platform under a mixed load and print the trends of its resources; with ``--write``, into docs/operation.md.

python -m tests.integration.hour [--minutes 60] [--write] [--log SAMPLES]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .hour import Endurance, Row, describe

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operation.md"
BEGIN, END = "<!-- hour: make hour -->", "<!-- end of hour -->"
_HEAD = """\
| | at rest before | at rest after | most | slope an hour ± its error | verdict |
| --- | --- | --- | --- | --- | --- |"""
_REST_S = 150.0  # retention is 60 s, and is looked after every 30 s


def main() -> int:
    """Return 1 if an answer was wrong or lost, or if something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of load")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--log", type=Path, help="file for all samples, a line of JSON each")
    options = parser.parse_args()
    warm_s = min(900.0, 60 * options.minutes / 4)
    with tempfile.TemporaryDirectory(prefix="ppl-hour-") as folder:
        endurance = Endurance(Path(folder), max(1.0, min(5.0, options.minutes)), options.log)
        try:
            endurance.do()
            before = endurance.rest(_REST_S)
            endurance.run(60 * options.minutes)
            after = endurance.rest(_REST_S)
        finally:
            faults = endurance.close()
    samples = endurance.sampler.samples
    late = [sample for sample in samples if sample.at - samples[0].at > warm_s]
    rows = describe(late, before, after)
    sent, right = endurance.sent()
    done = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(endurance.world.done.items()))
    table = "\n".join(
        [
            f"{options.minutes:g} minutes, the first {warm_s / 60:g} left out of the slopes; {len(late)} samples.",
            f"{sent} estimates sent one by one, {right} right; beside them: {done}. Faults: {len(faults)}.",
            "",
            *tabulate(rows),
        ]
    )
    print(table)
    print(*faults[:50], sep="\n", file=sys.stderr)
    print(time.strftime("%H:%M:%S"), "forms of keys:", after.keys, "temporary:", after.temporary, file=sys.stderr)
    if options.write:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    return bool(faults or [row for row in rows if row.verdict == "grows"])


def tabulate(rows: list[Row]) -> list[str]:
    """Return the lines of a table of what changed, and of a list of what did not."""
    still = [f"{row.name} {row.before:.0f}" for row in rows if row.before == row.after and not row.trend.error]
    moving = [row for row in rows if row.before != row.after or row.trend.error]
    return [_HEAD, *map(_format, moving), "", f"The same in all samples: {', '.join(still)}."]


def _format(row: Row) -> str:
    numbers = (f"{value:.{1 if row.unit else 0}f}" for value in (row.before, row.after, row.trend.most))
    name = f"{row.name}, {row.unit}" if row.unit else row.name
    return f"| {name} | {' | '.join(numbers)} | {row.trend.slope:+.2f} ± {row.trend.error:.2f} | {row.verdict} |"


if __name__ == "__main__":
    sys.exit(main())

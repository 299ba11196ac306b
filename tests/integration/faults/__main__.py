"""Measure all faults in full length and print the table of docs/operation.md; with ``--write``, write it there.

python -m tests.integration.faults [--write] [--trials 5] [--random-s 300] [NAME …]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from . import faults
from .load import count

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operation.md"
BEGIN, END = "<!-- faults: make faults -->", "<!-- end of faults -->"
_LONGEST_RECOVERY_S = 15.0


def main() -> int:
    """Return 1 if anything was lost, doubled or wrong, or recovered too slowly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="kills, full_disk, cut_redis, slow_disk or clock")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--random-s", type=float, default=300.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    measures = {
        "kills": partial(faults.measure_kills, options.trials, options.random_s),
        "full_disk": partial(faults.measure_full_disk, options.trials),
        "cut_redis": partial(faults.measure_cut_redis, options.trials),
        "slow_disk": partial(faults.measure_slow_disk, options.trials),
        "clock": partial(faults.measure_clock, options.trials),
    }
    results: list[faults.Result] = []
    for name, measure in measures.items():
        if options.names and name not in options.names:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        try:
            found = measure()
        except faults.NotPossibleError as error:
            found = [faults.Result(name.replace("_", " "), note=str(error))]
        for result in found:
            print(result.row(), file=sys.stderr, flush=True)
            by_client = count([answer for answer in result.answers if answer.by_client])
            bad = Counter(answer.detail for answer in result.answers if answer.outcome in ("wrong", "lost"))
            refused = Counter(answer.detail[:160] for answer in result.answers if answer.outcome == "refused")
            details = [*result.wrong, *bad.most_common(5), *refused.most_common(5)]
            print(f"  by the client: {dict(by_client)}", *details, sep="\n  ", file=sys.stderr, flush=True)
        results += found
    table = "\n".join([faults.HEAD, *(result.row() for result in results)])
    print(table)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    failed = [result for result in results if result.wrong or {"wrong", "lost"} & count(result.answers).keys()]
    slow = [result.fault for result in results if max(result.recoveries_s, default=0) > _LONGEST_RECOVERY_S]
    if slow:
        print(f"took longer than {_LONGEST_RECOVERY_S:.0f} s to recover: {', '.join(slow)}", file=sys.stderr)
    return bool(failed or slow)


if __name__ == "__main__":
    sys.exit(main())

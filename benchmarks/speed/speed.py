"""Run the speed benchmarks one after the other and write SPEED.md: a table of all, then each in full.

python -m benchmarks.speed [SUBJECT …] [--into FILE.md] [--peer SUBJECT=PATH …] [--perceptual-weights FILE]

Each subject runs in a process of its own and gives one JSON object. A failed subject is listed with the end of
its output, the others still run, and the exit code is 1. With matplotlib (extra ``plots``) two plots are written beside
the document: speed_ratios.png and speed_serving.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.scoring.plots import PlotsUnavailableError

from .report import Check, table
from .speed_plot import plot_ratios, plot_serving

# the short ones, with arguments that keep all of them together below ten minutes on two cores
SUBJECTS: dict[str, tuple[str, ...]] = {
    "link_map": (),
    "train_step": (),
    "predict": (),
    "data_loading": (),
    "serving": (),
    "batching": (),
    "scale_out": (),
    "start": (),
    "growth": (),
    "capacity": ("validate",),  # from stored measurements
}
SPEED = Path(__file__).parents[1] / "SPEED.md"
_WITH_WEIGHTS = ("train_step", "predict")
_LIMIT_S = 900
_LAST_WORDS = 600  # characters of a failed subject

Result = dict[str, Any]


def run_subject(subject: str, arguments: list[str], peer: list[str] | None = None) -> Result:
    """Run a subject and return its result; if it failed, ``subject`` and ``failure``.

    Args:
        peer: further arguments, which name files of the user; the report omits their paths.
    """
    peer = peer or []
    command = [sys.executable, "-m", f"benchmarks.{subject}", "--json", *arguments, *peer]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"subject": subject, "failure": f"took longer than {_LIMIT_S} s"}
    if done.returncode:
        return {"subject": subject, "failure": done.stderr.strip()[-_LAST_WORDS:]}
    found: Result = json.loads(done.stdout)
    shown = [word if word.startswith("--") else "FILE" for word in peer]
    return {**found, "command": " ".join(["python -m", f"benchmarks.{subject}", *arguments, *shown])}


def document(results: list[Result], day: str, plots: list[str] | None = None) -> str:
    """Return the text of SPEED.md: ratios and bars of all subjects, then the tables of each.

    Args:
        plots: file names of plots beside it.
    """
    lines = [
        "# Speed",
        "",
        f"Written by `python -m benchmarks.speed` (`make bench`) on {day}. A ratio compares two contestants that took",
        "turns in one run, larger is better; it says more than the times beside it, which are of one machine.",
        "",
        "| subject | ratio | bar | holds | other bars |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_summary(result) for result in results]
    for name in plots or []:
        lines += ["", f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"]
    for result in results:
        lines += ["", f"## {result['subject']}", ""]
        lines += [f"It failed: {result['failure']}"] if "failure" in result else _full(result)
    return "\n".join(lines) + "\n"


def _summary(result: Result) -> str:
    if "failure" in result:
        return f"| {result['subject']} | – | – | failed | – |"
    ratio = "–" if result["ratio"] is None else f"{result['ratio']:.3g}"
    bar = "–" if result["bar"] is None else f"{result['bar']:g}"
    holds = {True: "yes", False: "**no**", None: "–"}[result["holds"]]
    others = [_check(check) for check in result["checks"] if check["what"] != "ratio"]
    return f"| {result['subject']} | {ratio} | {bar} | {holds} | {'; '.join(str(other) for other in others) or '–'} |"


def _check(found: dict[str, Any]) -> Check:
    return Check(found["what"], found["value"], found["bar"], found["at_least"])


def _full(result: Result) -> list[str]:
    facts = [", ".join(f"{name} {value}" for name, value in result[kind].items()) for kind in ("machine", "versions")]
    lines = [result["title"], "", "```", *table(result["rows"]), "```", ""]
    lines += [f"- {note}" for note in result["notes"]]
    return [*lines, f"- `{result['command']}`; {facts[0]}; {facts[1]}"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description, epilog=details)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--into", type=Path, default=SPEED, metavar="FILE.md")
    parser.add_argument("--perceptual-weights", type=Path, metavar="FILE", help="weights of VGG16, shared with a peer")
    parser.add_argument("--peer", action="append", default=[], metavar="SUBJECT=PATH", help="a peer for a subject")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    peers = dict(pair.split("=", 1) for pair in options.peer)
    results = []
    for subject in options.subjects or SUBJECTS:
        print(f"{subject} …", file=sys.stderr, flush=True)
        peer = ["--peer", peers[subject]] if subject in peers else []
        if options.perceptual_weights and subject in _WITH_WEIGHTS:
            peer += ["--perceptual-weights", str(options.perceptual_weights)]
        results.append(run_subject(subject, list(SUBJECTS[subject]), peer))
    options.into.write_text(document(results, f"{datetime.now(UTC):%Y-%m-%d}", _plots(results, options.into.parent)))
    return int(any("failure" in result for result in results))


def _plots(results: list[Result], folder: Path) -> list[str]:
    drawn = {"speed_ratios.png": plot_ratios, "speed_serving.png": plot_serving}
    try:
        return [name for name, plot in drawn.items() if plot(results, folder / name)]
    except PlotsUnavailableError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return []

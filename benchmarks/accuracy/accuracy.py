"""Measure the method's accuracy beside AutoLink and the mean pose, reproducibly.

    python -m benchmarks.accuracy run --set mj_dog.npz --row ppl --minutes 60 --seed 0 1 2 --threads 1 --out results
    python -m benchmarks.accuracy table results
    python -m benchmarks.accuracy pictures results --set mj_dog.npz

``run`` trains a row (see ``benchmarks/accuracy/rows.py``) on the set's training pictures without their labels, measures
it on the held-out ones and writes one JSON file a seed (see ``benchmarks/accuracy/runs.py``). A stopped run continues
when started again; a finished one is not repeated. ``--minutes`` measures the pace over 30 steps first and trains for
as many steps as fit; all seeds of one command take the same number. ``table`` writes the tables and plots of
``ACCURACY.md`` from a folder of results, ``pictures`` draws contact sheets.

The project does not contain the sets; ``benchmarks/accuracy/packs.py`` describes how to get them and the file format.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

from .groups import groups, read_results
from .rows import MEAN_POSE, ROWS
from .tables import tables, update

ACCURACY = Path(__file__).parents[1] / "ACCURACY.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 2 if the arguments or files are not valid."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    import torch

    from .runs import Request, run

    torch.set_num_threads(options.threads)
    fixed = {"steps": "--steps or --minutes", "seed": "--seed"}
    replaced = dict(_assignment(text) for text in options.set_option)
    for name, instead in fixed.items():
        if name in replaced:
            raise ValueError(f"--set-option replaces {name}, which it can't; use {instead}")
    if options.row != MEAN_POSE and options.minutes is None and options.steps is None:
        raise ValueError(f"the row {options.row} has no budget; give --minutes or --steps")
    request = Request(
        set_file=options.set,
        row=options.row,
        preset=options.preset,
        minutes=options.minutes,
        steps=options.steps,
        options=replaced,
        label=options.label,
        prior=options.prior,
        device=options.device,
        perceptual_weights=options.perceptual_weights,
    )
    for file, made in run(request, options.seed, options.out):
        print(f"{file}" if made else f"{file} exists")
    return 0


def _table(options: argparse.Namespace) -> int:
    from .occlusion_plot import plot_curves

    by_set = sorted(groups(read_results(options.results)), key=lambda group: group.first["set"])
    for name, found in groupby(by_set, key=lambda group: group.first["set"]):
        members = list(found)
        picture = options.into.with_name(f"occlusion_{name}.png")
        drawn = [g for g in members if g.first["row"] in options.curves and not g.first["options"]]
        plotted = plot_curves(drawn, f"{name}: error under occlusion", picture)
        update(options.into, name, tables(name, members, drawn, picture.name if plotted else None))
    return 0


def _pictures(options: argparse.Namespace) -> int:
    from .sheets import sheets

    for file in sheets(options.results, options.set, options.count, options.refine_steps):
        print(file)
    return 0


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set-option is '{text}'; expected NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="train and measure a row")
    one.set_defaults(command=_run)
    one.add_argument("--set", type=Path, required=True, metavar="PACK.npz")
    one.add_argument("--row", choices=ROWS, required=True)
    budget = one.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="how long a run takes")
    budget.add_argument("--steps", type=int)
    one.add_argument("--seed", type=int, nargs="+", default=[0])
    one.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--preset", choices=("compact", "paper"), default="compact")
    one.add_argument(
        "--set-option", action="append", default=[], metavar="NAME=VALUE", help="a setting of model/config"
    )
    one.add_argument("--label", default="", help="a few words for the tables")
    one.add_argument(
        "--prior", type=Path, metavar="FILE", help="for rows with a predefined prior, instead of the dog's"
    )
    one.add_argument("--device", default="auto")
    one.add_argument("--perceptual-weights", type=Path, metavar="FILE")
    all_of = commands.add_parser("table", help="write the tables of ACCURACY.md")
    all_of.set_defaults(command=_table)
    all_of.add_argument("results", type=Path, metavar="DIR")
    all_of.add_argument("--into", type=Path, default=ACCURACY, metavar="FILE.md")
    all_of.add_argument("--curves", nargs="+", choices=ROWS, default=["ppl", "autolink"], help="rows in the plots")
    drawn = commands.add_parser("pictures", help="draw poses, prior and prototypes of every run of a set")
    drawn.set_defaults(command=_pictures)
    drawn.add_argument("results", type=Path, metavar="DIR")
    drawn.add_argument("--set", type=Path, required=True, metavar="PACK.npz")
    drawn.add_argument("--count", type=int, default=32, help="test pictures (32); 0: prior and prototypes only")
    drawn.add_argument("--refine-steps", type=int, default=0)
    return parser

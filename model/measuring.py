"""The commands of ``python -m model.evaluate``: files in, JSON out. Numpy only; forms in :mod:`model.pairing`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.label_files import read_labels
from model.pairing import Paired, pair, read_predictions
from model.protocols import evaluate, headline, sides


def run(arguments: list[str]) -> int:
    """Parse and run one command; the exit status: 0, or 2 where the files can't be used."""
    asks_help = not {"-h", "--help"}.isdisjoint(arguments)
    named = arguments and not arguments[0].startswith("-")
    options = _parser().parse_args(arguments if named or asks_help else ["headline", *arguments])
    try:
        command: Callable[[argparse.Namespace], dict[str, Any]] = options.command
        answer = command(options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(f"can't score: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


def _headline(options: argparse.Namespace) -> dict[str, Any]:
    """The headline alone. Every predicted picture must be labelled, and every labelled one predicted."""
    paired = pair(read_predictions(options.predictions), read_labels(options.labels))
    for names, lacking in (
        (paired.unlabelled, "predicted pictures have no label"),
        (paired.unpredicted, "labelled pictures have no prediction"),
    ):
        if names:  # a score over some of the pictures would not be the set's
            raise ValueError(f"{len(names)} {lacking}, the first: {names[0]}")
    scores: dict[str, Any] = dict(headline(paired.splits["train"], paired.splits["heldout"]))
    return scores | {f"{split}_images": len(names) for split, names in paired.names.items()}


def _protocols(options: argparse.Namespace) -> dict[str, Any]:
    """Every protocol that applies, over the pictures that have both a prediction and a label."""
    labels = read_labels(options.labels)
    paired = pair(read_predictions(options.predictions), labels)
    swap = sides(labels.keypoint_names)
    return evaluate(paired.splits["train"], paired.splits["heldout"], swap) | _told(paired)


def _told(paired: Paired) -> dict[str, Any]:
    return {
        "split_from": paired.split_from,
        "unlabelled_images": len(paired.unlabelled),
        "unpredicted_labels": len(paired.unpredicted),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in (("headline", _headline), ("protocols", _protocols)):
        added = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        added.set_defaults(command=command)
        added.add_argument("--predictions", type=Path, required=True, help="JSON: split: {name: [[x, y], …] in [0, 1]}")
        added.add_argument("--labels", type=Path, required=True, help="CSV, COCO keypoints JSON or samples JSON")
    return parser

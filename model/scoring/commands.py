"""The commands of ``python -m model.evaluate``: files in, JSON out. Numpy only.

The forms of predictions are told in :mod:`model.scoring.prediction_files`, those of labels in
:mod:`model.scoring.label_files`. Occlusion takes
two steps, for the pictures' poses come from elsewhere:

1. ``masks`` hides parts of held-out squares, uint8 (N, S, S, 3) as NumPy wrote them, and writes a file of squares for
   each level into a folder. It prints ``{"seed", "levels": [{"kind", "level", "file"}, …]}``.
2. ``occlusion`` takes the poses of all of them: ``{"train": {name: [[x, y], …]}`` (clean, unrefined), ``"heldout":
   [name, …]`` (in the order of the squares), ``"seed"``, ``"levels": [{"kind", "level", "poses"}, …]}``, poses being
   (N, T + 1, K, 2), those of each refinement iteration; coordinates in [0, 1] of the square.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.version.prior_values import read_prior

from .label_files import read_labels
from .linear_maps import fit_maps
from .occlusion import cover, levels, occlusion_row, verdict
from .plots import plot_occlusion
from .prediction_files import Paired, pair, poses_of, read_predictions, rows_by_split, square_labels
from .protocols import evaluate, headline, sides
from .skeleton import STRONG, skeleton_scores


def run(arguments: list[str]) -> int:
    """Parse and run one command; the exit status: 0, or 2 where the files can't be used."""
    asks_help = not {"-h", "--help"}.isdisjoint(arguments)
    named = arguments and not arguments[0].startswith("-")
    options = _parser().parse_args(arguments if named or asks_help else ["headline", *arguments])
    try:
        command: Callable[[argparse.Namespace], dict[str, Any]] = options.command
        answer = command(options)
    except KeyError as error:
        print(f"can't score: the predictions have no {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, ImportError) as error:
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


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """Whether labels fit pictures, before these are predicted: poses may be null. How many would be scored."""
    predictions, labels = read_predictions(options.predictions), read_labels(options.labels)
    rows = rows_by_split(predictions, labels)
    for group in rows.values():
        square_labels(labels, group, predictions.get("sizes") or {})
    return {f"{split}_images": len(group) for split, group in rows.items()} | {"limbs": len(labels.edges)}


def _protocols(options: argparse.Namespace) -> dict[str, Any]:
    """Every protocol that applies, over the pictures that have both a prediction and a label."""
    labels = read_labels(options.labels)
    paired = pair(read_predictions(options.predictions), labels)
    if options.split_out:
        options.split_out.write_text(json.dumps(paired.names))
    swap = sides(labels.keypoint_names)
    return evaluate(paired.splits["train"], paired.splits["heldout"], swap) | _told(paired)


def _masks(options: argparse.Namespace) -> dict[str, Any]:
    """Hide parts of squares at every level of occlusion, a file each."""
    squares = np.load(options.squares, mmap_mode="r", allow_pickle=False)
    if squares.dtype != np.uint8 or squares.ndim != 4 or squares.shape[-1] != 3:
        raise ValueError(f"the squares are {squares.dtype} {squares.shape}; expected uint8 (N, S, S, 3)")
    options.out.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, level, hidden in levels(len(squares), options.seed):
        file = options.out / f"{kind}-{level:g}.npy"
        np.save(file, cover(squares, hidden))
        written.append({"kind": kind, "level": level, "file": file.name})
    return {"seed": options.seed, "levels": written}


def _occlusion(options: argparse.Namespace) -> dict[str, Any]:
    """The error at each refinement iteration at every level of occlusion, and what that says of refinement."""
    predictions, labels = read_predictions(options.predictions), read_labels(options.labels)
    sizes = predictions.get("sizes") or {}
    rows = rows_by_split(predictions, labels)
    train = (poses_of(predictions["train"], list(rows["train"])), *square_labels(labels, rows["train"], sizes))
    truth, visibility = square_labels(labels, rows["heldout"], sizes)
    heldout = list(predictions["heldout"])
    chosen = [index for index, name in enumerate(heldout) if name in rows["heldout"]]
    hidden = {(kind, level): patches[chosen] for kind, level, patches in levels(len(heldout), predictions["seed"])}
    maps = fit_maps(*train)
    table = []
    for entry in predictions["levels"]:
        kind, level = entry["kind"], float(entry["level"])
        if (kind, level) not in hidden:
            raise ValueError(f"there is no level {kind} {level:g}; expected those that 'masks' wrote")
        if len(entry["poses"]) != len(heldout):
            raise ValueError(f"{kind} {level:g} has {len(entry['poses'])} poses for {len(heldout)} pictures")
        poses = poses_of(dict(zip(heldout, entry["poses"], strict=True)), list(rows["heldout"]))
        table.append(occlusion_row(kind, level, hidden[kind, level], poses, truth, visibility, maps))
    if options.plot:
        plot_occlusion(table, options.plot)
    counts = {f"{split}_images": len(group) for split, group in rows.items()}
    return {"rows": table, "refinement": verdict(table)} | counts


def _skeleton(options: argparse.Namespace) -> dict[str, Any]:
    """The prior against the true skeleton that the labels name."""
    labels = read_labels(options.labels)
    splits = pair(read_predictions(options.predictions), labels).splits
    keypoints, truth, visibility = (
        np.concatenate(parts) for parts in zip(splits["train"], splits["heldout"], strict=True)
    )
    prior = read_prior(json.loads(options.prior.read_text()))
    points, weights = np.array(prior.keypoint_prior), np.array(prior.link_weights)
    return skeleton_scores(points, weights, keypoints, truth, visibility, labels.edges, strong=options.strong)


def _told(paired: Paired) -> dict[str, Any]:
    return {
        "split_from": paired.split_from,
        "unlabelled_images": len(paired.unlabelled),
        "unpredicted_labels": len(paired.unpredicted),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    added = {}
    for command in (_headline, _check, _protocols, _masks, _occlusion, _skeleton):
        name = command.__name__.removeprefix("_")
        added[name] = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        added[name].set_defaults(command=command)
        if command is not _masks:
            added[name].add_argument("--predictions", type=Path, required=True, help="JSON")
            added[name].add_argument("--labels", type=Path, required=True, help="CSV, COCO or samples JSON")
    added["protocols"].add_argument("--split-out", type=Path, help="JSON to write: the pictures' names by split")
    added["masks"].add_argument("--squares", type=Path, required=True, help="NumPy file, uint8 (N, S, S, 3)")
    added["masks"].add_argument("--out", type=Path, required=True, help="folder to write to")
    added["masks"].add_argument("--seed", type=int, default=0, help="of the random masks")
    added["occlusion"].add_argument("--plot", type=Path, help="PNG to write; needs the extra 'plots'")
    added["skeleton"].add_argument("--prior", type=Path, required=True, help="a prior as GET /priors exports it")
    added["skeleton"].add_argument("--strong", type=float, default=STRONG, help="share of the strongest link's weight")
    return parser

"""Measure how well keypoints learned without labels predict labelled ones, and how well the prior fits the skeleton.

    python -m model.evaluate --predictions P.json --labels L.json            the headline
    python -m model.evaluate check --predictions P.json --labels L           whether the files fit; poses may be null
    python -m model.evaluate protocols --predictions P.json --labels L       every protocol
    python -m model.evaluate masks --squares S.npy --out DIR                 occluded pictures to predict on
    python -m model.evaluate occlusion --predictions O.json --labels L [--plot OUT.png]
    python -m model.evaluate skeleton --predictions P.json --labels L --prior prior.json

Numpy only; files in, JSON out. :mod:`model.scoring.prediction_files` describes predictions,
:mod:`model.scoring.label_files` labels. Occlusion takes two steps, with the model run in between:

1. ``masks`` reads held-out squares, an .npy of uint8 (N, S, S, 3), writes a file of occluded squares for each level
   into a folder and prints ``{"seed", "levels": [{"kind", "level", "file"}, …]}``.
2. ``occlusion`` reads the poses predicted on them: ``{"train": {name: [[x, y], …]}`` (clean, unrefined), ``"heldout":
   [name, …]`` (in the order of the squares), ``"seed"``, ``"levels": [{"kind", "level", "poses"}, …]}``, with poses
   (N, T + 1, K, 2) of all refinement iterations; coordinates in [0, 1] of the square.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model.scoring.label_files import read_labels
from model.scoring.linear_maps import Array, Split, apply_maps, error_percent, fit_maps, mean_pose_percent
from model.scoring.occlusion import cover, levels, occlusion_row, verdict
from model.scoring.plots import plot_occlusion
from model.scoring.prediction_files import pair, poses_of, read_predictions, rows_by_split, square_labels
from model.scoring.protocols import evaluate, headline, sides
from model.scoring.skeleton import skeleton_scores
from model.version.prior_values import read_prior

__all__ = ["Array", "Split", "apply_maps", "error_percent", "evaluate", "fit_maps", "headline", "main"]
__all__ += ["mean_pose_percent", "sides"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 if the files can't be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asks_help = not {"-h", "--help"}.isdisjoint(arguments)
    has_command = arguments and not arguments[0].startswith("-")
    options = _make_parser().parse_args(arguments if has_command or asks_help else ["headline", *arguments])
    try:
        scores: dict[str, Any] = options.command(options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = f"the predictions have no {error}" if isinstance(error, KeyError) else error
        print(f"can't score: {reason}", file=sys.stderr)
        return 2
    print(json.dumps(scores))
    return 0


def _headline(options: argparse.Namespace) -> dict[str, Any]:
    """Score by the headline alone. Every predicted picture must have a label, and every label a prediction."""
    paired = pair(read_predictions(options.predictions), read_labels(options.labels))
    if names := paired.unlabelled:  # a partial score would not be comparable
        raise ValueError(f"{len(names)} predicted pictures have no label, the first: {names[0]}")
    if names := paired.unpredicted:
        raise ValueError(f"{len(names)} labelled pictures have no prediction, the first: {names[0]}")
    counts = {f"{split}_images": len(names) for split, names in paired.names.items()}
    return headline(paired.splits["train"], paired.splits["heldout"]) | counts


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """Check labels before predicting, and count the pictures to be scored; predicted poses may be null."""
    predictions, labels = read_predictions(options.predictions), read_labels(options.labels)
    rows = rows_by_split(predictions, labels)
    for group in rows.values():
        square_labels(labels, group, predictions.get("sizes") or {})
    return {f"{split}_images": len(group) for split, group in rows.items()} | {"limbs": len(labels.edges)}


def _protocols(options: argparse.Namespace) -> dict[str, Any]:
    """Score by every protocol that applies, on the pictures that have both a prediction and a label."""
    labels = read_labels(options.labels)
    paired = pair(read_predictions(options.predictions), labels)
    if options.split_out:
        options.split_out.write_text(json.dumps(paired.names))
    swap = sides(labels.keypoint_names)
    return evaluate(paired.splits["train"], paired.splits["heldout"], swap) | {
        "split_from": paired.split_from,
        "unlabelled_images": len(paired.unlabelled),
        "unpredicted_labels": len(paired.unpredicted),
    }


def _masks(options: argparse.Namespace) -> dict[str, Any]:
    """Write occluded squares, one file for each level of occlusion."""
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
    """Score each refinement iteration at every level of occlusion, and refinement as a whole."""
    predictions, labels = read_predictions(options.predictions), read_labels(options.labels)
    sizes = predictions.get("sizes") or {}
    rows = rows_by_split(predictions, labels)
    train = (poses_of(predictions["train"], list(rows["train"])), *square_labels(labels, rows["train"], sizes))
    truth, visibility = square_labels(labels, rows["heldout"], sizes)
    heldout = list(predictions["heldout"])
    labelled = [index for index, name in enumerate(heldout) if name in rows["heldout"]]
    hidden = {(kind, level): patches[labelled] for kind, level, patches in levels(len(heldout), predictions["seed"])}
    maps = fit_maps(*train)
    table = []
    for entry in predictions["levels"]:
        kind, level = entry["kind"], float(entry["level"])
        if (kind, level) not in hidden:
            raise ValueError(f"there is no level {kind} {level:g}; expected those that 'masks' writes")
        if len(entry["poses"]) != len(heldout):
            raise ValueError(f"{kind} {level:g} has {len(entry['poses'])} poses for {len(heldout)} pictures")
        poses = poses_of(dict(zip(heldout, entry["poses"], strict=True)), list(rows["heldout"]))
        table.append(occlusion_row(kind, level, hidden[kind, level], poses, truth, visibility, maps))
    if options.plot:
        plot_occlusion(table, options.plot)
    counts = {f"{split}_images": len(group) for split, group in rows.items()}
    return {"rows": table, "refinement": verdict(table)} | counts


def _skeleton(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the prior with the true skeleton of the labels."""
    labels = read_labels(options.labels)
    splits = pair(read_predictions(options.predictions), labels).splits
    keypoints, truth, visibility = (
        np.concatenate(parts) for parts in zip(splits["train"], splits["heldout"], strict=True)
    )
    prior = read_prior(json.loads(options.prior.read_text()))
    points, weights = np.array(prior.keypoint_prior), np.array(prior.link_weights)
    chosen: dict[str, Any] = {"skeleton": prior.skeleton} if options.strong is None else {"strong": options.strong}
    return skeleton_scores(points, weights, keypoints, truth, visibility, labels.edges, **chosen)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parsers = {}
    for command in (_headline, _check, _protocols, _masks, _occlusion, _skeleton):
        name = command.__name__.removeprefix("_")
        parsers[name] = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        parsers[name].set_defaults(command=command)
        if command is not _masks:
            parsers[name].add_argument("--predictions", type=Path, required=True, help="JSON")
            parsers[name].add_argument("--labels", type=Path, required=True, help="CSV, COCO or samples JSON")
    parsers["protocols"].add_argument("--split-out", type=Path, help="JSON file to write: the pictures' names by split")
    parsers["masks"].add_argument("--squares", type=Path, required=True, help="NumPy file, uint8 (N, S, S, 3)")
    parsers["masks"].add_argument("--out", type=Path, required=True, help="folder to write to")
    parsers["masks"].add_argument("--seed", type=int, default=0, help="seed of the random patches")
    parsers["occlusion"].add_argument("--plot", type=Path, help="PNG file to write; needs the extra 'plots'")
    parsers["skeleton"].add_argument("--prior", type=Path, required=True, help="a prior as GET /priors exports it")
    parsers["skeleton"].add_argument(
        "--strong", type=float, help="share of the strongest link's weight, instead of the links that one would draw"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

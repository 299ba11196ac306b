"""Measure how the error of landmarks falls with the number of labelled pictures.

    python -m benchmarks.accuracy.landmarks --set mj_dog.npz --version service/samples/dog

The poses of all pictures of a set are estimated once with a trained version. Then some of the training pictures
are drawn at random, several times; landmarks are fitted on each draw as by ``POST /priors/{category}/landmarks`` and
scored on all held-out pictures. Beside the error are the cross-validated error, which the API reports from the draw
alone, and the error of each landmark's mean position. A landmark with too few labels in a draw can't be fitted and does
not count in that draw. The last row is the usual protocol, least squares on every training picture.

The project does not contain the sets; ``benchmarks/accuracy/packs.py`` describes how to get them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.predictor import Predictor
from model.scoring.landmarks import FEWEST_PICTURES, FEWEST_VISIBLE, fit_landmarks
from model.scoring.linear_maps import Split, apply_maps, error_percent, mean_pose_percent
from model.scoring.protocols import evaluate
from model.version.tensor_files import CheckpointError

from .packs import Pack, PackError, Part, read_pack

COUNTS = (5, 10, 20, 50, 200)
_AT_ONCE = 64  # pictures


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 2 if the arguments or files are not valid."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        predictor = Predictor.load(options.version, options.device)
        pack = read_pack(options.set, predictor.config.image_size)
        found = curve(pack, predictor, options.pictures, options.draws, options.seed)
    except (PackError, CheckpointError, ValueError, OSError) as error:
        print(f"landmarks: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1) if options.json else _table(found))
    return 0


def curve(pack: Pack, predictor: Predictor, counts: Sequence[int], draws: int, seed: int) -> dict[str, Any]:
    """Return the held-out errors, in percent of the image side, by the number of labelled pictures.

    Raises:
        ValueError: a set without labels, or with fewer training pictures than are to be drawn.
    """
    if not pack.is_labelled:
        raise ValueError(f"{pack.name} has no labels")
    most = len(pack.train.images)
    if not all(FEWEST_PICTURES <= count <= most for count in counts):
        raise ValueError(f"pictures to label: {list(counts)}; expected {FEWEST_PICTURES} to {most}, the set's")
    train, test = _split(predictor, pack.train), _split(predictor, pack.test)
    rng = np.random.default_rng(seed)
    rows = []
    for count in counts:
        drawn = [_draw(train, test, rng.choice(most, count, replace=False)) for _ in range(draws)]
        rows.append({"pictures": count, "draws": draws, **_summary(drawn)})
    scores = evaluate(train, test)
    return {
        "set": pack.name,
        "test_pictures": len(pack.test.images),
        "landmarks": len(pack.keypoint_names),
        "map_inputs": scores["map_inputs"],
        "rows": rows,
        "all": {"pictures": most, **scores["headline"], "landmarks": scores["labelled_keypoints"]},
    }


def _split(predictor: Predictor, part: Part) -> Split:
    images = part.images
    poses = [predictor.predict(images[first : first + _AT_ONCE]).keypoints for first in range(0, len(images), _AT_ONCE)]
    return (np.concatenate(poses).astype(np.float64) + 1) / 2, part.keypoints, part.visibility


def _draw(train: Split, test: Split, rows: np.ndarray) -> dict[str, float]:
    """Fit landmarks on some training pictures and score them on the held-out ones."""
    fitted = np.flatnonzero(((train[2][rows] > 0).sum(0) >= FEWEST_VISIBLE) & (test[2] > 0).any(0))
    keypoints, labels, visibility = train[0][rows], train[1][rows][:, fitted], train[2][rows][:, fitted]
    fit = fit_landmarks(keypoints, labels, visibility)
    truth, seen = test[1][:, fitted], test[2][:, fitted]
    return {
        "error_percent": error_percent(apply_maps(test[0], fit.maps), truth, seen),
        "reported_percent": 100 * float(np.nanmean(fit.distances)),
        "mean_place_percent": mean_pose_percent(labels, visibility, truth, seen),
        "landmarks": float(len(fitted)),
    }


def _summary(drawn: list[dict[str, float]]) -> dict[str, float]:
    summary = {name: float(np.mean([one[name] for one in drawn])) for name in drawn[0]}
    spread = float(np.std([one["error_percent"] for one in drawn], ddof=1)) if len(drawn) > 1 else 0.0
    return {**summary, "spread_percent": spread}


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['set']}: {found['landmarks']} landmarks on {found['test_pictures']} held-out pictures, "
        f"% of the image side; a map has {found['map_inputs']} inputs",
        "",
        "| labelled | draws | error | spread | as reported | mean place | landmarks fitted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        numbers = [row[name] for name in ("error_percent", "spread_percent", "reported_percent", "mean_place_percent")]
        cells = [str(row["pictures"]), str(row["draws"]), *(f"{number:.2f}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} | {row['landmarks']:.1f} |")
    whole = found["all"]
    lines.append(
        f"| all {whole['pictures']}, least squares | 1 | {whole['error_percent']:.2f} | - | - "
        f"| {whole['mean_pose_percent']:.2f} | {whole['landmarks']} |"
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.landmarks",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", type=Path, required=True, metavar="PACK.npz")
    parser.add_argument("--version", type=Path, required=True, metavar="DIR", help="folder of a trained version")
    parser.add_argument("--pictures", type=int, nargs="+", default=list(COUNTS), help="numbers of labelled pictures")
    parser.add_argument("--draws", type=int, default=10, help="draws of each number (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())

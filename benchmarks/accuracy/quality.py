"""Hold the quality that a version is given without labels against its error on labels.

    python -m benchmarks.accuracy.quality train --sets mj_dog.npz cub50_aligned.npz faces68.npz --out versions
    python -m benchmarks.accuracy.quality report versions

``train`` trains versions of each set: good ones, which differ in steps, seed, keypoints and augmentation, and ones
spoilt on purpose (``SPOILT``). Each is a folder with the version's files and ``measured.json``: the measures of
``model/quality.py`` on its training pictures, and its error on held-out labels divided by that of the mean pose. A
finished version is not trained again; ``--again`` measures all of them anew. ``report`` judges the measures by the rule
of ``model/scoring/quality.py`` and prints, beside a row a version:

- the rank correlation (Spearman) of the score and the labelled error over all versions, over the half that the rule may
  be fixed on (every other one in the order of their names), and over the other half;
- the same among the good versions of each set;
- how many spoilt versions are called doubtful or failed, and how many of the others good.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.config import Value, resolve
from model.predictor import Predictor
from model.presence import calibrate_presence
from model.quality import measure_quality
from model.scoring.linear_maps import apply_maps, fit_maps
from model.scoring.quality import judge
from model.training.trainer import Trainer

from .measures import in_unit, predict_trajectories
from .packs import Pack, Part, read_pack
from .runs import write_json

Images = NDArray[np.uint8]

SPOILT = ("steps", "mixed", "clutter", "thirty", "still")
"""What is wrong: 15 steps; two sets; the thing small and anywhere in clutter; 30 pictures; the thing small on one still
ground."""

_FITTED, _SCORED = 800, 400  # labelled pictures, at most
_SMALL = (0.25, 0.4)  # of the side, of a thing that was not cut out


@dataclass(frozen=True)
class Trial:
    """One version to train: its name, and what is wrong with it, if anything."""

    name: str
    steps: int
    seed: int
    spoilt: str = ""
    settings: dict[str, Value] = field(default_factory=dict)


GOOD = (
    Trial("good-240-a", 240, 0),
    Trial("good-100-b", 100, 1),
    Trial("good-150-c", 150, 2),
    Trial("good-200-few-keypoints", 200, 0, settings={"num_keypoints": 8}),
    Trial("good-200-augmented", 200, 3, settings={"augmentation": 1.0}),
)
BAD = (
    Trial("spoilt-steps", 15, 0, "steps"),
    Trial("spoilt-mixed", 80, 0, "mixed"),
    Trial("spoilt-clutter", 60, 0, "clutter"),
    Trial("spoilt-thirty", 80, 0, "thirty"),
    Trial("spoilt-still", 60, 0, "still"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return int(options.command(options))


def _train(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    side = int(resolve().image_size)
    packs = {path.stem: read_pack(path, side) for path in options.sets}
    names = list(packs)
    for trial in (one for pair in _interleave(GOOD, BAD) for one in pair):
        for index, name in enumerate(names):
            folder = options.out / f"{name}.{trial.name}"
            if (folder / "measured.json").exists() and not options.again:
                continue
            started = time.perf_counter()
            other = packs[names[(index + 1) % len(names)]]
            measured = make_version(folder, trial, packs[name], other)
            print(f"{folder.name}: ratio {measured['ratio']:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    return 0


def _interleave(first: Sequence[Trial], second: Sequence[Trial]) -> Iterator[Sequence[Trial]]:
    """Yield a good and a spoilt one in turn, so that a part of the run has both."""
    for index in range(max(len(first), len(second))):
        yield (*first[index : index + 1], *second[index : index + 1])


def make_version(folder: Path, trial: Trial, pack: Pack, other: Pack) -> dict[str, Any]:
    """Train a version unless its files are there, measure it and write ``measured.json``."""
    train, test = spoil(trial.spoilt, pack, other)
    if not (folder / "weights.safetensors").exists():
        config = resolve(overrides={"steps": trial.steps, "seed": trial.seed, **trial.settings})
        trainer = Trainer(train.images, config, "cpu")
        for _ in trainer.run():
            pass
        folder.mkdir(parents=True, exist_ok=True)
        trainer.export(folder)
        presence = calibrate_presence(trainer.model, train.images)
        if presence is not None:
            write_json(folder / "presence.json", presence.to_json())
    predictor = Predictor.load(folder, "cpu")
    measured = {
        "set": pack.name,
        "spoilt": trial.spoilt,
        "ratio": labelled_ratio(predictor, *_labelled(trial.spoilt, pack, train, test)),
        "pictures": len(train.images),
        "keypoints": predictor.config.num_keypoints,
        "measures": measure_quality(predictor.model, train.images),
    }
    write_json(folder / "measured.json", measured)
    return measured


def spoil(what: str, pack: Pack, other: Pack) -> tuple[Part, Part]:
    """Return the pictures that a version trains on and those that it is scored on, spoilt as ``SPOILT`` says."""
    rng = np.random.default_rng(0)
    train, test = pack.train, pack.test
    if what == "thirty":
        return _rows(train, rng.permutation(len(train.images))[:30]), test
    if what == "mixed":
        strange = other.train.images[: len(train.images)]
        return Part(np.concatenate((train.images, strange)), train.keypoints, train.visibility), test
    if what in ("clutter", "still"):
        grounds = np.stack([_ground(other.test.images, rng) for _ in range(1 if what == "still" else 64)])
        return _paste(train, grounds, rng), _paste(test, grounds, rng)
    return train, test


def _labelled(what: str, pack: Pack, train: Part, test: Part) -> tuple[Part, Part]:
    """Return the labelled pictures to fit maps on and to score; those of 30 pictures would fit chance."""
    fitted = train if what in ("clutter", "still") else pack.train
    chosen = np.unique(np.linspace(0, len(fitted.keypoints) - 1, _FITTED).round().astype(int))
    return _rows(fitted, chosen), _rows(test, np.arange(min(_SCORED, len(test.images))))


def labelled_ratio(predictor: Predictor, fitted: Part, scored: Part) -> float:
    """Return the error of linear maps to the labels, fitted on some pictures, divided by that of the mean pose."""

    def error(poses: NDArray[np.float64], constants: NDArray[np.float64]) -> float:
        maps = fit_maps(poses, fitted.keypoints, fitted.visibility)
        distances = np.linalg.norm(apply_maps(constants, maps) - scored.keypoints, axis=-1)
        return float(distances[scored.visibility > 0].mean())

    own = [in_unit(predict_trajectories(predictor, part.images, 0))[:, 0] for part in (fitted, scored)]
    mean = [np.full((len(part.images), 1, 2), 0.5) for part in (fitted, scored)]
    return error(*own) / error(*mean)


def _rows(part: Part, rows: NDArray[np.int64]) -> Part:
    return Part(part.images[rows], part.keypoints[rows], part.visibility[rows])


def _ground(images: Images, rng: np.random.Generator) -> Images:
    """Make clutter of sixteen enlarged parts of pictures."""
    side = images.shape[1]
    part = side // 4
    ground = np.empty_like(images[0])
    for y in range(0, side, part):
        for x in range(0, side, part):
            a, b = rng.integers(0, side - part, 2)
            ground[y : y + part, x : x + part] = images[rng.integers(len(images)), a : a + part, b : b + part]
    return ground


def _paste(part: Part, grounds: Images, rng: np.random.Generator) -> Part:
    """Paste each picture small, anywhere onto a ground; its labels go along."""
    side = part.images.shape[1]
    images, keypoints = [], []
    for image, points in zip(part.images, part.keypoints, strict=True):
        small = round(side * rng.uniform(*_SMALL))
        y, x = rng.integers(0, side - small + 1, 2)
        whole = grounds[rng.integers(len(grounds))].copy()
        whole[y : y + small, x : x + small] = Image.fromarray(image).resize((small, small), Image.Resampling.BILINEAR)
        images.append(whole)
        keypoints.append((points * small + (x, y)) / side)
    return Part(np.stack(images), np.stack(keypoints), part.visibility)


def report(folder: Path) -> dict[str, Any]:
    """Judge the measured versions of a folder; return what ``report`` prints."""
    rows = []
    for file in sorted(folder.glob("*/measured.json")):
        found = json.loads(file.read_text())
        judged = judge(found["measures"], found["pictures"], found["keypoints"])
        rows.append({"name": file.parent.name, **{key: found[key] for key in ("set", "spoilt", "ratio")}, **judged})
    good = [row for row in rows if not row["spoilt"]]
    spoilt = [row for row in rows if row["spoilt"]]
    return {
        "versions": rows,
        "correlation": {"all": correlate(rows), "fixed on": correlate(rows[::2]), "other half": correlate(rows[1::2])},
        "among good": {name: correlate([row for row in good if row["set"] == name]) for name in _sets(rows)},
        "spoilt called doubtful or failed": [sum(row["verdict"] != "good" for row in spoilt), len(spoilt)],
        "others called good": [sum(row["verdict"] == "good" for row in good), len(good)],
    }


def _sets(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({row["set"] for row in rows})


def correlate(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the rank correlation of the score with how small the labelled error is; ties share their mean rank.

    None where all scores, or all errors, are the same.
    """
    if any(len({row[key] for row in rows}) < 2 for key in ("score", "ratio")):
        return None
    ranks = [_ranks(np.array([sign * row[key] for row in rows])) for key, sign in (("score", 1), ("ratio", -1))]
    return round(float(np.corrcoef(*ranks)[0, 1]), 3)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks


def _report(options: argparse.Namespace) -> int:
    found = report(options.folder)
    for row in found.pop("versions"):
        print(f"{row['name']:45} ratio {row['ratio']:.3f}  score {row['score']:.3f}  {row['verdict']}")
    print(json.dumps(found, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.quality",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train and measure the versions")
    train.set_defaults(command=_train)
    train.add_argument("--sets", type=Path, nargs="+", required=True, metavar="PACK.npz")
    train.add_argument("--out", type=Path, required=True, metavar="DIR")
    train.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    train.add_argument("--again", action="store_true", help="measure trained versions anew")
    judged = commands.add_parser("report", help="judge the measured versions")
    judged.set_defaults(command=_report)
    judged.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())

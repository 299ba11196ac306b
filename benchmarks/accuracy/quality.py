"""Hold the quality that a version is given without labels against its error on labels.

    python -m benchmarks.accuracy.quality train --sets mj_dog.npz cub50_aligned.npz faces68.npz --out versions
    python -m benchmarks.accuracy.quality report versions

``train`` trains versions of each set: good ones, which differ in steps, seed, keypoints, augmentation and features,
and ones spoilt on purpose (``SPOILT``). A run gives a version at several of its steps, as ``ppl publish`` does.
``--small`` trains at a quarter of the pixels and half of the batch, in a fifth of the time. Each version is a folder
with its weights, its settings and ``measured.json``: the measures of ``model/quality.py`` on its training pictures,
and its error on held-out labels divided by that of the mean pose. A finished version is not trained again;
``--again`` measures all of them anew. ``report`` judges the measures by the rule of ``model/scoring/quality.py`` and
prints, beside a row a version:

- the rank correlation (Spearman) of the score and the labelled error over all versions, over the half that the rule was
  fixed on (every other one in the order of their names), and over the other half;
- the same among the good versions of each set;
- how many spoilt versions are called doubtful or failed, and how many of the others good.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.config import Value, resolve
from model.network.architecture import named_features
from model.predictor import Predictor
from model.quality import measure_quality
from model.scoring.linear_maps import apply_maps, fit_maps
from model.scoring.quality import judge
from model.training.trainer import Trainer
from model.version import tensor_files

from .measures import in_unit, predict_trajectories
from .packs import Pack, Part, read_pack
from .runs import write_json

Images = NDArray[np.uint8]

SPOILT = ("steps", "mixed", "clutter", "thirty", "still", "rate")
"""What is wrong: 15 steps; two sets; the thing small and anywhere in clutter; 30 pictures; the thing small on one still
ground; a learning rate that is far too high."""

_FITTED, _SCORED = 500, 250  # labelled pictures, at most
_SMALL = (0.25, 0.4)  # of the side, of a thing that was not cut out
_FEWEST_STEPS = 15  # a version of so few is spoilt
_QUICK: dict[str, Value] = {"working_size": 32, "perceptual_size": 32, "batch_size": 16}


@dataclass(frozen=True)
class Trial:
    """One run: its name, the steps at which it gives a version, and what is wrong with it, if anything."""

    name: str
    versions_at: tuple[int, ...]
    seed: int
    spoilt: str = ""
    settings: dict[str, Value] = field(default_factory=dict)

    @property
    def versions(self) -> dict[int, tuple[str, str]]:
        """By their steps: the names of the versions, and what is wrong with each."""
        wrong = {step: self.spoilt or ("steps" if step <= _FEWEST_STEPS else "") for step in self.versions_at}
        return {step: (f"{'spoilt' if what else 'good'}-{self.name}-{step}", what) for step, what in wrong.items()}


TRIALS = (
    Trial("a", (15, 50, 100, 160), 0),
    Trial("still", (40,), 0, "still"),
    Trial("mixed", (40,), 0, "mixed"),
    Trial("few-keypoints", (60,), 1, settings={"num_keypoints": 8}),
    Trial("thirty", (40,), 0, "thirty"),
    Trial("clutter", (40,), 0, "clutter"),
    Trial("b", (60, 100), 2, settings={"augmentation": 1.0}),
    Trial("rate", (15,), 0, "rate", {"learning_rate": 0.05}),
    Trial("no-features", (80,), 4, settings={"features": "none"}),
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
    for trial in TRIALS:
        for index, name in enumerate(names):
            started = time.process_time()
            other = packs[names[(index + 1) % len(names)]]
            settings = {**_QUICK, **trial.settings} if options.small else trial.settings
            made = make_versions(options.out, replace(trial, settings=settings), packs[name], other, options.again)
            for version, ratio in made.items():
                print(f"{version}: ratio {ratio:.3f}, {time.process_time() - started:.0f} s", flush=True)
    return 0


def make_versions(out: Path, trial: Trial, pack: Pack, other: Pack, again: bool = False) -> dict[str, float]:
    """Train a run's versions unless their files are there; measure those that were not, or all of them ``again``.

    Returns the labelled ratio of each version that was measured.
    """
    train, test = spoil(trial.spoilt, pack, other)
    folders = {step: out / f"{pack.name}.{name}" for step, (name, _) in trial.versions.items()}
    if not all((folder / "weights.safetensors").exists() for folder in folders.values()):
        _train_versions(folders, trial, train)
    measured = {}
    for step, folder in folders.items():
        if (folder / "measured.json").exists() and not again:
            continue
        predictor = Predictor.load(folder, "cpu")
        ratio = labelled_ratio(predictor, *_labelled(trial.spoilt, pack, train, test))
        found = {
            "set": pack.name,
            "spoilt": trial.versions[step][1],
            "ratio": ratio,
            "pictures": len(train.images),
            "keypoints": predictor.config.num_keypoints,
            "measures": measure_quality(predictor.model, train.images),
        }
        write_json(folder / "measured.json", found)
        measured[folder.name] = ratio
    return measured


def _train_versions(folders: dict[int, Path], trial: Trial, train: Part) -> None:
    """Train a run, and write weights and settings to a folder at each of its steps."""
    config = resolve(overrides={"steps": max(folders), "seed": trial.seed, **trial.settings})
    trainer = Trainer(train.images, config, "cpu")
    for report in trainer.run():
        if report.step in folders:
            folder = folders[report.step]
            folder.mkdir(parents=True, exist_ok=True)
            facts = {"step": report.step, "features": named_features(config)}
            tensor_files.save_json(folder / "config.json", config.to_dict())
            tensor_files.save(folder / "weights.safetensors", trainer.model.state_dict(), facts)


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
    train.add_argument("--small", action="store_true", help="at a quarter of the pixels and half of the batch")
    train.add_argument("--again", action="store_true", help="measure trained versions anew")
    judged = commands.add_parser("report", help="judge the measured versions")
    judged.set_defaults(command=_report)
    judged.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())

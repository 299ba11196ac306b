"""Measure how well a version separates pictures of its category from others, and how well it is calibrated.

    python -m benchmarks.accuracy.presence --version DIR --set mj_dog.npz --others cub50_aligned.npz --video mouse.mp4
    python -m benchmarks.accuracy.presence --mouse --others mj_dog.npz cub50_aligned.npz --video mouse.mp4

The version, a folder, is calibrated on the training pictures of its set. With ``--mouse`` a version is trained on the
first three fifths of the video of one animal before a fixed camera, cut out by motion; the last fifth is held out.
Held-out pictures are scored against each kind of pictures without the thing: the five that calibration makes, made
anew from held-out pictures; those of other sets; animals of the video, cut out by motion, or places of its arena
without one. Prints for each kind the area under the ROC curve and the expected calibration error (ten bins, both
classes weighing the same), and both over all kinds, each of which weighs the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import resolve
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor
from model.presence import calibrate_presence, collect_evidence, make_absent
from model.training.trainer import Trainer
from service.contract.media.fitting import Box, fit_square
from service.contract.media.motion import MotionLocator
from service.contract.media.pictures import Picture
from service.contract.media.videos import iter_frames

from .packs import read_pack

Array = NDArray[np.float64]
Images = NDArray[np.uint8]

KINDS = ("noise", "shuffled", "hidden", "corner", "painted out")  # in the order of make_absent
_MOST = 400  # pictures of a kind
_BINS = 10
_FRAMES = 600  # of the video


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    side = int(resolve().image_size)
    absent: dict[str, Images] = {path.stem: read_pack(path, side).test.images[:_MOST] for path in options.others}
    animals, places = cut_out(options.video, side) if options.video else (None, None)
    if options.mouse:
        if animals is None or places is None:
            raise SystemExit("--mouse needs --video")
        first, last = len(animals) * 3 // 5, len(animals) * 4 // 5
        model, train, heldout = _train(animals[:first], options.steps), animals[:first], animals[last:]
        absent["arena"] = places[last:]
    else:
        model, pack = Predictor.load(options.version, "cpu").model, read_pack(options.set, side)
        train, heldout = pack.train.images, pack.test.images[:_MOST]
        if animals is not None:
            absent["animals of the video"] = animals
    print(json.dumps(score(model, train, heldout, absent), indent=1))
    return 0


def score(model: PosePriorLearner, train: Images, heldout: Images, absent: dict[str, Images]) -> dict[str, object]:
    """Calibrate on training pictures; return the figures of held-out ones against each kind, and against all."""
    presence = calibrate_presence(model, train)
    if presence is None:
        raise SystemExit(f"{len(train)} training pictures are too few to calibrate")
    made = np.split(make_absent(model, heldout, np.random.default_rng(1)), len(KINDS))
    there = presence.probability(collect_evidence(model, heldout))
    found = {
        kind: presence.probability(collect_evidence(model, images))
        for kind, images in {**dict(zip(KINDS, made, strict=True)), **absent}.items()
    }
    rows = {kind: _figures(there, [values]) for kind, values in found.items()}
    return {
        "heldout": len(heldout),
        "mean_present": round(float(there.mean()), 3),
        "kinds": rows,
        "all": _figures(there, list(found.values())),
        "all but made": _figures(there, [found[kind] for kind in absent]) if absent else None,
    }


def _figures(there: Array, absent: list[Array]) -> dict[str, float]:
    return {
        "auroc": round(float(np.mean([auroc(there, values) for values in absent])), 4),
        "ece": round(calibration_error(there, absent), 4),
        "mean_absent": round(float(np.mean([values.mean() for values in absent])), 3),
    }


def auroc(positive: Array, negative: Array) -> float:
    """Return the share of pairs in which the positive one has the higher value; equal ones count half."""
    higher, equal = positive[:, None] > negative, positive[:, None] == negative
    return float((higher + equal / 2).mean())


def calibration_error(there: Array, absent: Sequence[Array]) -> float:
    """Return the expected calibration error where half of all pictures show the thing; each kind weighs the same."""
    values = np.concatenate((there, *absent))
    truth = np.arange(len(values)) < len(there)
    weights = [np.full(len(there), 0.5 / len(there))]
    weights += [np.full(len(kind), 0.5 / len(absent) / len(kind)) for kind in absent]
    gaps = np.concatenate(weights) * (values - truth)
    bins = np.minimum((values * _BINS).astype(int), _BINS - 1)
    return float(np.abs(np.bincount(bins, gaps, _BINS)).sum())


def cut_out(video: Path, side: int) -> tuple[Images, Images]:
    """Return squares around what moves in a video, and squares of the same size elsewhere in the same frames."""
    with tempfile.TemporaryFile() as kept:
        frames = [Picture.of(frame.image) for frame in iter_frames(video, _FRAMES)]
        locator = MotionLocator(kept)
        for frame in frames:
            locator.add(frame.image)
        boxes = locator.locate().boxes
    pairs = [(frame, box, _elsewhere(frame.size, box)) for frame, box in zip(frames, boxes, strict=True) if box]
    usable = [(frame, box, other) for frame, box, other in pairs if other]
    animals = [fit_square(frame, side, box)[0] for frame, box, _ in usable]
    places = [fit_square(frame, side, other)[0] for frame, _, other in usable]
    return np.stack(animals), np.stack(places)


def _elsewhere(size: tuple[int, int], box: Box) -> Box | None:
    """Return a box of the same size that does not touch it, at a place that depends on the box; None if none fits."""
    x, y, side, _ = box
    rng = np.random.default_rng(int(1000 * (x + y)) % 2**32)
    for _ in range(100):
        a, b = (float(rng.uniform(0, max(1.0, length - side))) for length in size)
        if abs(a - x) >= side or abs(b - y) >= side:
            return a, b, side, side
    return None


def _train(images: Images, steps: int) -> PosePriorLearner:
    trainer = Trainer(images, resolve(overrides={"steps": steps}), "cpu")
    for _ in trainer.run():
        pass
    trainer.model.freeze()
    return trainer.model


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.presence",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--version", type=Path, metavar="DIR", help="folder of a version, trained on --set")
    what.add_argument("--mouse", action="store_true", help="train on the animal of --video")
    parser.add_argument("--set", type=Path, metavar="PACK.npz")
    parser.add_argument("--others", type=Path, nargs="*", default=[], metavar="PACK.npz", help="sets without the thing")
    parser.add_argument("--video", type=Path, help="one animal before a fixed camera")
    parser.add_argument("--steps", type=int, default=150, help="of --mouse (default: 150)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

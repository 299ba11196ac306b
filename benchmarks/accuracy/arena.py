"""Measure what a user gets from a fixed camera: the thing is located by motion, learned, and found in a video.

    ppl up &
    python -m benchmarks.accuracy.arena --frames m4s1 --labels m4s1.csv --video m3v1.mp4 --steps 800 --seed 0

All goes through the server at --url. A category is trained on the frames, a folder of one camera, without labels and
without a setting but the steps, the seed and --align. Then it prints as JSON:

- "inside_percent": frames of which all labels lie in the box, turned if it has an angle, and "side": of the box in body
  lengths, the median distance between the first and the last label;
- of a version that rotates pictures, "axis_degrees", the median angle between the box and the line from the last label
  to the first, and "reversed", the frames in which it is over 90 degrees; and both of the angles that are found by
  trying, "tried_degrees" and "tried_reversed", from the same boxes without angles;
- "error_percent": the error of a linear map from the keypoints to the labels in percent of the body length, fitted on
  four of five contiguous blocks of the labelled frames (in the order of their names) and measured on the fifth: by
  ridge regression, as ``ppl landmarks fit`` does it, and "least_squares_percent" without;
- of the video, which the version never saw, in coordinates of the upright box and unsmoothed: "jumps_percent", pairs of
  consecutive frames in which a keypoint moves by more than a quarter of the box (of all keypoints and pairs, and
  "any_jumps_percent" of pairs with any), and "moves_percent", the root mean square distance of the keypoints from their
  mean places; of a version that rotates pictures also "turned_moves_percent", in coordinates of the turned box,
  "reversals", pairs of consecutive frames between which the box turns by more than 90 degrees, and "no_heading", frames
  without an angle;
- the same of a version that was trained on the video alone, with --from-video.

The files are those of DeepLabCut's example project, which the project does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_files import read_labels
from model.scoring.labels import Labels
from model.scoring.landmarks import fit_landmarks
from model.scoring.linear_maps import apply_maps, fit_maps
from service.client import Client
from service.client.types import ImageEstimate
from service.client.uploads import list_named_pictures
from service.contract.media.fitting import turn

Array = NDArray[np.float64]

_BLOCKS = 5
_JUMP = 0.25
_AT_ONCE = 8  # pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    with Client(options.url) as client:
        settings = {"steps": options.steps, "seed": options.seed}
        settings |= {} if options.align is None else {"align": options.align}
        found: dict[str, Any] = dict(settings)
        if options.from_video:
            version = _train(client, options.category, options.video, settings)
        else:
            version = _train(client, options.category, options.frames, settings)
            found |= score_frames(client, options.category, version, options.frames, read_labels(options.labels))
        found |= score_video(client, options.category, version, options.video)
    print(json.dumps(found, indent=1))
    return 0


def _train(client: Client, category: str, pictures: Path, settings: dict[str, Any]) -> str:
    job = client.wait(client.train(category, pictures, settings=settings).id)
    if job.version is None:
        raise SystemExit(f"the training {job.status}: {job.error}")
    print(f"trained {job.version}, located: {job.metrics.get('located')}", file=sys.stderr)
    return job.version


def score_frames(client: Client, category: str, version: str, folder: Path, labels: Labels) -> dict[str, Any]:
    """Return the figures of labelled frames, located by motion."""
    named = list_named_pictures([folder])
    started = client.estimate_async(category, named, version=version, locate="motion")
    result = client.wait_estimate(started.id).result
    assert result is not None
    rows = labels.match([name for name, _ in named])
    images = [image for image in result.images if rows[image.index] >= 0]
    boxes = np.array([_box(image) for image in images])
    keypoints = _in_box(images, _keypoints(images), turned=True)
    chosen = rows[[image.index for image in images]]
    points, visible = labels.keypoints[chosen], labels.visibility[chosen] > 0
    targets = _in_box(images, points, turned=True)
    is_inside = (((targets >= 0) & (targets <= 1)).all(-1) | ~visible).all(1)
    ends = points[:, [0, -1]][visible[:, [0, -1]].all(1)]
    body = float(np.median(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1)))
    count = int((rows >= 0).sum())
    errors: dict[str, list[Array]] = {"error_percent": [], "least_squares_percent": []}
    for block in np.array_split(np.arange(len(images)), _BLOCKS):
        rest = np.setdiff1d(np.arange(len(images)), block)
        fitted = keypoints[rest], np.where(visible[rest, :, None], targets[rest], 0), visible[rest].astype(np.float64)
        for name, maps in (
            ("error_percent", fit_landmarks(*fitted).maps),
            ("least_squares_percent", fit_maps(*fitted)),
        ):
            distances = np.linalg.norm(apply_maps(keypoints[block], maps) - targets[block], axis=-1)
            errors[name].append((distances * boxes[block, 2:3])[visible[block]])
    more: dict[str, Any] = {}
    angles = np.array([_angle(image) for image in images])
    if np.isfinite(angles).any():
        ahead, seen = points[:, 0] - points[:, -1], visible[:, [0, -1]].all(1)
        truth = np.degrees(np.arctan2(ahead[:, 0], -ahead[:, 1]))
        apart = np.abs(_difference(angles, truth))[seen]
        pictures, tried = [named[image.index] for image in images], []
        for first in range(0, len(images), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            tried += client.estimate(category, pictures[part], version, boxes=boxes[part].tolist()).images
        apart_tried = np.abs(_difference(np.array([_angle(image) for image in tried]), truth))[seen]
        more = {
            "axis_degrees": float(np.median(np.minimum(apart, 180 - apart))),
            "reversed": int((apart > 90).sum()),
            "tried_degrees": float(np.median(np.minimum(apart_tried, 180 - apart_tried))),
            "tried_reversed": int((apart_tried > 90).sum()),
        }
    return {
        "frames": count,
        "found": len(images),
        **more,
        "inside_percent": 100 * int(is_inside.sum()) / count,
        "side": float(np.median(boxes[:, 2])) / body,
        **{name: 100 * float(np.concatenate(found).mean()) / body for name, found in errors.items()},
    }


def score_video(client: Client, category: str, version: str, video: Path) -> dict[str, Any]:
    """Return the figures of a video's frames, located by default."""
    started = client.estimate_async(category, video=video, version=version)
    result = client.wait_estimate(started.id).result
    assert result is not None
    images = [image for image in result.images if image.region]
    if not images:
        return {"video_frames": len(result.images), "located": 0}
    found = _keypoints(images)
    poses, turned = (_in_box(images, found, turned=turned) for turned in (False, True))
    numbers = [image.frame or 0 for image in images]
    follows = np.array([b == a + 1 for a, b in pairwise(numbers)])
    steps = np.linalg.norm(np.diff(poses, axis=0), axis=-1)[follows]
    more: dict[str, Any] = {}
    angles = np.array([_angle(image) for image in images])
    if np.isfinite(angles).any():
        more = {
            "turned_moves_percent": _spread_percent(turned),
            "reversals": int((np.abs(_difference(angles[1:], angles[:-1]))[follows] > 90).sum()),
            "no_heading": sum(problem.code == "no_heading" for problem in result.errors or ()),
        }
    return {
        **more,
        "video_frames": len(result.images),
        "located": len(images),
        "errors": len(result.errors or ()),
        "jumps_percent": 100 * float((steps > _JUMP).mean()),
        "any_jumps_percent": 100 * float((steps > _JUMP).any(1).mean()),
        "moves_percent": _spread_percent(poses),
    }


def _spread_percent(poses: Array) -> float:
    return 100 * float(np.sqrt(((poses - poses.mean(0)) ** 2).sum(-1).mean()))


def _box(image: ImageEstimate) -> tuple[float, float, float, float]:
    assert image.region is not None
    return image.region.x, image.region.y, image.region.width, image.region.height


def _angle(image: ImageEstimate) -> float:
    angle = image.region.angle if image.region else None
    return np.nan if angle is None else angle


def _difference(a: Array, b: Array) -> Array:
    """Return angles from -180 to 180 degrees."""
    return (a - b + 180) % 360 - 180


def _keypoints(images: Sequence[ImageEstimate]) -> Array:
    return np.array([[(point.x, point.y) for point in image.keypoints] for image in images])


def _in_box(images: Sequence[ImageEstimate], points: Array, *, turned: bool) -> Array:
    """Return points (N, K, 2) in [0, 1] of the boxes, turned by their angles or upright."""
    relative = []
    for image, own in zip(images, points, strict=True):
        x, y, width, height = _box(image)
        angle = _angle(image) if turned else np.nan
        own = own if np.isnan(angle) else turn(own, (x + width / 2 - 0.5, y + height / 2 - 0.5), -angle)
        relative.append((own + 0.5 - (x, y)) / (width, height))
    return np.stack(relative)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy.arena", description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--frames", type=Path, required=True, help="folder of frames")
    parser.add_argument("--labels", type=Path, required=True, help="their labels")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--from-video", action="store_true", help="train on the video instead of the frames")
    parser.add_argument(
        "--align", choices=("off", "auto", "heading"), help="the setting of the training, if not default"
    )
    parser.add_argument("--category", default="arena-mouse")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())

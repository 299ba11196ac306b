"""A tiny image set, drawn: a slanted bar a picture, with the arrays of a pack."""

import io
import json

import numpy as np
from PIL import Image

SIDE = 48
NAMES = ("middle", "tip_L", "tip_R", "left_eye", "right_eye")


def bar(angle, centre, side=SIDE):
    """A bright bar on grey and its labels: the middle, the two ends, and a point beside each end."""
    y, x = np.mgrid[:side, :side] + 0.5
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    offset = np.stack([x, y], axis=-1) - centre * side
    inside = (np.abs(offset @ along) < 0.3 * side) & (np.abs(offset @ across) < 0.07 * side)
    points = centre + np.array([[0, 0], [-0.3, 0], [0.3, 0], [-0.25, 0.05], [0.25, 0.05]]) @ np.stack([along, across])
    return np.where(inside[..., None], [230, 180, 90], [60, 70, 80]).astype(np.uint8), points


def pack_values(train=14, test=6, labelled=True):
    """The arrays of a pack by key, and its pictures as they were before JPEG."""
    rng = np.random.default_rng(0)
    drawn = [bar(rng.uniform(-0.7, 0.7), rng.uniform(0.42, 0.58, 2)) for _ in range(train + test)]
    blobs = []
    for image, _ in drawn:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        blobs.append(file.getvalue())
    names = NAMES if labelled else ()
    meta = {"source": "drawn by the tests", "licence": "none needed"}
    values = {
        "jpeg_blob": np.frombuffer(b"".join(blobs), np.uint8),
        "jpeg_offsets": np.cumsum([0, *map(len, blobs)]),
        "keypoints": np.array([points[: len(names)] for _, points in drawn], np.float32),
        "visibility": np.ones((train + test, len(names)), np.uint8),
        "split": np.array(["test" if index % 10 < 3 else "train" for index in range(train + test)]),
        "keypoint_names": np.array(names, dtype="U11"),
        "meta": np.array(json.dumps({**meta, "edges": [[0, 1], [0, 2], [1, 3], [2, 4]]} if labelled else meta)),
    }
    return values, [image for image, _ in drawn]

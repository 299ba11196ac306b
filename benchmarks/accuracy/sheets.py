"""Draw contact sheets, one PNG a run: poses estimated in test pictures, and the prior beside its prototypes.

The licences of some sets do not allow publishing their pictures, so the sheets are written to the runs' folders, which
git ignores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.predictor import Predictor
from service.contract.media.fitting import Frame
from service.estimates.drawing import overlay, prior_picture

from .groups import read_results
from .measures import predict_trajectories
from .packs import Pack, read_pack

COLUMNS = 8
CELL_PX = 160
_GAP_PX = 4
_GROUND = (13, 15, 33)


def sheets(results: Path, set_file: Path, count: int, refine_steps: int) -> Iterator[Path]:
    """Draw every finished run of a set; yield the sheets' files, each beside its run's version.

    Raises:
        ValueError: no run of this set has its version there, or the set can't be read.
    """
    packs: dict[int, Pack] = {}
    for result in read_results(results):
        folder = results / result["group"] / f"seed{result['seed']}"
        if result["set"] != set_file.stem or not (folder / "version").is_dir():
            continue
        predictor = Predictor.load(folder / "version")
        side = predictor.config.image_size
        packs[side] = packs.get(side) or read_pack(set_file, side)
        file = folder / "sheet.png"
        refine = refine_steps if predictor.config.method == "ppl" else 0
        sheet(predictor, folder / "version", packs[side], count, refine).save(file)
        yield file
    if not packs:
        raise ValueError(f"{results} holds no version that was trained on {set_file.stem}")


def sheet(predictor: Predictor, version: Path, pack: Pack, count: int, refine_steps: int) -> Image.Image:
    """Return a run's sheet: evenly spaced test pictures with their poses, then the prior and the prototypes.

    Args:
        version: folder with prior.json and memory.json.
        count: largest number of test pictures; 0 for a sheet that may be published.
    """
    prior: dict[str, Any] = json.loads((version / "prior.json").read_text())
    memory: dict[str, Any] = json.loads((version / "memory.json").read_text())
    images = pack.test.images
    cells: list[Image.Image] = []
    if count > 0:
        chosen = images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]
        poses = predict_trajectories(predictor, chosen, refine_steps)[:, -1]
        cells = [_draw_pose(Image.fromarray(image), pose, prior) for image, pose in zip(chosen, poses, strict=True)]
    dark = Image.new("RGB", (CELL_PX, CELL_PX), _GROUND)
    learned = [prior_picture(prior, CELL_PX)]
    learned += [_draw_pose(dark, np.array(prototype["keypoints"]), prior) for prototype in memory["prototypes"]]
    return _grid([cells, learned])


def _draw_pose(picture: Image.Image, pose: NDArray[Any], prior: dict[str, Any]) -> Image.Image:
    """Draw a pose (K, 2) in [-1, 1] on its square, enlarged to a cell."""
    enlarged = picture.resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC)
    frame = Frame(0.0, 0.0, CELL_PX)
    return overlay(enlarged, frame, frame.to_picture(pose), prior["links"])


def _grid(blocks: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Arrange blocks of cells below each other; each block starts a new row."""
    rows = sum(math.ceil(len(block) / COLUMNS) for block in blocks)
    pitch = CELL_PX + _GAP_PX
    canvas = Image.new("RGB", (COLUMNS * pitch - _GAP_PX, rows * pitch - _GAP_PX), (255, 255, 255))
    row = 0
    for block in blocks:
        for index, cell in enumerate(block):
            canvas.paste(cell, (index % COLUMNS * pitch, (row + index // COLUMNS) * pitch))
        row += math.ceil(len(block) / COLUMNS)
    return canvas

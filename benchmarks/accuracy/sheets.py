"""Draw contact sheets, one PNG a run: poses estimated in test pictures, and the prior beside its prototypes.

A run is drawn as soon as it has trained, also while it is measured, and only once.

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
from PIL import Image, PngImagePlugin

from model.predictor import Predictor
from model.version.prior_values import read_prior
from service.contract.media.fitting import Frame
from service.estimates.drawing import overlay, prior_picture

from .measures import predict_trajectories
from .packs import Pack, read_pack

COLUMNS = 8
CELL_PX = 160
_GAP_PX = 4
_GROUND = (13, 15, 33)


def sheets(results: Path, set_file: Path, count: int, refine_steps: int) -> Iterator[Path]:
    """Draw the trained runs of a set that have no sheet of their version yet, or one of another kind.

    Yields:
        The sheets' files, each beside its run's version.

    Raises:
        ValueError: no run of this set has its version there, or the set can't be read.
    """
    versions = sorted(results.glob(f"{set_file.stem}.*/seed*/version"))
    if not versions:
        raise ValueError(f"{results} holds no version that was trained on {set_file.stem}")
    packs: dict[int, Pack] = {}
    for version in versions:
        file = version.with_name("sheet.png")
        made_from = f"{count} pictures, refined {refine_steps} times, {version.stat().st_mtime_ns}"
        if file.exists() and _made_from(file) == made_from:
            continue
        predictor = Predictor.load(version)
        side = predictor.config.image_size
        packs[side] = packs.get(side) or read_pack(set_file, side)
        refine = refine_steps if predictor.config.method == "ppl" else 0
        text = PngImagePlugin.PngInfo()
        text.add_text("made from", made_from)
        sheet(predictor, version, packs[side], count, refine).save(file, pnginfo=text)
        yield file


def _made_from(file: Path) -> str | None:
    with Image.open(file) as picture:
        return picture.info.get("made from")


def sheet(predictor: Predictor, version: Path, pack: Pack, count: int, refine_steps: int) -> Image.Image:
    """Return a run's sheet: evenly spaced test pictures with their poses, then the prior and the prototypes.

    Args:
        version: folder with prior.json and memory.json.
        count: largest number of test pictures; 0 for a sheet that may be published.
    """
    prior: dict[str, Any] = json.loads((version / "prior.json").read_text())
    drawn = set(read_prior(prior).skeleton)
    skeleton = [link for link in prior["links"] if (link["i"], link["j"]) in drawn]
    memory: dict[str, Any] = json.loads((version / "memory.json").read_text())
    images = pack.test.images
    cells: list[Image.Image] = []
    if count > 0:
        chosen = images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]
        poses = predict_trajectories(predictor, chosen, refine_steps)[:, -1]
        cells = [_draw_pose(Image.fromarray(image), pose, skeleton) for image, pose in zip(chosen, poses, strict=True)]
    dark = Image.new("RGB", (CELL_PX, CELL_PX), _GROUND)
    learned = [prior_picture(prior, CELL_PX)]
    learned += [_draw_pose(dark, np.array(prototype["keypoints"]), skeleton) for prototype in memory["prototypes"]]
    return _grid([cells, learned])


def _draw_pose(picture: Image.Image, pose: NDArray[Any], skeleton: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw a pose (K, 2) in [-1, 1] and its skeleton's links on its square, enlarged to a cell."""
    enlarged = picture.resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC)
    frame = Frame(0.0, 0.0, CELL_PX)
    return overlay(enlarged, frame, frame.to_picture(pose), skeleton)


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

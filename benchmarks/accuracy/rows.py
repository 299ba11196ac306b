"""The rows of ``ACCURACY.md``: the methods compared, as settings of the model.

``mean-pose``
    No model: each labelled keypoint at its mean training position.
``ppl``
The preset without changes.
``autolink``
    The baseline with the same widths, schedules, learning rate, perceptual network and time as ``ppl``, and AutoLink's
    own link map, without colours: the two rows differ in the method only.
``autolink-published``
    AutoLink (He et al. 2022) with the settings of its public release (train.py's defaults, models/ and utils_/loss.py):
    first width 64, batches of 64, AdamW at a constant 1e-4 with weight decay 1e-3, link weights softplus(512 theta)
    from mean -4 and spread 0.1, sigma squared 1e-3 from the first step to the last (its authors' advice for 16
    keypoints; their example with 8 has 2.5e-3), patches of a 16 x 16 grid masked with probability 0.8, no flip.
    What differs, under the preset ``compact``: pictures of 64 x 64 where the release has 128 (its 16 x 16 grid has
    patches of 4 pixels then), and the activations of EfficientNet-lite0 at 64 where it compares those of VGG16 at
    224. Under the preset ``paper`` both are the release's. Under both: strided convolutions and bf16 where the
    device has it (release: bilinear halving, fp16), coordinates at pixel centres, and the time or the steps that the
    run is given (release: 20,000 steps).
``variant:1`` … ``variant:11``
    The paper's table of prior variants, its columns in its order. A predefined prior is ``dog_prior.json`` unless
    another is given: 16 of the 21 joints of ``mj_dog`` at about their mean in the training pictures, with the limbs
    between them as links of weight 0.5, about what strong links of a learned prior have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import PPLConfig, SettingError, Value, resolve
from model.version.prior import PosePrior

DOG_PRIOR = Path(__file__).parent / "dog_prior.json"
MEAN_POSE = "mean-pose"

_AUTOLINK: dict[str, Value] = {"method": "autolink", "link_colours": 0, "object_colour": False}
_PUBLISHED: dict[str, Value] = {
    **_AUTOLINK,
    "base_width": 64,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "weight_decay": 1e-3,
    "link_scale": 512.0,
    "link_init_mean": -4.0,
    "link_init_std": 0.1,
    "link_width": 1e-3,
    "link_width_start": 1e-3,
    "link_width_fraction": 0.0,
    "mask_ratio": 0.8,
    "mask_grid": 16,
    "horizontal_flip": False,
    "boundary_weight": 0.0,
    "link_regularization_weight": 0.0,
}
_PUBLISHED_NETWORK: dict[str, Value] = {"perceptual": "vgg16", "perceptual_size": 224}
# keypoint prior and whether it is trained, connectivity prior and whether it is trained: table 4, columns 1 to 11
_VARIANTS = (
    ("predefined", True, "predefined", True),
    ("predefined", True, "predefined", False),
    ("predefined", False, "predefined", True),
    ("predefined", False, "predefined", False),
    ("predefined", True, "random", True),
    ("predefined", False, "random", True),
    ("random", True, "predefined", True),
    ("random", False, "predefined", True),
    ("random", True, "random", True),
    ("random", False, "random", True),
    ("memory", False, "random", True),
)
ROWS = (MEAN_POSE, "ppl", "autolink", "autolink-published", *(f"variant:{n + 1}" for n in range(len(_VARIANTS))))


@dataclass(frozen=True)
class Plan:
    """The training of a row.

    Attributes:
        config: all settings; the caller sets steps and seed.
        prior: the prior that training starts from, if the settings need one.
    """

    config: PPLConfig
    prior: PosePrior | None


def plan(row: str, preset: str, options: Mapping[str, Any], prior_file: Path | None = None) -> Plan:
    """Return the settings of a row; ``options`` replace the row's, which replace the preset's.

    Raises:
        SettingError: an unknown row or setting, or a value out of range.
        ValueError: the prior's file is not a prior, or does not fit the settings.
        OSError: the prior's file can't be read.
    """
    config = resolve(preset, {**_overrides(row, preset), **options})
    if not config.needs_prior:
        if prior_file is not None:
            raise ValueError(f"row {row} starts from no predefined prior, but {prior_file.name} is given")
        return Plan(config, None)
    return Plan(config, PosePrior.from_json(json.loads((prior_file or DOG_PRIOR).read_text())))


def describe(row: str) -> str:
    """Return a row's name in a table; for a variant, with its priors."""
    if not row.startswith("variant:"):
        return row
    keypoints, keypoints_trained, links, links_trained = _VARIANTS[int(row.removeprefix("variant:")) - 1]
    trained = {True: "trained", False: "frozen"}
    first = "memory" if keypoints == "memory" else f"{keypoints}, {trained[keypoints_trained]}"
    return f"{row} (keypoints {first}; links {links}, {trained[links_trained]})"


def _overrides(row: str, preset: str) -> dict[str, Value]:
    if row not in ROWS or row == MEAN_POSE:
        raise SettingError("row", f"row is '{row}'; it must be one of {', '.join(ROWS)}")
    if row == "ppl":
        return {}
    if row == "autolink":
        return _AUTOLINK
    if row == "autolink-published":
        return {**_PUBLISHED, **(_PUBLISHED_NETWORK if preset == "paper" else {})}
    keypoints, keypoints_trained, links, links_trained = _VARIANTS[int(row.removeprefix("variant:")) - 1]
    return {
        "keypoint_prior": keypoints,
        "keypoint_prior_trainable": keypoints_trained,
        "connectivity_prior": links,
        "connectivity_prior_trainable": links_trained,
    }

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from model.config import PPLConfig, resolve
from model.network.pose_prior_learner import PosePriorLearner
from model.version import tensor_files
from model.version.weight_shapes import expected_tensors

SMALL: dict[str, Any] = {"base_width": 8, "num_keypoints": 5, "num_banks": 3, "bank_size": 4, "token_dim": 16}
SAMPLE = Path(__file__).resolve().parents[3] / "service" / "samples" / "dog"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_depth": 2, "memory_width": 24},
        {"skips": "concat"},
        {"head": "affine"},
        {"link_colours": 0},
        {"object_colour": False},
        {"method": "autolink"},
        {"keypoint_prior": "random", "keypoint_prior_trainable": True},
        {"keypoint_prior": "predefined", "connectivity_prior": "predefined"},
        {"connectivity_prior_trainable": False, "image_size": 128},
    ],
)
def test_expected_tensors_are_those_of_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    config = resolve("compact", {**SMALL, **changes})
    tensor_files.save(tmp_path / "weights.safetensors", PosePriorLearner(config).state_dict(), {})
    assert _header(tmp_path / "weights.safetensors") == expected_tensors(config)


def test_expected_tensors_are_those_of_the_sample_version() -> None:
    config = PPLConfig.from_dict(tensor_files.load_json(SAMPLE / "config.json"))
    assert _header(SAMPLE / "weights.safetensors") == expected_tensors(config)


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with safe_open(path, framework="numpy") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}

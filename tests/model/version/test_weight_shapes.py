from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from model.config import PPLConfig, resolve
from model.network.architecture import expected_tensors
from model.network.pose_prior_learner import PosePriorLearner
from model.version import tensor_files

SMALL: dict[str, Any] = {"base_width": 8, "num_keypoints": 5, "num_banks": 3, "bank_size": 4, "token_dim": 16}
SAMPLE = Path(__file__).resolve().parents[3] / "service" / "samples" / "dog"


# SHA-256 of the names, types and shapes that files of these settings have had since the release that first had them
DIGESTS: list[tuple[dict[str, Any], str]] = [
    ({}, "ac5dcaf2f125"),
    ({"memory_depth": 2, "memory_width": 24}, "47232e217e76"),
    ({"skips": "concat"}, "0c79ddabd5da"),
    ({"head": "affine"}, "ac5dcaf2f125"),
    ({"link_colours": 0}, "9febdd88c1ae"),
    ({"object_colour": False}, "107f32da2a77"),
    ({"method": "autolink"}, "9fa9e8887e44"),
    ({"keypoint_prior": "random", "keypoint_prior_trainable": True}, "e107c4f947e3"),
    ({"keypoint_prior": "predefined", "connectivity_prior": "predefined"}, "e107c4f947e3"),
    ({"connectivity_prior_trainable": False, "image_size": 128}, "ac5dcaf2f125"),
    ({"features": "efficientnet_lite0", "attention_start": "random", "zoom": "off"}, "ed0c9091cd5e"),
    ({"features": "efficientnet_lite0", "attention_start": "random"}, "fa8cbb403cc9"),
    ({"features": "efficientnet_lite0"}, "ba7f379b36e0"),
]


@pytest.mark.parametrize(("changes", "digest"), DIGESTS)
def test_tensors_of_files_keep_their_names_and_shapes(changes: dict[str, Any], digest: str, tmp_path: Path) -> None:
    config = resolve("compact", {"features": "none", **SMALL, **changes})
    tensor_files.save(tmp_path / "weights.safetensors", PosePriorLearner(config).state_dict(), {})
    expected = expected_tensors(config)
    assert _header(tmp_path / "weights.safetensors") == expected
    assert hashlib.sha256(repr(sorted(expected.items())).encode()).hexdigest().startswith(digest)


def test_expected_tensors_are_those_of_the_sample_version() -> None:
    config = PPLConfig.from_dict(tensor_files.load_json(SAMPLE / "config.json"))
    assert _header(SAMPLE / "weights.safetensors") == expected_tensors(config)


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with safe_open(path, framework="numpy") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}

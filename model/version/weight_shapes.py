"""The tensors of a weights file, from the settings alone; the gateway, which has no torch, checks uploads by them."""

from __future__ import annotations

from model.config import PPLConfig
from model.network.architecture import Part, Values, pose_prior_learner

Tensor = tuple[str, tuple[int, ...]]
"""A tensor's type as safetensors files name it, and its shape."""


def expected_tensors(config: PPLConfig) -> dict[str, Tensor]:
    """Return every tensor of a model with these settings by its name in the file."""
    return _tensors(pose_prior_learner(config))


def _tensors(parts: dict[str, Part], prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, Values):
            found[prefix + name] = (part.dtype, part.shape)
        elif part is not None:
            found |= _tensors(part.parts, f"{prefix}{name}.")
    return found

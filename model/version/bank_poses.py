"""Decode poses from memory vectors with numpy: the gateway shows what a bank varies, and has no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import PPLConfig
from model.network.architecture import Block, Layer, Part, memory

Array = NDArray[np.floating[Any]]

# names and kinds of the layers are the same for all settings; the sizes are those of the tensors
_DECODER = memory(PPLConfig())["decoder"]
_EPSILON = 1e-5  # of torch's LayerNorm
_erf = np.vectorize(math.erf, otypes=[np.float64])


def vary_bank(tensors: Mapping[str, Array], bank: int, codes: Sequence[int] | None = None) -> Array:
    """Put each vector of a bank into a pose and return the poses, (V, K, 2) in [-1, 1].

    Args:
        tensors: a version's ``memory.codebook`` (M, V, D) and ``memory.decoder.*``, by name.
        codes: (M,), the vectors of the pose's other banks; None takes the mean of each, as the keypoint prior does.
    """
    codebook = tensors["memory.codebook"]
    vectors = codebook.mean(axis=1) if codes is None else codebook[np.arange(len(codebook)), np.asarray(codes)]
    varied = np.repeat(vectors[None], codebook.shape[1], axis=0)
    varied[:, bank] = codebook[bank]
    return decode(tensors, varied)


def decode(tensors: Mapping[str, Array], vectors: Array) -> Array:
    """Decode M vectors a pose, (B, M, D), to poses (B, K, 2) with a version's ``memory.decoder.*``."""
    return _apply(_DECODER, tensors, "memory.decoder.", vectors)


def _apply(part: Part, tensors: Mapping[str, Array], prefix: str, values: Array) -> Array:
    """Apply a layer or block to (B, T, C), as :mod:`model.network.blocks` does."""
    if isinstance(part, Layer):
        return _apply_layer(part, tensors, prefix, values)
    assert isinstance(part, Block)

    def inner(name: str, values: Array) -> Array:
        return _apply(part.parts[name], tensors, f"{prefix}{name}.", values)

    if part.kind == "across_tokens":
        return inner("linear", values.swapaxes(1, 2)).swapaxes(1, 2)
    if part.kind == "mixer":
        mixed = values + inner("token_mlp", inner("token_norm", values).swapaxes(1, 2)).swapaxes(1, 2)
        return mixed + inner("channel_mlp", inner("channel_norm", mixed))
    assert part.kind == "sequence"
    for index in range(len(part.parts)):
        values = inner(str(index), values)
    return values


def _apply_layer(layer: Layer, tensors: Mapping[str, Array], prefix: str, values: Array) -> Array:
    if layer.kind == "gelu":
        activated: Array = values * (1 + _erf(values / math.sqrt(2))) / 2
        return activated
    weight, bias = tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]
    if layer.kind == "linear":
        return values @ weight.T + bias
    assert layer.kind == "layer_norm"
    centred = values - values.mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + _EPSILON) * weight + bias
    return normalised

"""Every layer and tensor of the model as plain data, without torch.

The modules of this folder are built from it; the gateway, which has no torch, checks uploaded weights by it.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, TypeAlias

from model.config import PPLConfig

FEATURE_WIDTHS = {"efficientnet_lite0": (24, 40, 112)}
"""Channels of a frozen network's activations at 1/4, 1/8 and 1/16 of its input's side, which is twice the encoder's."""

FEATURE_WEIGHTS = {"efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
"""SHA-256 of the weights file of each network of the setting ``features``; versions are trained with these alone."""


def named_features(config: PPLConfig) -> dict[str, str] | None:
    """Return name and checksum of the frozen network, whose weights a version does not repeat; None without one."""
    name = config.features
    return None if name == "none" else {"name": name, "sha256": FEATURE_WEIGHTS[name]}


CLUSTERS_START = 10.0
"""Factor of the attention's clusters at the start of a run; with 20, what is learned hardly moves the attention."""


class Values(NamedTuple):
    """A tensor outside of a layer: its shape, and its type as safetensors files name it."""

    shape: tuple[int, ...]
    dtype: str = "F32"


class Layer(NamedTuple):
    """A layer of torch, and the shape of its weights; only the stride of a convolution changes the side."""

    kind: Literal["conv", "linear", "layer_norm", "batch_norm", "relu", "gelu"]
    weight: tuple[int, ...] = ()
    stride: int = 1
    bias: bool = True

    @property
    def parts(self) -> Parts:
        """The layer's tensors by name."""
        if not self.weight:
            return {}
        parts: Parts = {"weight": Values(self.weight), "bias": Values(self.weight[:1]) if self.bias else None}
        if self.kind == "batch_norm":
            parts |= {name: Values(self.weight) for name in ("running_mean", "running_var")}
            parts["num_batches_tracked"] = Values((), "I64")
        return parts


class Block(NamedTuple):
    """Named parts, in the order in which their weights are drawn; :mod:`.blocks` has the modules."""

    kind: Literal["residual_down", "up", "join", "image_encoder", "mixer", "across_tokens", "sequence", "network"]
    parts: Parts


Part: TypeAlias = Values | Layer | Block | None
Parts: TypeAlias = dict[str, Part]


def pose_prior_learner(config: PPLConfig) -> Parts:
    """Return the parts of the whole model."""
    links = config.num_links
    return {
        "link_logits": Values((links,)),
        "link_colours": Values((links, config.link_colours)) if config.link_colours else None,
        "own_prior": Values((config.num_keypoints, 2)) if config.keypoint_prior != "memory" else None,
        "regressor": Block("network", regressor(config)),
        "reconstructor": Block("network", reconstructor(config)),
        "memory": Block("network", memory(config)) if config.method != "autolink" else None,
        "locator": locator(config),
    }


def locator(config: PPLConfig) -> Block | None:
    """Return the buffers of the locator; None with zoom=off or features=none."""
    if config.zoom == "off" or config.features == "none":
        return None
    _, fine, deep = FEATURE_WIDTHS[config.features]
    parts: Parts = {"weight": Values((fine + deep,)), "bias": Values(())}
    return Block("network", parts | {"template": Values((deep, (config.side // 8) ** 2))})


def regressor(config: PPLConfig) -> Parts:
    """Return the layers from image to keypoints; for AutoLink they end with the attention maps."""
    widths = [config.base_width * factor for factor in (1, 2, 4, 8)]
    width = widths[1]  # of the encoder's features
    encoder: Parts = {"down": _down([3, *widths]), "up": _up(widths[:0:-1], config.skips)}
    if config.features != "none":
        encoder["joins"] = _sequence(*map(_join, FEATURE_WIDTHS[config.features], widths))
    parts: Parts = {
        "encoder": Block("image_encoder", encoder),
        "attention": Layer("conv", (config.num_keypoints, width, 3, 3)),
        "clusters": clusters(config),
    }
    if config.method == "autolink":
        return parts
    return parts | {
        "embed_position": _linear(2, width),
        "embed_prior": _sequence(_linear(2, width), Layer("relu"), _linear(width, width)),
        # drawn from the last to the first, so that a seed gives the weights it always gave
        "affine": Block("sequence", {"2": _linear(width, 6), "0": _linear(3 * width, width), "1": Layer("relu")}),
    }


def clusters(config: PPLConfig) -> Block | None:
    """Return the buffers of the attention from clusters; None with attention_start=random or features=none."""
    if config.attention_start == "random" or config.features == "none":
        return None
    width, keypoints = FEATURE_WIDTHS[config.features][-1], config.num_keypoints
    parts: Parts = {"mean": Values((width,)), "spread": Values((width,)), "directions": Values((keypoints, width))}
    return Block("network", parts | {"factor": Values(())})


def reconstructor(config: PPLConfig) -> Parts:
    """Return the layers of the U-Net from reference and drawing to image."""
    widths = [config.base_width * factor for factor in (1, 2, 4, 8, 8)]
    return {
        "reference_scale": Values(()),
        "stem": Layer("conv", (widths[0], 3 + config.drawing_channels, 3, 3)),
        "down": _down(widths),
        "up": _up(widths[::-1], config.skips),
        "out": Layer("conv", (3, widths[0], 3, 3)),
    }


def memory(config: PPLConfig) -> Parts:
    """Return encoder, decoder and buffers of the memory."""
    keypoints, banks, width, dim = config.num_keypoints, config.num_banks, config.memory_width, config.token_dim
    vectors = (banks, config.bank_size)
    mixers = [_mixer(keypoints, width, 64, 512) for _ in range(config.memory_depth)]
    to_banks, from_banks = (_across_tokens(*tokens) for tokens in ((keypoints, banks), (banks, keypoints)))
    norm, narrow_norm = Layer("layer_norm", (width,)), Layer("layer_norm", (32,))
    return {
        "encoder": _sequence(_linear(2, width), *mixers, norm, to_banks, _linear(width, dim)),
        "decoder": _sequence(from_banks, _linear(dim, 32), _mixer(keypoints, 32, 64, 64), narrow_norm, _linear(32, 2)),
        "codebook": Values((*vectors, dim)),
        "sums": Values((*vectors, dim)),
        "hits": Values(vectors),
        "filled": Values((), "BOOL"),
        "idle_steps": Values(vectors, "I64"),
        "use_counts": Values(vectors, "I64"),
    }


def _linear(width_in: int, width_out: int) -> Layer:
    return Layer("linear", (width_out, width_in))


def _sequence(*parts: Part) -> Block:
    return Block("sequence", {str(index): part for index, part in enumerate(parts)})


def _down(widths: list[int]) -> Block:
    def down(width_in: int, width_out: int) -> Block:
        norm = Layer("batch_norm", (width_out,))
        first = Layer("conv", (width_out, width_in, 3, 3), stride=2, bias=False)
        second = Layer("conv", (width_out, width_out, 3, 3), bias=False)
        parts: Parts = {"first": first, "first_norm": norm, "second": second, "second_norm": norm}
        return Block("residual_down", parts | {"shortcut": Layer("conv", (width_out, width_in, 1, 1))})

    return _sequence(*itertools.starmap(down, itertools.pairwise(widths)))


def _up(widths: list[int], skips: str) -> Block:
    def up(deep: int, shallow: int) -> Block:
        narrow = Layer("conv", (shallow, deep, 1, 1)) if skips == "sum" else None
        conv = Layer("conv", (shallow, shallow if skips == "sum" else deep + shallow, 3, 3), bias=False)
        return Block("up", {"narrow": narrow, "conv": conv, "norm": Layer("batch_norm", (shallow,))})

    return _sequence(*itertools.starmap(up, itertools.pairwise(widths)))


def _join(width_in: int, width_out: int) -> Block:
    return Block(
        "join", {"norm": Layer("batch_norm", (width_in,)), "project": Layer("conv", (width_out, width_in, 1, 1))}
    )


def _mixer(tokens: int, channels: int, token_width: int, channel_width: int) -> Block:
    norm = Layer("layer_norm", (channels,))
    token_mlp, channel_mlp = (
        _sequence(_linear(width, hidden), Layer("gelu"), _linear(hidden, width))
        for width, hidden in ((tokens, token_width), (channels, channel_width))
    )
    parts: Parts = {"token_norm": norm, "token_mlp": token_mlp, "channel_norm": norm, "channel_mlp": channel_mlp}
    return Block("mixer", parts)


def _across_tokens(tokens_in: int, tokens_out: int) -> Block:
    return Block("across_tokens", {"linear": _linear(tokens_in, tokens_out)})


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

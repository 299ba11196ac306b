"""The tensors that a model's weights file holds, told from its settings alone. Pure Python: no torch.

So that a file of weights can be refused by its header, where nothing is there to load it with. A test holds this to
the model itself.
"""

from __future__ import annotations

import itertools

from model.config import PPLConfig

Tensor = tuple[str, tuple[int, ...]]
"""A tensor's type as safetensors files name it, and its shape."""


def expected_tensors(config: PPLConfig) -> dict[str, Tensor]:
    """Every tensor of a model of these settings, by name."""
    found = {"link_logits": _f32(config.num_links)}
    if config.link_colours:
        found["link_colours"] = _f32(config.num_links, config.link_colours)
    found |= _under("regressor", _regressor(config))
    found |= _under("reconstructor", _reconstructor(config))
    if config.method != "autolink":
        found |= _under("memory", _memory(config))
    if config.keypoint_prior != "memory":
        found["own_prior"] = _f32(config.num_keypoints, 2)
    return found


def _regressor(config: PPLConfig) -> dict[str, Tensor]:
    widths = [config.base_width * factor for factor in (1, 2, 4, 8)]
    found = _under("encoder.down", _downs([3, *widths]))
    found |= _under("encoder.up", _ups([widths[3], widths[2], widths[1]], config.skips))
    channels = widths[1]
    found |= _under("attention", _conv(channels, config.num_keypoints, 3))
    if config.method == "autolink":
        return found
    found |= _under("embed_position", _linear(2, channels))
    found |= _under("embed_prior", {**_under("0", _linear(2, channels)), **_under("2", _linear(channels, channels))})
    found |= _under("affine", {**_under("0", _linear(3 * channels, channels)), **_under("2", _linear(channels, 6))})
    return found


def _reconstructor(config: PPLConfig) -> dict[str, Tensor]:
    widths = [config.base_width * factor for factor in (1, 2, 4, 8, 8)]
    return {
        "reference_scale": _f32(),
        **_under("stem", _conv(3 + config.drawing_channels, widths[0], 3)),
        **_under("down", _downs(widths)),
        **_under("up", _ups(widths[::-1], config.skips)),
        **_under("out", _conv(widths[0], 3, 3)),
    }


def _memory(config: PPLConfig) -> dict[str, Tensor]:
    keypoints, banks, size, dim = config.num_keypoints, config.num_banks, config.bank_size, config.token_dim
    width, depth = config.memory_width, config.memory_depth
    encoder = [
        _linear(2, width),
        *(_mixer(keypoints, width, 64, 512) for _ in range(depth)),
        _norm(width),
        _under("linear", _linear(keypoints, banks)),
        _linear(width, dim),
    ]
    decoder = [
        _under("linear", _linear(banks, keypoints)),
        _linear(dim, 32),
        _mixer(keypoints, 32, 64, 64),
        _norm(32),
        _linear(32, 2),
    ]
    found: dict[str, Tensor] = {
        "codebook": _f32(banks, size, dim),
        "sums": _f32(banks, size, dim),
        "hits": _f32(banks, size),
        "filled": ("BOOL", ()),
        "idle_steps": ("I64", (banks, size)),
        "use_counts": ("I64", (banks, size)),
    }
    for name, layers in (("encoder", encoder), ("decoder", decoder)):
        for index, layer in enumerate(layers):
            found |= _under(f"{name}.{index}", layer)
    return found


def _downs(widths: list[int]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        found |= _under(
            str(index),
            {
                **_under("first", _conv(width_in, width_out, 3, bias=False)),
                **_under("first_norm", _batch_norm(width_out)),
                **_under("second", _conv(width_out, width_out, 3, bias=False)),
                **_under("second_norm", _batch_norm(width_out)),
                **_under("shortcut", _conv(width_in, width_out, 1)),
            },
        )
    return found


def _ups(widths: list[int], skips: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, (deep, shallow) in enumerate(itertools.pairwise(widths)):
        up = _under("norm", _batch_norm(shallow))
        if skips == "sum":
            up |= _under("narrow", _conv(deep, shallow, 1)) | _under("conv", _conv(shallow, shallow, 3, bias=False))
        else:
            up |= _under("conv", _conv(deep + shallow, shallow, 3, bias=False))
        found |= _under(str(index), up)
    return found


def _mixer(tokens: int, channels: int, token_width: int, channel_width: int) -> dict[str, Tensor]:
    found = _under("token_norm", _norm(channels)) | _under("channel_norm", _norm(channels))
    for name, size, hidden in (("token_mlp", tokens, token_width), ("channel_mlp", channels, channel_width)):
        found |= _under(f"{name}.0", _linear(size, hidden)) | _under(f"{name}.2", _linear(hidden, size))
    return found


def _conv(width_in: int, width_out: int, kernel: int, *, bias: bool = True) -> dict[str, Tensor]:
    weight = {"weight": _f32(width_out, width_in, kernel, kernel)}
    return weight | ({"bias": _f32(width_out)} if bias else {})


def _linear(width_in: int, width_out: int) -> dict[str, Tensor]:
    return {"weight": _f32(width_out, width_in), "bias": _f32(width_out)}


def _norm(width: int) -> dict[str, Tensor]:
    return {"weight": _f32(width), "bias": _f32(width)}


def _batch_norm(width: int) -> dict[str, Tensor]:
    kept = {"running_mean": _f32(width), "running_var": _f32(width), "num_batches_tracked": ("I64", ())}
    return {**_norm(width), **kept}


def _f32(*shape: int) -> Tensor:
    return "F32", shape


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

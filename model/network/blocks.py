"""Shared parts of the networks: device and precision, pixel coordinates, and blocks built from the table of layers.

Coordinates are (x, y) in [-1, 1] over the image, y down. The centre of pixel i of S lies at (2i + 1)/S - 1, so the
image's borders are at -1 and 1 (``align_corners=False``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .architecture import Block, Layer, Parts, Values


def pixel_centres(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return the pixel centres of one axis, (S,), in [-1, 1]."""
    return (torch.arange(side, dtype=dtype, device=device) * 2 + 1) / side - 1


def pixel_grid(side: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return every pixel's centre in row-major order, (S * S, 2) as (x, y) in [-1, 1]."""
    axis = pixel_centres(side, dtype=dtype, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)


def scale_to_box(keypoints: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale poses (..., K, 2) so that their bounding boxes are the unit square; an axis without extent becomes 0."""
    low = keypoints.amin(dim=-2, keepdim=True)
    extent = keypoints.amax(dim=-2, keepdim=True) - low
    return (keypoints - low) / extent.clamp_min(eps)


Network = TypeVar("Network", bound=torch.nn.Module)


def pick_device(name: str) -> torch.device:
    """Return the device of a torch name; "auto" is CUDA if present, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is '{name}'; expected auto, cpu, cuda or a torch device name") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is '{name}', but torch {torch.__version__} sees no CUDA device; use cpu or auto")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 speeds up convolutions: a GPU since Ampere, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for the setting ``precision``: "fp32", "bf16" or "auto" (bf16 if it is fast)."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context that disables a surrounding autocast."""
    return torch.autocast(device.type, enabled=False)


def channels_last(network: Network, device: torch.device) -> Network:
    """Move a network to a device, with its convolutions laid out channels last."""
    moved = network.to(device)
    moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def shrink(image: Tensor, side: int) -> Tensor:
    """Average images (B, C, S, S) down to (B, C, side, side); smaller ones stay as they are."""
    return image if image.shape[-1] <= side else functional.interpolate(image, (side, side), mode="area")


class BuiltModule(nn.Module):
    """A module that is built from a table of its parts; weights are drawn in the table's order."""

    normalised: tuple[tuple[str, str], ...] = ()  # names of convolutions and of the batch norms after them

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        for name, part in parts.items():
            if not isinstance(part, Values):
                self.add_module(name, None if part is None else build(part))

    def fold(self) -> None:
        """Fold the batch norms into the convolutions before them, in eval mode: saves a pass over memory for each."""
        for name, norm_name in self.normalised:
            conv, norm = getattr(self, name), getattr(self, norm_name)
            if isinstance(norm, nn.BatchNorm2d):
                setattr(self, name, fuse_conv_bn_eval(conv, norm))
                setattr(self, norm_name, nn.Identity())


def build(part: Layer | Block) -> nn.Module:
    """Build a layer, a block or a sequence of the table."""
    if isinstance(part, Block):
        if part.kind == "sequence":
            # drawn in the order of the table, placed in the order of the names
            built = {name: build(inner) for name, inner in part.parts.items() if isinstance(inner, Layer | Block)}
            return nn.Sequential(*(built[str(index)] for index in range(len(built))))
        return _BLOCKS[part.kind](part.parts)
    if part.kind == "conv":
        width_out, width_in, kernel, _ = part.weight
        return nn.Conv2d(width_in, width_out, kernel, part.stride, padding=kernel // 2, bias=part.bias)
    return _LAYERS[part.kind](*reversed(part.weight))


class ResidualDown(BuiltModule):
    """Two 3x3 convolutions, the first strided, beside an averaged 1x1 shortcut: (B, in, S, S) to (B, out, S/2, S/2).

    Differs from the release, which convolves at full size and then resizes.
    """

    normalised = (("first", "first_norm"), ("second", "second_norm"))
    first: nn.Conv2d
    first_norm: nn.Module
    second: nn.Conv2d
    second_norm: nn.Module
    shortcut: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first_norm(self.first(x)), 0.2)
        y = self.second_norm(self.second(y))
        return functional.leaky_relu(y + self.shortcut(functional.avg_pool2d(x, 2)), 0.2)


class Up(BuiltModule):
    """An up block that joins a skip connection: (B, in, S, S) and (B, out, 2S, 2S) to (B, out, 2S, 2S).

    With ``skips="concat"`` both are convolved side by side, as in a U-Net. With "sum" a 1x1 convolution narrows the
    deep one before it is enlarged, and the skip is added: a third of the multiplications at equal accuracy.
    """

    normalised = (("conv", "norm"),)
    narrow: nn.Conv2d | None
    conv: nn.Conv2d
    norm: nn.Module

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # narrowing first is cheaper, and commutes with the bilinear resize
        x = x if self.narrow is None else self.narrow(x)
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.cat((x, skip), dim=1) if self.narrow is None else x + skip
        return functional.leaky_relu(self.norm(self.conv(x)), 0.2)


class Join(BuiltModule):
    """Normalise a frozen network's activations and project them to an encoder's width: (B, in, S, S) to (B, out, S, S).

    The scales of the channels differ by orders of magnitude, so they are normalised before they are mixed.
    """

    norm: nn.Module
    project: nn.Conv2d

    def forward(self, activations: Tensor) -> Tensor:
        projected: Tensor = self.project(self.norm(activations))
        return projected

    def fold(self) -> None:
        """Fold the batch norm into the projection after it, in eval mode."""
        norm, project = self.norm, self.project
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert project.bias is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            project.bias += project.weight.flatten(1) @ (norm.bias - norm.running_mean * scale)
            project.weight *= scale[:, None, None]
            self.norm = nn.Identity()


class ImageEncoder(BuiltModule):
    """A 2D CNN, (B, 3, S, S) to (B, C, S/4, S/4): four residual down blocks and two up blocks.

    Differs from the release: two U-Net skips, which place keypoints better, and, with the setting ``features``, a
    frozen network's activations at 1/2, 1/4 and 1/8 of the side, added to the outputs of the first three down blocks.
    """

    down: nn.Sequential
    up: nn.Sequential
    joins: nn.Sequential

    def forward(self, image: Tensor, activations: Sequence[Tensor] = ()) -> Tensor:
        joined = [join(level) for join, level in zip(self.joins, activations, strict=True)] if activations else []
        levels = [image]
        for index, block in enumerate(self.down):
            level = block(levels[-1])
            levels.append(level + joined[index] if index < len(joined) else level)
        x = self.up[0](levels[4], levels[3])
        out: Tensor = self.up[1](x, levels[2])
        return out


class MixerBlock(BuiltModule):
    """An MLP-Mixer block (Tolstikhin et al. 2021) over T tokens of C channels, (B, T, C) to (B, T, C)."""

    token_norm: nn.LayerNorm
    token_mlp: nn.Sequential
    channel_norm: nn.LayerNorm
    channel_mlp: nn.Sequential

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = tokens + self.channel_mlp(self.channel_norm(tokens))
        return mixed


class AcrossTokens(BuiltModule):
    """A linear map over the tokens, the same for every channel: (B, T, C) to (B, T', C)."""

    linear: nn.Linear

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.linear(tokens.transpose(1, 2))
        return mapped.transpose(1, 2)


_BLOCKS: dict[str, type[BuiltModule]] = {
    "residual_down": ResidualDown,
    "up": Up,
    "join": Join,
    "image_encoder": ImageEncoder,
    "mixer": MixerBlock,
    "across_tokens": AcrossTokens,
}
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "linear": nn.Linear,
    "layer_norm": nn.LayerNorm,
    "batch_norm": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}

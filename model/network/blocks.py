"""The convolutional and mixer blocks that the networks are built of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ResidualDown(nn.Module):
    """Halves the side: two 3x3 convolutions, the first strided, beside an averaged 1x1 shortcut.

    (B, in, S, S) to (B, out, S/2, S/2). The strided convolution takes the place of the releases'
    convolution at full size followed by a resize.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
        self.first_norm: nn.Module = nn.BatchNorm2d(width_out)
        self.second = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.second_norm: nn.Module = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first_norm(self.first(x)), 0.2)
        y = self.second_norm(self.second(y))
        return functional.leaky_relu(y + self.shortcut(functional.avg_pool2d(x, 2)), 0.2)

    def fold(self) -> None:
        """Take the normalisations into the convolutions, in eval mode: a pass over memory less for each."""
        self.first, self.first_norm = _folded(self.first, self.first_norm)
        self.second, self.second_norm = _folded(self.second, self.second_norm)


class Up(nn.Module):
    """Doubles the side, joins a skip connection, and convolves.

    (B, in, S, S) and (B, out, 2S, 2S) to (B, out, 2S, 2S). With ``skips="concat"`` both are convolved side by
    side, as in a U-Net. With "sum" a 1x1 convolution narrows the deep one before it is enlarged, and the skip is
    added: a third of the multiplications, and no less accurate at small sizes.
    """

    def __init__(self, width_in: int, width_out: int, skips: str) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width_in, width_out, 1) if skips == "sum" else None
        joined = width_out if skips == "sum" else width_in + width_out
        self.conv = nn.Conv2d(joined, width_out, 3, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.narrow is not None:
            x = _doubled(self.narrow(x)) + skip
        else:
            x = torch.cat((_doubled(x), skip), dim=1)
        return functional.leaky_relu(self.norm(self.conv(x)), 0.2)

    def fold(self) -> None:
        """As :meth:`ResidualDown.fold`."""
        self.conv, self.norm = _folded(self.conv, self.norm)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    return (fuse_conv_bn_eval(conv, norm), nn.Identity()) if isinstance(norm, nn.BatchNorm2d) else (conv, norm)


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MixerBlock(nn.Module):
    """An MLP-Mixer block (Tolstikhin et al. 2021) over T tokens of C channels, (B, T, C) to (B, T, C)."""

    def __init__(self, num_tokens: int, channels: int, token_width: int, channel_width: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(channels)
        self.token_mlp = _mlp(num_tokens, token_width, num_tokens)
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mlp = _mlp(channels, channel_width, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = tokens + self.channel_mlp(self.channel_norm(tokens))
        return mixed


class AcrossTokens(nn.Module):
    """A linear map over the tokens, the same for every channel: (B, T, C) to (B, T', C)."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens_in, tokens_out)

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.linear(tokens.transpose(1, 2))
        return mapped.transpose(1, 2)


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))

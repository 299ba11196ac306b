"""From a link map and a reference image back to the image."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .blocks import ResidualDown, Up


class Reconstructor(nn.Module):
    """A U-Net that draws the image: (B, 3, S, S) reference and (B, C, S, S) drawing of a pose to (B, 3, S, S).

    The reference is multiplied by a learned scalar that starts at 1. The drawing is the link map, C being 1, or
    that with more channels which say what the links look like.
    """

    def __init__(self, base_width: int, skips: str = "concat", drawing_channels: int = 1) -> None:
        super().__init__()
        self.reference_scale = nn.Parameter(torch.ones(()))
        widths = [base_width * factor for factor in (1, 2, 4, 8, 8)]
        self.stem = nn.Conv2d(3 + drawing_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualDown(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(Up(deep, shallow, skips) for deep, shallow in itertools.pairwise(reversed(widths)))
        self.out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, reference: Tensor, drawing: Tensor) -> Tensor:
        x = torch.cat((reference * self.reference_scale, drawing), dim=1).contiguous(memory_format=torch.channels_last)
        levels = [nn.functional.leaky_relu(self.stem(x), 0.2)]
        for block in self.down:
            levels.append(block(levels[-1]))
        x = levels.pop()
        for block in self.up:
            x = block(x, levels.pop())
        image: Tensor = self.out(x)
        return image.float()

"""From a drawn pose and a reference image back to the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import PPLConfig

from . import architecture
from .blocks import BuiltModule


class Reconstructor(BuiltModule):
    """A U-Net: reference (B, 3, S, S) and drawing (B, C, S, S) to an image (B, 3, S, S), about [-1, 1].

    The drawing is the link map, joined by the further channels of :meth:`PosePriorLearner.draw`. The reference is
    multiplied by a learned scalar that starts at 1, as in the release.
    """

    stem: nn.Conv2d
    down: nn.Sequential
    up: nn.Sequential
    out: nn.Conv2d

    def __init__(self, config: PPLConfig) -> None:
        super().__init__(architecture.reconstructor(config))
        self.reference_scale = nn.Parameter(torch.ones(()))

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

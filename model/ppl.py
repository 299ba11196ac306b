"""The Pose Prior Learner: one forward pass from image to reconstruction, and the memory beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig
from model.links import link_map
from model.memory import HierarchicalMemory, Recalled
from model.reconstructor import Reconstructor
from model.regressor import KeypointRegressor, Located


@dataclass(frozen=True)
class Forward:
    """Everything that one training pass gives.

    Attributes:
        keypoint_prior: (K, 2), the distilled prior, a constant.
        keypoints: (B, K, 2) in units of [-1, 1]; the boundary loss keeps them inside.
        link_map: (B, 1, S, S).
        reconstruction: (B, 3, S, S), about [-1, 1].
        recalled: what the memory makes of the keypoints, which it takes as constants.
    """

    keypoint_prior: Tensor
    keypoints: Tensor
    link_map: Tensor
    reconstruction: Tensor
    recalled: Recalled


class PosePriorLearner(nn.Module):
    """PPL (sections 3.1 to 3.4): the prior is transformed to keypoints, linked, and drawn back to the image.

    Two pathways see each other as constants (appendix A6): keypoints and reconstruction take the distilled
    prior as given, the memory takes the keypoints as given.
    """

    link_width: Tensor

    def __init__(self, config: PPLConfig) -> None:
        super().__init__()
        self.config = config
        self.regressor = KeypointRegressor(config.num_keypoints, config.base_width, config.head, config.head_scale)
        self.reconstructor = Reconstructor(config.base_width)
        self.memory = HierarchicalMemory(
            config.num_keypoints,
            config.num_banks,
            config.bank_size,
            config.token_dim,
            config.memory_width,
            config.memory_depth,
        )
        start = torch.randn(config.num_links) * config.link_init_std + config.link_init_mean
        self.link_logits = nn.Parameter(start / config.link_scale)

    @property
    def link_weights(self) -> Tensor:
        """(L,), positive: softplus(s * theta), s being the paper's factor on their learning rate."""
        return functional.softplus(self.config.link_scale * self.link_logits)

    def locate(self, image: Tensor) -> Located:
        """Keypoints of images (B, 3, S, S) in [-1, 1], from the distilled prior taken as a constant."""
        located: Located = self.regressor(image, self.memory.keypoint_prior().detach())
        return located

    def draw_links(self, keypoints: Tensor, link_width: float | None = None) -> Tensor:
        """The link map (B, 1, S, S) of poses (B, K, 2), at the final link width unless another is given."""
        return link_map(keypoints, self.link_weights, link_width or self.config.link_width, self.config.image_size)

    def forward(self, image: Tensor, reference: Tensor, link_width: float | None = None) -> Forward:
        """One training pass.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            reference: (B, 3, S, S), another frame of the clip or the image itself, masked.
            link_width: sigma squared at this step.
        """
        keypoint_prior = self.memory.keypoint_prior().detach()
        keypoints = self.regressor(image, keypoint_prior).keypoints
        drawn = self.draw_links(keypoints, link_width)
        reconstruction = self.reconstructor(reference, drawn)
        recalled = self.memory(keypoints.detach())
        return Forward(keypoint_prior, keypoints, drawn, reconstruction, recalled)

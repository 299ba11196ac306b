"""The Pose Prior Learner: one forward pass from image to reconstruction, and the memory beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig

from .blocks import ResidualDown, Up
from .device import full_precision
from .links import coloured_link_map, link_map
from .memory import HierarchicalMemory, Recalled
from .reconstructor import Reconstructor
from .regressor import KeypointRegressor, Located

LEAST_LINK_WEIGHT = 1e-4
"""What a predefined weight of 0 becomes: invisible in a link map, yet softplus still passes a gradient."""
_RANDOM_PRIOR_REACH = 0.5  # a random prior lies in the middle half of the image, where the thing is


@dataclass(frozen=True)
class Forward:
    """Everything that one training pass gives.

    Attributes:
        keypoint_prior: (K, 2); None for AutoLink.
        keypoints: (B, K, 2) in units of [-1, 1]; the boundary loss keeps them inside.
        link_map: (B, 1, S, S).
        reconstruction: (B, 3, S, S), about [-1, 1].
        recalled: what the memory makes of the keypoints, which it takes as constants; None for AutoLink.
    """

    keypoint_prior: Tensor | None
    keypoints: Tensor
    link_map: Tensor
    reconstruction: Tensor
    recalled: Recalled | None


class PosePriorLearner(nn.Module):
    """PPL (sections 3.1 to 3.4): the prior is transformed to keypoints, linked, and drawn back to the image.

    Two pathways see each other as constants (appendix A6): keypoints and reconstruction take the memory's
    distilled prior as given, the memory takes the keypoints as given.

    The keypoint prior is the memory's, or a tensor of the model's own (``own_prior``), trained or frozen, as are
    the link weights: the paper's table of prior variants. The memory learns in each of them; refinement needs it.
    With the method "autolink" keypoints come straight from the attention maps: no keypoint prior, no memory.

    Args:
        config: all settings.
        keypoint_prior: (K, 2) in units of [-1, 1], where the settings say "predefined". Zeros without it: a
            model made to load trained weights into needs none.
        link_weights: (L,), at least 0, where the settings say that connectivity is "predefined". Random without.
    """

    memory: HierarchicalMemory | None
    link_colours: nn.Parameter | None
    own_prior: nn.Parameter | None
    constant_prior: Tensor | None

    def __init__(
        self, config: PPLConfig, *, keypoint_prior: Tensor | None = None, link_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        autolink = config.method == "autolink"
        head = "attention" if autolink else config.head
        self.regressor = KeypointRegressor(
            config.num_keypoints, config.base_width, head, config.head_scale, config.skips
        )
        self.reconstructor = Reconstructor(config.base_width, config.skips, config.drawing_channels)
        self.memory = None if autolink else _memory(config)
        start = torch.randn(config.num_links) * config.link_init_std + config.link_init_mean
        if config.connectivity_prior == "predefined" and link_weights is not None:
            start = inverse_softplus(link_weights.float().clamp_min(LEAST_LINK_WEIGHT))
        self.link_logits = nn.Parameter(start / config.link_scale, requires_grad=config.connectivity_prior_trainable)
        self.link_colours = (
            nn.Parameter(torch.randn(config.num_links, config.link_colours)) if config.link_colours else None
        )
        self.register_buffer("constant_prior", None, persistent=False)
        self.own_prior = None
        if config.keypoint_prior != "memory":
            points = torch.zeros(config.num_keypoints, 2)
            if config.keypoint_prior == "random":
                points.uniform_(-_RANDOM_PRIOR_REACH, _RANDOM_PRIOR_REACH)
            elif keypoint_prior is not None:
                points = keypoint_prior.detach().clone().float()
            self.own_prior = nn.Parameter(points, requires_grad=config.keypoint_prior_trainable)

    @property
    def link_weights(self) -> Tensor:
        """(L,), positive: softplus(s * theta), s being the paper's factor on their learning rate."""
        return functional.softplus(self.config.link_scale * self.link_logits)

    def keypoint_prior(self) -> Tensor | None:
        """The keypoint prior (K, 2): the memory's as a constant, or the model's own; None for AutoLink."""
        if self.own_prior is not None:
            return self.own_prior
        if self.constant_prior is not None:
            return self.constant_prior
        return None if self.memory is None else self.memory.keypoint_prior().detach()

    @torch.no_grad()
    def freeze(self) -> None:
        """Make it ready to estimate poses, and for nothing else: what never changes any more is computed once.

        That is the memory's keypoint prior, and the normalisations, which become part of their convolutions.
        """
        self.eval().requires_grad_(False)
        if self.memory is not None:
            self.constant_prior = self.memory.keypoint_prior()
        for part in self.modules():
            if isinstance(part, (ResidualDown, Up)):
                part.fold()

    def locate(self, image: Tensor) -> Located:
        """Keypoints of images (B, 3, S, S) in [-1, 1], from the keypoint prior where the method has one."""
        located: Located = self.regressor(image, self.keypoint_prior())
        return located

    def draw_links(self, keypoints: Tensor, link_width: float | None = None) -> Tensor:
        """The link map (B, 1, S, S) of poses (B, K, 2), at the final link width unless another is given."""
        return link_map(keypoints, self.link_weights, link_width or self.config.link_width, self.config.image_size)

    def draw(self, keypoints: Tensor, image: Tensor, link_width: float | None = None) -> Tensor:
        """What the reconstructor is told of poses: the link map, in learned colours and that of what lies under it.

        The latter is the mean colour of the image where links are drawn, one for all of them: what the thing looks
        like, and nothing of where it is. Differs from the paper, which draws the link map alone, as the settings
        ``link_colours=0`` and ``object_colour=false`` do.

        Args:
            keypoints: (B, K, 2).
            image: (B, 3, S, S) in [-1, 1], of which these are the poses; hidden parts may be grey.
            link_width: the final one unless given.

        Returns:
            (B, C, S, S), the link map first; C is 1, with the settings' ``link_colours`` and 3 more for the colour of
            the object.
        """
        if self.link_colours is None:
            drawn = self.draw_links(keypoints, link_width)
        else:
            width = link_width or self.config.link_width
            drawn = coloured_link_map(keypoints, self.link_weights, self.link_colours, width, self.config.image_size)
        if self.config.object_colour:
            drawn = torch.cat((drawn, drawn[:, :1] * colour_under(drawn[:, :1], image)), dim=1)
        return drawn

    def forward(self, image: Tensor, reference: Tensor, link_width: float | None = None) -> Forward:
        """One training pass.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            reference: (B, 3, S, S), another frame of the clip or the image itself, masked.
            link_width: sigma squared at this step.
        """
        keypoint_prior = self.keypoint_prior()
        keypoints = self.regressor(image, keypoint_prior).keypoints
        drawn = self.draw(keypoints, image, link_width)
        reconstruction = self.reconstructor(reference, drawn)
        recalled = None if self.memory is None else self.memory(keypoints.detach())
        return Forward(keypoint_prior, keypoints, drawn[:, :1], reconstruction, recalled)


def colour_under(link_map: Tensor, image: Tensor) -> Tensor:
    """The mean colour (B, 3, 1, 1) of images (B, 3, S, S) under link maps (B, 1, S, S), by their squares.

    Constants: a keypoint is not moved for the sake of a colour.
    """
    with full_precision(image.device), torch.no_grad():
        weight = link_map.float().square()
        total = weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        mean: Tensor = (weight * image.float()).sum(dim=(2, 3), keepdim=True) / total
    return mean


def inverse_softplus(value: Tensor) -> Tensor:
    """What softplus makes a positive value of, without overflow for large ones."""
    return value + (-torch.expm1(-value)).log()


def _memory(config: PPLConfig) -> HierarchicalMemory:
    return HierarchicalMemory(
        config.num_keypoints,
        config.num_banks,
        config.bank_size,
        config.token_dim,
        config.memory_width,
        config.memory_depth,
    )

"""The Pose Prior Learner: from image and keypoint prior to keypoints (PPL eq. 1 and 2), and back to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig

from . import architecture
from .blocks import BuiltModule, ImageEncoder, full_precision, pixel_grid, shrink
from .clusters import ClusterAttention
from .links import coloured_link_map, link_map
from .locator import Locator
from .memory import HierarchicalMemory, Recalled
from .perceptual import PerceptualNetwork, feature_network

SCORE_RADIUS = 0.25
"""An eighth of the image side, in units of [-1, 1]: see :attr:`Located.scores`."""


@dataclass(frozen=True)
class Located:
    """Keypoints of a batch.

    Attributes:
        keypoints: (B, K, 2) in [-1, 1]; a keypoint may lie outside.
        scores: (B, K) in [0, 1], without gradient: the share of a keypoint's attention within ``SCORE_RADIUS`` of
            it. Low where the part is hidden or could be in several places. Says less with the head "affine", whose
            keypoints need not lie where the attention is.
        evidence: (B, 2 + D), if requested, that the thing is in the picture: mean score, mean entropy of the
            attention, and the mean over the keypoints of what lies under them, the frozen network's deepest activations
            or else the encoder's features.
    """

    keypoints: Tensor
    scores: Tensor
    evidence: Tensor | None = None


class KeypointRegressor(BuiltModule):
    """A network from image and prior to keypoints, by a 2x2 matrix A_i and a translation t_i for each.

    A 3x3 convolution gives one attention map a keypoint. The features and the embedded coordinates it attends to,
    joined with the embedded prior point, pass through a two-layer network.

    head "affine": keypoints_i = A_i prior_i + t_i, A_i starting at the identity (PPL eq. 2).
    head "residual": the transformed prior times ``head_scale`` is added to the attention's mean position. Differs
    from the paper: localises better at small sizes.
    method "autolink": keypoints_i is that mean position alone, without a prior (AutoLink, He et al. 2022).

    Attributes:
        features: the frozen network of the setting ``features``, or None. Its weights are not in the state dict.
        clusters: what is added to the attention's logits early in a run with ``attention_start=clusters``, or None.
    """

    encoder: ImageEncoder
    attention: nn.Conv2d
    embed_position: nn.Linear
    embed_prior: nn.Sequential
    affine: nn.Sequential

    def __init__(self, config: PPLConfig) -> None:
        table = architecture.regressor(config)
        clusters = table.pop("clusters", None)
        super().__init__(table)
        self.clusters = ClusterAttention(config) if clusters else None
        self.head = "attention" if config.method == "autolink" else config.head
        self.head_scale, self.side = config.head_scale, config.side
        self.features: PerceptualNetwork | None = None
        if config.features != "none":
            self.features = feature_network(config.features, config.side)
        if self.head == "affine":  # A_i starts at the identity
            for parameter in self.affine[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        image: Tensor,
        keypoint_prior: Tensor | None,
        evidence: bool = False,
    ) -> Located:
        """Locate the keypoints.

        Args:
            image: (B, 3, S, S) in [-1, 1]; S may also be the working side, as of a reconstruction.
            keypoint_prior: (K, 2) in [-1, 1]; None for AutoLink. Gradients pass into it unless it is detached.
            evidence: whether to return it.
        """
        activations: Sequence[Tensor] = ()
        if self.features is not None:
            with torch.no_grad():
                activations = self.features(image)
        features = self.encoder(shrink(image, self.side), activations)
        logits = self.attention(features).flatten(2)
        with full_precision(image.device):
            logits = logits.float()
            if self.clusters is not None:
                logits = logits + self.clusters(activations[-1], features.shape[-1])
            attention = logits.softmax(dim=-1)  # (B, K, P)
            grid = pixel_grid(features.shape[-1], device=image.device)
            centre = attention @ grid
            if self.head == "attention":
                keypoints = centre
            else:
                assert keypoint_prior is not None
                moved = self._transform(attention, features, centre, keypoint_prior)
                keypoints = centre + self.head_scale * moved if self.head == "residual" else keypoint_prior + moved
            scores = attention_near(attention.detach(), keypoints.detach(), grid)
            if not evidence:
                return Located(keypoints, scores)
            entropy = torch.special.entr(attention).sum(-1).mean(1, keepdim=True)
            seen, places = (activations or (features,))[-1].float(), keypoints.clamp(-1, 1)[:, None]
            under = functional.grid_sample(seen, places, align_corners=False).mean((2, 3))
        return Located(keypoints, scores, torch.cat((scores.mean(1, keepdim=True), entropy, under), dim=1))

    def _transform(self, attention: Tensor, features: Tensor, centre: Tensor, keypoint_prior: Tensor) -> Tensor:
        """Return A_i prior_i + t_i, (B, K, 2); for the head "affine" without the identity in A_i."""
        pooled = torch.bmm(attention, features.flatten(2).transpose(1, 2).float())
        # the embedding is linear, so pooling the embedded coordinates is embedding the pooled ones
        descriptor = torch.cat(
            (pooled, self.embed_position(centre), self.embed_prior(keypoint_prior).expand_as(pooled)), dim=-1
        )
        parameters = self.affine(descriptor)
        matrix, translation = parameters[..., :4].unflatten(-1, (2, 2)), parameters[..., 4:]
        moved: Tensor = (matrix @ keypoint_prior[:, :, None]).squeeze(-1) + translation
        return moved


def attention_near(attention: Tensor, keypoints: Tensor, grid: Tensor) -> Tensor:
    """Return the share of each attention map (B, K, P) within ``SCORE_RADIUS`` of its keypoint (B, K, 2): (B, K)."""
    near = (grid - keypoints[:, :, None]).square().sum(-1) <= SCORE_RADIUS**2
    return (attention * near).sum(-1).clamp(0, 1)


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


LEAST_LINK_WEIGHT = 1e-4
"""What a predefined weight of 0 becomes: invisible in a link map, yet softplus still passes a gradient."""
_RANDOM_PRIOR_REACH = 0.5  # a random prior starts in the middle half of the image, where the object is


@dataclass(frozen=True)
class Forward:
    """The results of one training pass.

    Attributes:
        keypoint_prior: (K, 2); None for AutoLink.
        keypoints: (B, K, 2) in [-1, 1]; the boundary loss keeps them inside.
        link_map: (B, 1, s, s), s being the working side, ``config.side``.
        reconstruction: (B, 3, s, s), about [-1, 1].
        recalled: the memory's output for the detached keypoints; None for AutoLink.
    """

    keypoint_prior: Tensor | None
    keypoints: Tensor
    link_map: Tensor
    reconstruction: Tensor
    recalled: Recalled | None


class PosePriorLearner(nn.Module):
    """The model (PPL sections 3.1 to 3.4): the prior is transformed to keypoints, linked, and drawn back to the image.

    Two pathways see each other as constants (appendix A6): keypoints and reconstruction take the memory's prior as
    given, the memory takes the keypoints as given.

    The keypoint prior is the memory's, or a parameter (``own_prior``), trained or frozen, as are the link weights: the
    paper's table of prior variants. The memory learns in each of them, since refinement needs it. The method
    "autolink" has neither keypoint prior nor memory: its keypoints come straight from the attention maps.

    Args:
        config: all settings.
        keypoint_prior: (K, 2) in [-1, 1], for the setting keypoint_prior=predefined; zeros unless given, which is
            enough for a model that trained weights are loaded into.
        link_weights: (L,), at least 0, for the setting connectivity_prior=predefined; random unless given.
    """

    memory: HierarchicalMemory | None
    locator: Locator | None
    link_colours: nn.Parameter | None
    own_prior: nn.Parameter | None
    constant_prior: Tensor | None

    def __init__(
        self, config: PPLConfig, *, keypoint_prior: Tensor | None = None, link_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.regressor = KeypointRegressor(config)
        self.reconstructor = Reconstructor(config)
        self.memory = None if config.method == "autolink" else HierarchicalMemory(config)
        self.locator = Locator(config) if architecture.locator(config) else None
        # logits are divided by s, so that the optimiser's steps on the weights are s times as large (PPL appendix)
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
        """The link weights (L,), positive: softplus(s * theta), s being the paper's factor on their learning rate."""
        return functional.softplus(self.config.link_scale * self.link_logits)

    def keypoint_prior(self) -> Tensor | None:
        """Return the keypoint prior (K, 2): the memory's, detached, or ``own_prior``; None for AutoLink."""
        if self.own_prior is not None:
            return self.own_prior
        if self.constant_prior is not None:
            return self.constant_prior
        return None if self.memory is None else self.memory.keypoint_prior().detach()

    @torch.no_grad()
    def freeze(self) -> None:
        """Prepare for inference only: decode the memory's prior once, and fold the normalisations. Idempotent."""
        self.eval().requires_grad_(False)
        clusters = self.regressor.clusters
        if clusters is not None and not clusters.factor:
            self.regressor.clusters = None  # they have faded out, and add nothing
        if self.memory is not None:
            self.constant_prior = self.memory.keypoint_prior()
        for part in self.modules():
            if isinstance(part, BuiltModule):
                part.fold()

    def locate(self, image: Tensor, evidence: bool = False) -> Located:
        """Locate the keypoints of images (B, 3, S, S) or (B, 3, s, s) in [-1, 1], s being the working side."""
        located: Located = self.regressor(image, self.keypoint_prior(), evidence=evidence)
        return located

    @torch.no_grad()
    def find_crops(self, image: Tensor) -> Tensor | None:
        """Find the thing in pictures (B, 3, S, S) in [-1, 1].

        Returns its crops (B, 4), as :class:`.locator.Locator` has them; None if pictures are taken as they come.
        """
        features = self.regressor.features
        if self.locator is None or features is None or not self.locator.fitted:
            return None
        crops: Tensor = self.locator(image, features)
        return crops

    def draw_links(self, keypoints: Tensor, side: int) -> Tensor:
        """Draw the link map (B, 1, side, side) of poses (B, K, 2), with the final link width."""
        return link_map(keypoints, self.link_weights, self.config.link_width, side)

    def draw(self, keypoints: Tensor, image: Tensor, link_width: float | None = None) -> Tensor:
        """Draw the reconstructor's input: the link map, then its links in learned colours and in the object's colour.

        Differs from the paper, which draws the link map alone (link_colours=0, object_colour=false): learned colours
        distinguish links, and the mean colour of the image under the links says what the object looks like but not
        where it is.

        Args:
            keypoints: (B, K, 2) in [-1, 1].
            image: (B, 3, S, S) or (B, 3, s, s) in [-1, 1], with these poses; hidden parts may be grey.
            link_width: the final one unless given.

        Returns:
            (B, C, s, s) with the link map first, C being ``config.drawing_channels``, s the working side.
        """
        width, side = link_width or self.config.link_width, self.config.side
        if self.link_colours is None:
            drawn = link_map(keypoints, self.link_weights, width, side)
        else:
            drawn = coloured_link_map(keypoints, self.link_weights, self.link_colours, width, side)
        if self.config.object_colour:
            drawn = torch.cat((drawn, drawn[:, :1] * colour_under(drawn[:, :1], shrink(image, side))), dim=1)
        return drawn

    def forward(
        self,
        image: Tensor,
        reference: Tensor,
        link_width: float | None = None,
    ) -> Forward:
        """Run one training pass.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            reference: (B, 3, s, s), another frame of the clip, or the image masked; s is the working side.
            link_width: sigma squared at this step; the final one unless given.
        """
        keypoint_prior = self.keypoint_prior()
        keypoints = self.regressor(image, keypoint_prior).keypoints
        drawn = self.draw(keypoints, image, link_width)
        reconstruction = self.reconstructor(reference, drawn)
        recalled = None if self.memory is None else self.memory(keypoints.detach())
        return Forward(keypoint_prior, keypoints, drawn[:, :1], reconstruction, recalled)


def colour_under(link_map: Tensor, image: Tensor) -> Tensor:
    """Average images (B, 3, S, S) under link maps (B, 1, S, S), weighted by their squares: (B, 3, 1, 1).

    Without gradient, so that no keypoint moves to get a better colour.
    """
    with full_precision(image.device), torch.no_grad():
        weight = link_map.float().square()
        total = weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        mean: Tensor = (weight * image.float()).sum(dim=(2, 3), keepdim=True) / total
    return mean


def inverse_softplus(value: Tensor) -> Tensor:
    """Invert softplus for positive values, without overflow for large ones."""
    return value + (-torch.expm1(-value)).log()

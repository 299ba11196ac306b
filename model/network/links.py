"""Links between keypoints, and the link map that draws them (PPL eq. 3)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .blocks import pixel_centres, pixel_grid

_TINY = 1e-12
_TILE = 1 << 18  # scores computed at a time on a CPU: they fit into its cache
_TILE_GPU = 1 << 27  # the same on a GPU, where they bound the memory: half a gigabyte


@lru_cache(maxsize=64)
def _pairs(num_keypoints: int) -> Tensor:
    # cached across callers: an inference tensor would fail a later caller that needs gradients
    with torch.inference_mode(False):
        return torch.triu_indices(num_keypoints, num_keypoints, offset=1)


def link_indices(num_keypoints: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the keypoints i < j of every link, two index vectors (L,), row by row of the upper triangle."""
    pairs = _pairs(num_keypoints).to(device)
    return pairs[0], pairs[1]


def connectivity_matrix(link_weights: Tensor) -> Tensor:
    """Return link weights (L,) as the symmetric connectivity prior (K, K) with a zero diagonal."""
    num_keypoints = int((1 + (1 + 8 * link_weights.numel()) ** 0.5) / 2)
    i, j = link_indices(num_keypoints, link_weights.device)
    matrix = link_weights.new_zeros(num_keypoints, num_keypoints)
    matrix[i, j] = link_weights
    matrix[j, i] = link_weights
    return matrix


def link_lengths(keypoints: Tensor) -> Tensor:
    """Return the length of every link, (..., K, 2) to (..., L), in the units of the keypoints."""
    i, j = link_indices(keypoints.shape[-2], keypoints.device)
    lengths: Tensor = (keypoints[..., i, :] - keypoints[..., j, :]).norm(dim=-1)
    return lengths


def link_map(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> Tensor:
    """Draw the link map: at each pixel the maximum of w_ij * exp(-d_ij^2 / link_width) over the links (PPL eq. 3).

    Args:
        keypoints: (B, K, 2) in [-1, 1], float32 or float64.
        link_weights: (L,), positive, same type as `keypoints`.
        link_width: sigma squared, in units of [-1, 1] squared.
        side: S, in pixels.

    Returns:
        (B, 1, S, S), from 0 to the largest link weight.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    values, _ = _draw(keypoints, link_weights, link_width, side)
    return values.view(-1, 1, side, side)


def coloured_link_map(
    keypoints: Tensor, link_weights: Tensor, link_colours: Tensor, link_width: float, side: int
) -> Tensor:
    """Draw the link map, and for each colour the link map times that colour of each pixel's strongest link.

    Not in the paper, whose map does not show which link is where. The weights alone decide which link is strongest.

    Args:
        keypoints, link_weights, link_width, side: as for :func:`link_map`.
        link_colours: (L, C), any values.

    Returns:
        (B, 1 + C, S, S), the link map first.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    num_links = len(link_weights)
    if link_colours.ndim != 2 or len(link_colours) != num_links:
        raise ValueError(
            f"link_colours have shape {tuple(link_colours.shape)}; {num_links} links need ({num_links}, C)"
        )
    values, winner = _draw(keypoints, link_weights, link_width, side)
    values = values.unsqueeze(-1)
    coloured = torch.cat((values, values * functional.embedding(winner, link_colours)), dim=-1)  # (B, P, 1 + C)
    return coloured.view(len(keypoints), side, side, -1).permute(0, 3, 1, 2)


def _draw(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> tuple[Tensor, Tensor]:
    """Check the shapes; return the link map's values (B, P) and each pixel's strongest link (B, P)."""
    if keypoints.ndim != 3 or keypoints.shape[-1] != 2:
        raise ValueError(f"keypoints have shape {tuple(keypoints.shape)}; expected (B, K, 2)")
    num_keypoints = keypoints.shape[1]
    expected = num_keypoints * (num_keypoints - 1) // 2
    if link_weights.shape != (expected,):
        raise ValueError(
            f"link_weights have shape {tuple(link_weights.shape)}; {num_keypoints} keypoints need ({expected},)"
        )
    drawn: tuple[Tensor, Tensor] = _LinkMap.apply(  # type: ignore[no-untyped-call]
        keypoints, link_weights, link_width, side
    )
    return drawn


def link_map_literal(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> Tensor:
    """Draw eq. 3 as it is written, with (B, L, P, 2) tensors: the slow, independent check of :func:`link_map`."""
    i, j = link_indices(keypoints.shape[1], keypoints.device)
    grid = pixel_grid(side, dtype=keypoints.dtype, device=keypoints.device)
    start, end = keypoints[:, i, None, :], keypoints[:, j, None, :]
    along = end - start
    to_pixel = grid - start
    t = ((to_pixel * along).sum(-1) / along.square().sum(-1).clamp_min(_TINY)).clamp(0, 1)
    squared = (to_pixel - t.unsqueeze(-1) * along).square().sum(-1)
    heat = link_weights[:, None] * torch.exp(-squared / link_width)
    return heat.amax(dim=1).view(-1, 1, side, side)


class _LinkMap(torch.autograd.Function):
    """Values (B, P) of each pixel's strongest link, and these links (B, P).

    Only the strongest link of a pixel is exponentiated and gets a gradient, so that no (B, L, P) tensor is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, keypoints: Tensor, link_weights: Tensor, link_width: float, side: int
    ) -> tuple[Tensor, Tensor]:
        winner = _strongest_links(keypoints.detach(), link_weights.detach(), link_width, side)
        squared, _, _ = _distance_to(keypoints, winner, side)
        values = link_weights[winner] * torch.exp(squared / -link_width)
        ctx.save_for_backward(keypoints, link_weights, winner, values)
        ctx.link_width, ctx.side = link_width, side
        ctx.mark_non_differentiable(winner)
        return values, winner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _winner_grad: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        keypoints, link_weights, winner, values = ctx.saved_tensors
        batch, num_keypoints = keypoints.shape[:2]
        num_links = link_weights.numel()
        _, t, offset = _distance_to(keypoints, winner, ctx.side)
        # the gradient with respect to log w - d^2 / link_width, and with it the force on the segment's nearest point
        weighted = grad * values
        pull = (weighted * (2.0 / ctx.link_width)).unsqueeze(-1) * offset
        # sum over the pixels of each link first, then over the links of each keypoint: few atomic additions
        bins = winner + torch.arange(batch, device=winner.device)[:, None] * num_links
        per_link = torch.stack((weighted, pull[..., 0], pull[..., 1], pull[..., 0] * t, pull[..., 1] * t), dim=-1)
        sums = per_link.new_zeros(batch * num_links, 5).index_add_(0, bins.reshape(-1), per_link.reshape(-1, 5))
        sums = sums.view(batch, num_links, 5)
        # the nearest point is start + t (end - start): t of its force acts on the end, the rest on the start
        i, j = link_indices(num_keypoints, keypoints.device)
        at_end = sums[..., 3:5]
        at_start = sums[..., 1:3] - at_end
        grad_keypoints = torch.zeros_like(keypoints).index_add_(1, i, at_start).index_add_(1, j, at_end)
        return grad_keypoints, sums[..., 0].sum(0) / link_weights.clamp_min(_TINY), None, None


def _strongest_links(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> Tensor:
    """Return the strongest link at each pixel, (B, P) as indices of links.

    Compares log w - d^2 / link_width, without an exponential. With c the distance of a pixel from the line through a
    link, u its position along it and t = clamp(u, 0, 1), d^2 = c^2 + |b - a|^2 (u - t)^2. Both c and u are a sum of a
    term in x and one in y, so each costs one broadcast addition, and no large numbers cancel.
    """
    i, j = link_indices(keypoints.shape[1], keypoints.device)
    axis = pixel_centres(side, dtype=keypoints.dtype, device=keypoints.device)
    start = keypoints[:, i]
    along = keypoints[:, j] - start
    # a link without length has no direction: give it a tiny one
    along = torch.where(along.square().sum(-1, keepdim=True) < _TINY, along.new_tensor((1e-6, 0.0)), along)
    squared = along.square().sum(-1)
    from_start = axis - start[..., None]  # (B, L, 2, S)
    u_xy = from_start * (along / squared[..., None])[..., None]
    across = torch.stack((-along[..., 1], along[..., 0]), dim=-1) / (squared * link_width).sqrt()[..., None]
    c_xy = from_start * across[..., None]
    minus_gain = (squared / -link_width)[..., None, None]
    level = link_weights.clamp_min(_TINY).log()[:, None, None]

    # the index of a link replaces the lowest bits of its score: amax is many times faster than argmax on a CPU, and
    # scores that agree in all higher bits (within 2^-14 for K = 32) are as good as equal
    as_int = torch.int64 if keypoints.dtype == torch.float64 else torch.int32
    num_links = i.numel()
    low_bits = (1 << (num_links - 1).bit_length()) - 1
    index = torch.arange(num_links, dtype=as_int, device=keypoints.device)[:, None, None]
    batch = keypoints.shape[0]
    winner = torch.empty(batch, side, side, dtype=torch.long, device=keypoints.device)
    if keypoints.device.type == "cpu":
        images, rows = 1, max(1, min(side, _TILE // (num_links * side)))
    else:
        images, rows = max(1, _TILE_GPU // (num_links * side * side)), side
    for first in range(0, batch, images):
        b = slice(first, first + images)
        for top in range(0, side, rows):
            y = slice(top, top + rows)
            u = u_xy[b, :, 0, None, :] + u_xy[b, :, 1, y, None]
            u.sub_(u.clamp(0, 1)).square_()
            c = c_xy[b, :, 0, None, :] + c_xy[b, :, 1, y, None]
            score = torch.addcmul(level, c, c, value=-1).addcmul_(u, minus_gain[b])
            score.view(as_int).bitwise_and_(~low_bits).bitwise_or_(index)
            winner[b, y] = score.amax(dim=1).view(as_int).bitwise_and_(low_bits)
    return winner.view(batch, -1).clamp_max_(num_links - 1)  # the bits of a NaN may exceed the last index


def _distance_to(keypoints: Tensor, link: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pixel's squared distance to its link, position t along it, and offset from its nearest point."""
    i, j = link_indices(keypoints.shape[1], keypoints.device)
    start, end = (keypoints.gather(1, ends[link].unsqueeze(-1).expand(-1, -1, 2)) for ends in (i, j))
    along = end - start
    to_pixel = pixel_grid(side, dtype=keypoints.dtype, device=keypoints.device) - start
    t = ((to_pixel * along).sum(-1) / along.square().sum(-1).clamp_min(_TINY)).clamp(0, 1)
    offset = to_pixel - t.unsqueeze(-1) * along
    return offset.square().sum(-1), t, offset

"""Links between keypoints, and the link map that draws them (PPL eq. 3)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .geometry import pixel_centres, pixel_grid

_TINY = 1e-12
_TILE = 1 << 18  # scores worked on at a time on a CPU: they stay in its cache
_TILE_GPU = 1 << 27  # the same on a GPU, where they bound the memory: half a gigabyte


@lru_cache(maxsize=64)
def _pairs(num_keypoints: int) -> Tensor:
    with torch.inference_mode(False):  # kept for whoever asks next, who may want gradients
        return torch.triu_indices(num_keypoints, num_keypoints, offset=1)


def link_indices(num_keypoints: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The keypoints i < j of every link, two index vectors (L,), in row-major order of the upper triangle."""
    pairs = _pairs(num_keypoints).to(device)
    return pairs[0], pairs[1]


def connectivity_matrix(link_weights: Tensor) -> Tensor:
    """Link weights (L,) as the symmetric connectivity prior (K, K) with a zero diagonal."""
    num_keypoints = int((1 + (1 + 8 * link_weights.numel()) ** 0.5) / 2)
    i, j = link_indices(num_keypoints, link_weights.device)
    matrix = link_weights.new_zeros(num_keypoints, num_keypoints)
    matrix[i, j] = link_weights
    matrix[j, i] = link_weights
    return matrix


def link_lengths(keypoints: Tensor) -> Tensor:
    """The length of every link, (..., K, 2) to (..., L), in the units of the keypoints."""
    i, j = link_indices(keypoints.shape[-2], keypoints.device)
    lengths: Tensor = (keypoints[..., i, :] - keypoints[..., j, :]).norm(dim=-1)
    return lengths


def link_map(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> Tensor:
    """The link map: at each pixel the strongest of w_ij * exp(-d_ij^2 / link_width) (PPL eq. 3).

    Worked in the log domain: the maximum is found over log w - d^2 / link_width, and only the winning link
    of a pixel is exponentiated and gets a gradient.

    Args:
        keypoints: (B, K, 2) in units of [-1, 1], float32 or float64.
        link_weights: (L,), positive, of the same type.
        link_width: sigma squared, in units of [-1, 1] squared.
        side: S, pixels along one side.

    Returns:
        (B, 1, S, S), from 0 to the largest link weight.

    Raises:
        ValueError: shapes that do not belong together.
    """
    values, _ = _drawn(keypoints, link_weights, link_width, side)
    return values.view(-1, 1, side, side)


def coloured_link_map(
    keypoints: Tensor, link_weights: Tensor, link_colours: Tensor, link_width: float, side: int
) -> Tensor:
    """The link map, and beside it the same once for each colour, times that colour of the link which won the pixel.

    Not in the paper, whose map does not say which link is drawn where. The colours are no part of eq. 3: which link
    wins, and how far it reaches, is decided by the weights alone.

    Args:
        keypoints, link_weights, link_width, side: as for :func:`link_map`.
        link_colours: (L, C), any values.

    Returns:
        (B, 1 + C, S, S), the link map first.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if link_colours.ndim != 2 or link_colours.shape[0] != link_weights.shape[0]:
        raise ValueError(
            f"link_colours have shape {tuple(link_colours.shape)}; {link_weights.shape[0]} links need "
            f"({link_weights.shape[0]}, C)"
        )
    values, winner = _drawn(keypoints, link_weights, link_width, side)
    values = values.unsqueeze(-1)
    coloured = torch.cat((values, values * functional.embedding(winner, link_colours)), dim=-1)  # (B, P, 1 + C)
    return coloured.view(len(keypoints), side, side, -1).permute(0, 3, 1, 2)


def _drawn(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> tuple[Tensor, Tensor]:
    """The link map's values (B, P) and the links (B, P) that they come from, shapes checked."""
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
    """Eq. 3 as it is written, with (B, L, P, 2) tensors: the slow form that :func:`link_map` is checked against."""
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
    """Values (B, P) of the winning links, and these links; the backward pass knows the winners only."""

    @staticmethod
    def forward(
        ctx: Any, keypoints: Tensor, link_weights: Tensor, link_width: float, side: int
    ) -> tuple[Tensor, Tensor]:
        grid = pixel_grid(side, dtype=keypoints.dtype, device=keypoints.device)
        winner = _winning_links(keypoints.detach(), link_weights.detach(), link_width, side)
        squared, _, _ = _distance_to(keypoints, winner, grid)
        values = link_weights[winner] * torch.exp(squared / -link_width)
        ctx.save_for_backward(keypoints, link_weights, winner, values)
        ctx.link_width, ctx.side = link_width, side
        ctx.mark_non_differentiable(winner)
        return values, winner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _of_winner: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        keypoints, link_weights, winner, values = ctx.saved_tensors
        batch, num_keypoints = keypoints.shape[:2]
        num_links = link_weights.numel()
        grid = pixel_grid(ctx.side, dtype=keypoints.dtype, device=keypoints.device)
        _, t, offset = _distance_to(keypoints, winner, grid)
        weighted = grad * values  # gradient with respect to log w - d^2 / link_width
        pull = (weighted * (2.0 / ctx.link_width)).unsqueeze(-1) * offset  # on the nearest point of the segment
        # sums over the pixels of a link first, then over the links of a keypoint
        bins = winner + torch.arange(batch, device=winner.device)[:, None] * num_links
        per_link = torch.stack((weighted, pull[..., 0], pull[..., 1], pull[..., 0] * t, pull[..., 1] * t), dim=-1)
        sums = per_link.new_zeros(batch * num_links, 5).index_add_(0, bins.reshape(-1), per_link.reshape(-1, 5))
        sums = sums.view(batch, num_links, 5)
        i, j = link_indices(num_keypoints, keypoints.device)
        at_end = sums[..., 3:5]
        at_start = sums[..., 1:3] - at_end
        grad_keypoints = torch.zeros_like(keypoints).index_add_(1, i, at_start).index_add_(1, j, at_end)
        return grad_keypoints, sums[..., 0].sum(0) / link_weights.clamp_min(_TINY), None, None


def _winning_links(keypoints: Tensor, link_weights: Tensor, link_width: float, side: int) -> Tensor:
    """The strongest link at each pixel, (B, P) as indices of links.

    With c the distance of a pixel from the line through a link, u its position along it and t = clamp(u, 0, 1),
    d^2 = c^2 + |b - a|^2 (u - t)^2. Both c and u are a sum of a term in x and one in y, so each costs one
    broadcast addition, and no large numbers cancel.
    The index of a link rides in the lowest bits of its score: an ``amax`` is many times faster than an ``argmax``
    on a CPU, and two scores that agree in all higher bits (2^-14 of each other for K = 32) are as good as equal.
    """
    i, j = link_indices(keypoints.shape[1], keypoints.device)
    axis = pixel_centres(side, dtype=keypoints.dtype, device=keypoints.device)
    start = keypoints[:, i]
    along = keypoints[:, j] - start
    along = torch.where(along.square().sum(-1, keepdim=True) < _TINY, along.new_tensor((1e-6, 0.0)), along)
    squared = along.square().sum(-1)
    from_start = axis - start[..., None]  # (B, L, 2, S)
    u_xy = from_start * (along / squared[..., None])[..., None]
    across = torch.stack((-along[..., 1], along[..., 0]), dim=-1) / (squared * link_width).sqrt()[..., None]
    c_xy = from_start * across[..., None]
    minus_gain = (squared / -link_width)[..., None, None]
    level = link_weights.clamp_min(_TINY).log()[:, None, None]

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
    return winner.view(batch, -1).clamp_max_(num_links - 1)  # the bits of a NaN may name no link


def _distance_to(keypoints: Tensor, link: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance (B, P) of each pixel to its link, position t along it, and offset p - nearest (B, P, 2)."""
    i, j = link_indices(keypoints.shape[1], keypoints.device)
    start = keypoints.gather(1, i[link].unsqueeze(-1).expand(-1, -1, 2))
    end = keypoints.gather(1, j[link].unsqueeze(-1).expand(-1, -1, 2))
    along = end - start
    to_pixel = grid - start
    t = ((to_pixel * along).sum(-1) / along.square().sum(-1).clamp_min(_TINY)).clamp(0, 1)
    offset = to_pixel - t.unsqueeze(-1) * along
    return offset.square().sum(-1), t, offset

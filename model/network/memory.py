"""The hierarchical memory: poses as one code in each of M banks, and the keypoint prior distilled from it.

Sources: PPL section 3.4 and appendix A6; moving averages after van den Oord et al. 2017, appendix A.1.

Surprise, which is not in the paper, is the distance of a pose to the memory, relative to the training pictures' poses:
the root mean squared distance of its keypoints to those decoded from the nearest vectors, in units of [-1, 1], over a
version's scale, the 99th percentile of that distance over its training pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import PPLConfig
from model.process_group import ALONE, Group

from . import architecture
from .blocks import BuiltModule, full_precision

PERCENTILE = 99


@dataclass(frozen=True)
class Recalled:
    """A batch of poses, encoded, quantised and decoded.

    Attributes:
        tokens: (B, M, D), the encoded poses.
        codes: (B, M), the index of the nearest vector in each bank.
        vectors: (B, M, D), those vectors; constants.
        keypoints: (B, K, 2) in [-1, 1], decoded from the vectors; gradients pass straight to the tokens.
    """

    tokens: Tensor
    codes: Tensor
    vectors: Tensor
    keypoints: Tensor


class HierarchicalMemory(BuiltModule):
    """M banks of V vectors of dimension D, an encoder of poses into M tokens, and a decoder.

    The codebook is a buffer that only :meth:`update` changes, not the optimiser and no forward pass. Differs from the
    release, whose moving averages also run while serving, so that the prior would change with use.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential
    codebook: Tensor
    filled: Tensor
    hits: Tensor
    sums: Tensor
    idle_steps: Tensor
    use_counts: Tensor

    def __init__(self, config: PPLConfig) -> None:
        super().__init__(architecture.memory(config))
        per_vector = (config.num_banks, config.bank_size)
        codebook = torch.randn(*per_vector, config.token_dim) / config.token_dim**0.5
        self.register_buffer("codebook", codebook)
        # counts that start at 0, as in the release, would divide a vector without hits by almost nothing
        self.register_buffer("hits", torch.ones(per_vector))
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle_steps", torch.zeros(per_vector, dtype=torch.long))
        self.register_buffer("use_counts", torch.zeros(per_vector, dtype=torch.long))

    def forward(self, keypoints: Tensor) -> Recalled:
        """Encode, quantise and decode poses (B, K, 2); changes no state."""
        tokens = self.encode(keypoints)
        codes = self.quantise(tokens.detach())
        vectors = self.lookup(codes)
        # straight-through: the value of the vectors, the gradient of the tokens
        copied = tokens + (vectors - tokens).detach()
        return Recalled(tokens, codes, vectors, self.decode(copied))

    def encode(self, keypoints: Tensor) -> Tensor:
        """Encode poses (B, K, 2) as tokens (B, M, D)."""
        with full_precision(keypoints.device):
            tokens: Tensor = self.encoder(keypoints.float())
        return tokens

    def quantise(self, tokens: Tensor) -> Tensor:
        """Find the nearest vector (L2) in each bank: (B, M, D) to codes (B, M)."""
        with full_precision(tokens.device):
            products = torch.einsum("bmd,mvd->bmv", tokens, self.codebook)
        # |t - v|^2 = |t|^2 - 2 (t.v - |v|^2 / 2), and |t|^2 is the same for every vector
        return (products - self.codebook.square().sum(-1) / 2).argmax(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, M, D) of codes (B, M)."""
        return self.codebook[torch.arange(codes.shape[1], device=codes.device), codes]

    def decode(self, vectors: Tensor) -> Tensor:
        """Decode M vectors a pose, (B, M, D), to poses (B, K, 2)."""
        with full_precision(vectors.device):
            keypoints: Tensor = self.decoder(vectors)
        return keypoints

    def keypoint_prior(self) -> Tensor:
        """Decode the mean vector of every bank: the keypoint prior (K, 2)."""
        return self.decode(self.codebook.mean(dim=1).unsqueeze(0)).squeeze(0)

    @torch.no_grad()
    def update(
        self,
        tokens: Tensor,
        codes: Tensor,
        *,
        decay: float,
        revive_after: int,
        generator: torch.Generator,
        group: Group = ALONE,
    ) -> Tensor:
        """Move each vector towards the tokens that chose it; replace vectors that no token chooses.

        Args:
            tokens: (B, M, D).
            codes: (B, M), the codes of these tokens.
            decay: decay rate of both moving averages; 0.9 in the paper.
            revive_after: steps without a hit after which a vector is replaced by a token of the batch.
            generator: CPU generator that chooses these tokens.
            group: tokens and codes are this process's share of its batch; the codebook stays the same in each process.

        Returns:
            The number of revived vectors, a tensor () on the device, so that the CPU does not wait for the GPU.
        """
        batch = group.gather(tokens)
        order = torch.rand(len(self.hits), len(batch), generator=generator).argsort(dim=1).to(batch.device)
        # vectors drawn at random may lie where no token does: the first batch fills every bank with its tokens
        self._replace(batch, order, ~self.filled.expand_as(self.hits))
        self.filled.fill_(True)
        # count the choices of the whole batch, and add up the tokens behind them
        hits, sums = (group.total(part) for part in batch_sums(tokens, codes, self.codebook.shape[1]))
        self.use_counts += hits.long()
        update_average(self.hits, hits, decay)
        update_average(self.sums, sums, decay)
        self.idle_steps.add_(1).masked_fill_(hits > 0, 0)
        # a vector without hits stays: its count and sum fade alike, but smoothing would pull it to zero
        moved = self.sums / smooth_counts(self.hits).unsqueeze(-1)
        self.codebook.copy_(torch.where((hits > 0).unsqueeze(-1), moved, self.codebook))
        return self._replace(batch, order, self.idle_steps >= revive_after)

    def _replace(self, tokens: Tensor, order: Tensor, dead: Tensor) -> Tensor:
        """Replace the dead vectors (M, V) by tokens (B, M, D), and return their number.

        In each bank the n-th dead vector takes the n-th token of its random order (M, B), different ones while they
        last.
        """
        rank = (dead.cumsum(dim=1) - 1) % tokens.shape[0]
        bank = torch.arange(len(dead), device=dead.device)[:, None]
        fresh = tokens[order.gather(1, rank), bank].to(self.codebook.dtype)
        for values in (self.codebook, self.sums):
            values.copy_(torch.where(dead[..., None], fresh, values))
        self.hits.masked_fill_(dead, 1)
        self.idle_steps.masked_fill_(dead, 0)
        self.use_counts.masked_fill_(dead, 0)
        return dead.sum()


def batch_sums(tokens: Tensor, codes: Tensor, bank_size: int) -> tuple[Tensor, Tensor]:
    """Count how often each vector was chosen, (M, V), and sum the tokens that chose it, (M, V, D)."""
    # not one_hot, which checks its values on the host
    chosen = (codes[..., None] == torch.arange(bank_size, device=codes.device)).to(tokens.dtype)  # (B, M, V)
    return chosen.sum(0), torch.einsum("bmv,bmd->mvd", chosen, tokens)


def update_average(average: Tensor, value: Tensor, decay: float) -> None:
    """Set ``average`` to decay * average + (1 - decay) * value, in place."""
    average.mul_(decay).add_(value, alpha=1 - decay)


def smooth_counts(hits: Tensor, eps: float = 1e-5) -> Tensor:
    """Apply Laplace smoothing to hit counts (M, V): none is zero, and the total of each bank stays."""
    total = hits.sum(-1, keepdim=True)
    return (hits + eps) / (total + hits.shape[-1] * eps) * total


@torch.no_grad()
def recall(memory: HierarchicalMemory, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes (B, M) of poses (B, K, 2), and the distances (B,) to the poses decoded from them."""
    recalled = memory(keypoints)
    apart = recalled.keypoints - keypoints.float()
    return recalled.codes, apart.square().sum(-1).mean(-1).sqrt()


def recall_all(memory: HierarchicalMemory, poses: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Apply :func:`recall` to batches of poses; return the results joined, on the CPU."""
    codes, distances = zip(*(recall(memory, keypoints) for keypoints in poses), strict=True)
    return torch.cat(codes).cpu(), torch.cat(distances).cpu()


def surprise_scale(distances: Tensor) -> float | None:
    """Return the distance that counts as 1, from those of the training pictures (N,).

    None if it is not a positive number: training never moved, or the memory reproduces every pose exactly.
    """
    scale = float(torch.quantile(distances.double(), PERCENTILE / 100))
    return scale if 0 < scale < float("inf") else None

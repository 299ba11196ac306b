"""The hierarchical memory: poses as one code in each of M banks, and the keypoint prior distilled from it.

Sources: PPL section 3.4 and appendix A6; moving averages after van den Oord et al. 2017, appendix A.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.process_group import ALONE, Group

from .blocks import AcrossTokens, MixerBlock
from .device import full_precision


@dataclass(frozen=True)
class Recalled:
    """What the memory makes of a batch of poses.

    Attributes:
        tokens: (B, M, D), the encoded poses.
        codes: (B, M), the nearest vector's index in each bank.
        vectors: (B, M, D), those vectors; constants.
        keypoints: (B, K, 2) in units of [-1, 1], decoded from the vectors, gradients copied straight to the tokens.
    """

    tokens: Tensor
    codes: Tensor
    vectors: Tensor
    keypoints: Tensor


class HierarchicalMemory(nn.Module):
    """M banks of V vectors of dimension D, an encoder of poses into M tokens, and a decoder.

    The first :meth:`update` fills the banks with tokens of its batch, so that no vector starts out of reach.

    The codebook is a buffer that only :meth:`update` changes: neither the optimiser nor a forward pass
    (training or not) does. Differs from the release, whose moving average also runs while serving.

    Args:
        num_keypoints: K.
        num_banks: M.
        bank_size: V.
        token_dim: D.
        width: channels of the encoder's mixer blocks; 512 in the paper.
        depth: mixer blocks of the encoder; 4 in the paper.
    """

    codebook: Tensor
    filled: Tensor
    hits: Tensor
    sums: Tensor
    idle_steps: Tensor
    use_counts: Tensor

    def __init__(
        self, num_keypoints: int, num_banks: int, bank_size: int, token_dim: int, width: int = 512, depth: int = 4
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(2, width),
            *(MixerBlock(num_keypoints, width, 64, 512) for _ in range(depth)),
            nn.LayerNorm(width),
            AcrossTokens(num_keypoints, num_banks),
            nn.Linear(width, token_dim),
        )
        self.decoder = nn.Sequential(
            AcrossTokens(num_banks, num_keypoints),
            nn.Linear(token_dim, 32),
            MixerBlock(num_keypoints, 32, 64, 64),
            nn.LayerNorm(32),
            nn.Linear(32, 2),
        )
        codebook = torch.randn(num_banks, bank_size, token_dim) / token_dim**0.5
        self.register_buffer("codebook", codebook)
        self.register_buffer("hits", torch.ones(num_banks, bank_size))  # starting at 0 would divide by almost nothing
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle_steps", torch.zeros(num_banks, bank_size, dtype=torch.long))
        self.register_buffer("use_counts", torch.zeros(num_banks, bank_size, dtype=torch.long))

    def forward(self, keypoints: Tensor) -> Recalled:
        """Encode, quantise and decode poses (B, K, 2); changes nothing."""
        tokens = self.encode(keypoints)
        codes = self.quantise(tokens.detach())
        vectors = self.lookup(codes)
        copied = tokens + (vectors - tokens).detach()
        return Recalled(tokens, codes, vectors, self.decode(copied))

    def encode(self, keypoints: Tensor) -> Tensor:
        """Poses (B, K, 2) to tokens (B, M, D)."""
        with full_precision(keypoints.device):
            tokens: Tensor = self.encoder(keypoints.float())
        return tokens

    def quantise(self, tokens: Tensor) -> Tensor:
        """The nearest vector (L2) in each bank: (B, M, D) to codes (B, M)."""
        with full_precision(tokens.device):
            products = torch.einsum("bmd,mvd->bmv", tokens, self.codebook)
        return (products - self.codebook.square().sum(-1) / 2).argmax(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (B, M, D) that codes (B, M) name."""
        return self.codebook[torch.arange(codes.shape[1], device=codes.device), codes]

    def decode(self, vectors: Tensor) -> Tensor:
        """M vectors a pose, (B, M, D), to poses (B, K, 2)."""
        with full_precision(vectors.device):
            keypoints: Tensor = self.decoder(vectors)
        return keypoints

    def keypoint_prior(self) -> Tensor:
        """The prior (K, 2): the mean vector of every bank, decoded."""
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
    ) -> int:
        """Move every bank's vectors towards the tokens that chose them; replace those that no token chooses.

        Args:
            tokens: (B, M, D).
            codes: (B, M), of the same tokens.
            decay: of both moving averages, 0.9 in the paper.
            revive_after: steps without a hit after which a vector is replaced by a token of the batch.
            generator: on the CPU; decides which tokens.
            group: of whose batch tokens and codes are this process's share; hits and sums are those of the whole,
                and so are the tokens that vectors are replaced by. All its processes keep one codebook.

        Returns:
            How many vectors were revived.
        """
        if not self.filled:
            self._replace(tokens, torch.ones_like(self.hits, dtype=torch.bool), generator, group)
            self.filled.fill_(True)
        hits, sums = (group.total(part) for part in batch_sums(tokens, codes, self.codebook.shape[1]))
        self.use_counts += hits.long()
        moving_average(self.hits, hits, decay)
        moving_average(self.sums, sums, decay)
        self.idle_steps.add_(1).masked_fill_(hits > 0, 0)
        # a vector without hits stays: its counts and sums fade alike, but the smoothing would pull it to zero
        moved = self.sums / smoothed(self.hits).unsqueeze(-1)
        self.codebook.copy_(torch.where((hits > 0).unsqueeze(-1), moved, self.codebook))
        return self._replace(tokens, self.idle_steps >= revive_after, generator, group)

    def _replace(self, share: Tensor, dead: Tensor, generator: torch.Generator, group: Group) -> int:
        """Put tokens of the batch, a different one for each while there are enough, in the place of vectors."""
        bank, vector = dead.nonzero(as_tuple=True)
        if bank.numel():
            tokens = group.gather(share)
            order = torch.rand(dead.shape[0], tokens.shape[0], generator=generator).argsort(dim=1).to(tokens.device)
            rank = (dead.cumsum(dim=1) - 1)[bank, vector] % tokens.shape[0]
            fresh = tokens[order[bank, rank], bank].to(self.codebook.dtype)
            self.codebook[bank, vector] = fresh
            self.sums[bank, vector] = fresh
            self.hits[bank, vector] = 1
            self.idle_steps[bank, vector] = 0
            self.use_counts[bank, vector] = 0
        return bank.numel()


def batch_sums(tokens: Tensor, codes: Tensor, bank_size: int) -> tuple[Tensor, Tensor]:
    """How often each vector was chosen, (M, V), and the sum of the tokens that chose it, (M, V, D)."""
    chosen = nn.functional.one_hot(codes, bank_size).to(tokens.dtype)  # (B, M, V)
    return chosen.sum(0), torch.einsum("bmv,bmd->mvd", chosen, tokens)


def moving_average(average: Tensor, value: Tensor, decay: float) -> None:
    """average = decay * average + (1 - decay) * value, in place."""
    average.mul_(decay).add_(value, alpha=1 - decay)


def smoothed(hits: Tensor, eps: float = 1e-5) -> Tensor:
    """Laplace smoothing of the hit counts (M, V): the same total a bank, and none zero."""
    total = hits.sum(-1, keepdim=True)
    return (hits + eps) / (total + hits.shape[-1] * eps) * total

"""Processes that train one model together: what each takes of a batch, and how they agree.

One process is a group of its own, :data:`ALONE`, for which every operation here is the identity. So the training
step reads the same for one process and for many, and for one it computes bit for bit what it would without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Batch = TypeVar("Batch", bound=Any)  # a tensor or an array, pictures along the first axis


class PeerLostError(RuntimeError):
    """Another process of the group is gone, or no longer answers."""


@dataclass(frozen=True)
class Group:
    """A group of processes, as one of them sees it; torch.distributed's default group where there are several.

    A loss of this process must be such that the mean over the processes is the loss of the whole batch: gradients
    are averaged. Plain means over pictures are so by themselves, as all shares are of one size.

    Attributes:
        rank: of this process, from 0. Rank 0 reports and saves.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, batch: Batch) -> Batch:
        """This process's pictures of a whole batch (B, ...): every size-th, from its rank on.

        So a group's shares of the first pictures of a batch are the first pictures of its shares.
        """
        share: Batch = batch[self.rank :: self.size]
        return share

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes; takes no gradient. Raises PeerLostError."""
        if self.size == 1:
            return value
        summed = value.detach().clone(memory_format=torch.contiguous_format)
        with _peers():
            distributed.all_reduce(summed)
        return summed

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes; takes no gradient. Raises PeerLostError."""
        return value if self.size == 1 else self.total(value) / self.size

    def gather(self, share: Tensor) -> Tensor:
        """The whole batch (B, ...) of which each process has its share; takes no gradient. Raises PeerLostError."""
        if self.size == 1:
            return share
        shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _peers():
            distributed.all_gather(shares, share.detach().contiguous())
        return torch.stack(shares, dim=1).flatten(0, 1)

    def wait(self) -> None:
        """Until every process is here. Raises PeerLostError."""
        if self.size > 1:
            with _peers():
                distributed.barrier()

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace float tensors by their means over the processes, in one exchange. Raises PeerLostError."""
        if self.size == 1:
            return
        own = list(tensors)
        # reshape, as gradients of convolutions lie channels last
        mean = self.mean(torch.cat([tensor.reshape(-1).float() for tensor in own]))
        first = 0
        for tensor in own:
            tensor.copy_(mean[first : first + tensor.numel()].view(tensor.shape))
            first += tensor.numel()


ALONE = Group()


class _peers:  # noqa: N801 - reads as a statement: with _peers()
    """Names what torch.distributed raises, by its backend, where another process is gone."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise PeerLostError(f"another training process is gone, or no longer answers: {error}") from error

"""Processes that train one model together: their shares of a batch, and the exchanges between them.

For one process, :data:`ALONE`, every operation is the identity: the training step reads the same for one process and
for many, and one process computes bit for bit what it would without a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Batch = TypeVar("Batch", bound=Any)  # a tensor or an array with the pictures along the first axis


class PeerLostError(RuntimeError):
    """A crash or a timeout of another process of the group."""


@dataclass(frozen=True)
class Group:
    """A group of processes, seen from one of them; several use torch.distributed's default group.

    Gradients are averaged, so the mean of a loss over the processes must be the loss of the whole batch. Plain means
    over pictures are, since all shares have one size. The exchanges carry no gradient and raise PeerLostError. Rank 0
    reports and saves.
    """

    rank: int = 0
    size: int = 1

    def share(self, batch: Batch) -> Batch:
        """Return every size-th picture of a whole batch (B, ...) from the rank on, so that shares keep its order."""
        share: Batch = batch[self.rank :: self.size]
        return share

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.size == 1:
            return value
        summed = value.detach().clone(memory_format=torch.contiguous_format)
        with _convert_errors():
            distributed.all_reduce(summed)
        return summed

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return value if self.size == 1 else self.total(value) / self.size

    def gather(self, share: Tensor) -> Tensor:
        """Return the whole batch (B, ...) from the shares of the processes."""
        if self.size == 1:
            return share
        shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _convert_errors():
            distributed.all_gather(shares, share.detach().contiguous())
        return torch.stack(shares, dim=1).flatten(0, 1)

    def wait(self) -> None:
        """Wait until every process calls this."""
        if self.size > 1:
            with _convert_errors():
                distributed.barrier()

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace float tensors by their means over the processes, in one exchange."""
        if self.size == 1:
            return
        own = list(tensors)
        # reshape, not view: gradients of convolutions are laid out channels last
        mean = self.mean(torch.cat([tensor.reshape(-1).float() for tensor in own]))
        for tensor, part in zip(own, torch.split(mean, [tensor.numel() for tensor in own]), strict=True):
            tensor.copy_(part.view(tensor.shape))


ALONE = Group()


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Turn the errors of torch.distributed, which differ by backend, into PeerLostError."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"another training process crashed or does not answer: {error}") from error

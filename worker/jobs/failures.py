"""What the owner of a job is told when it fails: never a trace, always what can be done."""

from __future__ import annotations

import errno

import torch

from model.config import SettingError
from model.network.perceptual import WeightsUnavailableError
from model.training.trainer import TrainingDivergedError
from service.contract.errors import DiskFull, Diverged, NeedsWeights, PPLError, TrainingFailed

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def failure_of(error: BaseException) -> PPLError:
    """The reason of a failure as the job shows it; the log has the error itself."""
    if isinstance(error, PPLError):
        return error
    if isinstance(error, TrainingDivergedError):
        return Diverged(str(error))
    if isinstance(error, WeightsUnavailableError):
        return NeedsWeights(str(error))
    if isinstance(error, SettingError):
        return TrainingFailed(f"a setting of the job does not suit this release: {error}")
    if is_disk_full(error):
        return DiskFull("the server's disk is full; the job can be sent again once there is room")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _NO_MEMORY):
        return TrainingFailed("out of memory; a smaller batch_size, image_size or base_width needs less")
    return TrainingFailed("an internal error; the worker's log has its trace under the job's id")


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room left, also where a library says it in words only."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors' own error: "I/O error: No space left on device (os error 28)"
    return any(f"(os error {number})" in str(error) for number in _FULL)

"""The reason of a failure as the job's owner sees it: what to do, and no traceback."""

from __future__ import annotations

import torch

from model.config import SettingError
from model.network.perceptual import WeightsUnavailableError
from model.training.trainer import TrainingDivergedError
from service.contract.durable_files import is_disk_full
from service.contract.errors import DiskFull, Diverged, NeedsWeights, PPLError, TrainingFailed

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def explain_failure(error: BaseException, what: str = "job") -> PPLError:
    """Return the error to show to the owner of a job or dataset."""
    if isinstance(error, PPLError):
        return error
    if isinstance(error, TrainingDivergedError):
        return Diverged(str(error))
    if isinstance(error, WeightsUnavailableError):
        return NeedsWeights(str(error))
    if isinstance(error, SettingError):
        return TrainingFailed(f"a setting of the job is not valid in this release: {error}")
    if is_disk_full(error):
        return DiskFull(f"the server's disk is full; send the {what} again once there is space")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _NO_MEMORY):
        return TrainingFailed("out of memory; lower batch_size, image_size or base_width, or send smaller pictures")
    return TrainingFailed(f"internal error; the worker's log has the traceback under the {what}'s id")

"""The Pose Prior Learner, usable alone: train on pictures, predict poses.

    from pathlib import Path
    from model import Predictor, Trainer, load_folder, resolve

    config = resolve("compact", {"steps": 1000})
    trainer = Trainer(load_folder(Path("pictures"), config.image_size), config)
    for report in trainer.run():
        print(report.step, report.losses["total"])

Names are imported on first use, so that ``model.config`` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "model.config": ("PPLConfig", "SettingError", "resolve"),
    "model.data": ("load_clips", "load_folder"),
    "model.network.perceptual": ("WeightsUnavailableError", "perceptual_network"),
    "model.network.pose_prior_learner": ("PosePriorLearner",),
    "model.network.refine": ("NoMemoryError",),
    "model.predictor": ("Predictor",),
    "model.training.trainer": ("Trainer", "TrainingDivergedError"),
    "model.version.prior": ("PosePrior",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'model' has no attribute '{name}'")

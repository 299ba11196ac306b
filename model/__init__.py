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

_MODULES = {
    "PPLConfig": "model.config",
    "SettingError": "model.config",
    "resolve": "model.config",
    "load_clips": "model.data",
    "load_folder": "model.data",
    "PosePriorLearner": "model.network.pose_prior_learner",
    "PosePrior": "model.version.prior",
    "Predictor": "model.predictor",
    "NoMemoryError": "model.network.refine",
    "Trainer": "model.training.trainer",
    "TrainingDivergedError": "model.training.trainer",
    "WeightsUnavailableError": "model.network.perceptual",
    "perceptual_network": "model.network.perceptual",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'model' has no attribute '{name}'")

"""The Pose Prior Learner, usable alone: train on pictures, predict poses.

    from pathlib import Path
    from model import Predictor, Trainer, load_folder, resolve

    config = resolve("compact", {"steps": 1000})
    trainer = Trainer(load_folder(Path("pictures"), config.image_size), config)
    for report in trainer.run():
        print(report.step, report.losses["total"])

Names are imported when first used, so that ``model.config`` can be read where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
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
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'model' has no attribute '{name}'")

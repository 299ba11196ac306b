"""One process of a group in the tests: trains drawn pictures with frozen batch statistics and saves the results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from model.config import resolve
from model.process_group import ALONE, Group
from model.training.distributed import join_group
from model.training.trainer import Trainer


def frozen(trainer: Trainer) -> Trainer:
    """The trainer with batch norms that use, and keep, the statistics they have."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return trainer


def train(order: dict, group: Group = ALONE) -> tuple[Trainer, list[dict[str, float]]]:
    """Train as the order says: its pictures, settings, first checkpoint and step to stop at."""
    images = np.load(order["images"])
    clips = np.load(order["clips"]) if order.get("clips") else None
    trainer = Trainer(images, resolve("compact", order["settings"]), "cpu", clips=clips, group=group)
    if order.get("frozen", True):
        frozen(trainer)
    if order.get("eps"):
        trainer.optimizer.param_groups[0]["eps"] = trainer.optimizer.param_groups[1]["eps"] = order["eps"]
    if order.get("resume"):
        assert trainer.load_checkpoint(Path(order["resume"]))
    losses = []
    for report in trainer.run():
        losses.append(report.losses)
        if report.step == order.get("stop"):
            break
    return trainer, losses


def work(path: Path, rank: int, processes: int) -> None:
    torch.set_num_threads(1)
    order = json.loads(path.read_text())
    with join_group("cpu", rank, processes, order["meeting"]) as group:
        trainer, losses = train(order, group)
        folder = Path(order["out"]) / str(rank)
        trainer.save_checkpoint(folder)
        (folder / "losses.json").write_text(json.dumps(losses))
        group.wait()

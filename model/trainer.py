"""Training: pictures in, a learned prior out. One optimisation step is :meth:`Trainer.train_step`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import checkpoint
from model.config import PPLConfig, SettingError
from model.data import Batches, Images, in_order, mask_patches, step_generator, to_tensor
from model.device import autocast, channels_last, pick_device
from model.losses import boundary_loss, link_regularization_loss, memory_loss, reconstruction_loss
from model.perceptual import perceptual_network
from model.ppl import PosePriorLearner
from model.prior import PosePrior, prototypes

CHECKPOINT_FILE = "checkpoint.safetensors"


class TrainingDivergedError(RuntimeError):
    """A loss or a weight is no longer finite; the message names step and loss."""


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
        step: steps done so far, counted from 1.
        losses: each loss by name, unweighted, with the weighted sum as "total".
    """

    step: int
    losses: dict[str, float]


class Trainer:
    """Trains a :class:`PosePriorLearner` on still pictures.

    Every random choice is drawn from the seed and the step's number, so a run that is stopped, saved, loaded
    and continued takes the same steps as one that was not: bit for bit on a CPU with the same number of threads.
    On CUDA some sums (``index_add_``, the gradient of bilinear resizing) run in no fixed order.

    Args:
        images: uint8 (N, S, S, 3) with S the configured image size; may be a memory map.
        config: all settings.
        device: "auto", "cpu", "cuda" or a torch device name.
        perceptual_weights: a local file of the perceptual network's weights.

    Raises:
        ValueError: pictures of another size, or no such device.
        WeightsUnavailableError: the perceptual network can't be had.
    """

    def __init__(
        self, images: Images, config: PPLConfig, device: str = "auto", perceptual_weights: Path | None = None
    ) -> None:
        if images.shape[1:] != (config.image_size, config.image_size, 3):
            raise ValueError(f"images are {images.shape[1:]}; expected ({config.image_size}, {config.image_size}, 3)")
        self.config = config
        self.device = pick_device(device)
        self.batches = Batches(images, config.batch_size, config.seed, horizontal_flip=config.horizontal_flip)
        perceptual = perceptual_network(config.perceptual, config.perceptual_size, perceptual_weights)
        self.perceptual = channels_last(perceptual, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = PosePriorLearner(config)
        self.model = channels_last(model, self.device)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.step = 0

    def run(self) -> Iterator[StepReport]:
        """Train to the configured number of steps, reporting each.

        Raises:
            TrainingDivergedError: a loss is no longer finite. Weights are then of no use.
        """
        while self.step < self.config.steps:
            losses = self.train_step()
            self.step += 1
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the {name} loss is {value} at step {self.step} of {self.config.steps}; "
                        f"a lower learning_rate than {self.config.learning_rate:g} may help"
                    )
            yield StepReport(self.step, values)

    def train_step(self) -> dict[str, Tensor]:
        """One optimisation step on the batch of the current step; the losses by name."""
        config, step = self.config, self.step
        self.model.train()  # an export on the way left it in eval mode
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        image = to_tensor(self.batches.at(step), self.device)
        masking = step_generator(config.seed, "mask", step)
        reference = mask_patches(image, config.mask_ratio, config.mask_grid, masking)
        with autocast(config.precision, self.device):
            with torch.no_grad():
                target = self.perceptual(image)
            out = self.model(image, reference, link_width(config, step))
            drawn = self.perceptual(out.reconstruction)
        losses = {
            "reconstruction": reconstruction_loss(drawn, target),
            "boundary": boundary_loss(out.keypoints),
            "link_regularization": link_regularization_loss(out.keypoint_prior, out.keypoints, self.model.link_weights),
            "memory": memory_loss(out.recalled, out.keypoints, config.memory_decode_weight),
        }
        total = (
            losses["reconstruction"]
            + config.boundary_weight * losses["boundary"]
            + config.link_regularization_weight * losses["link_regularization"]
            + losses["memory"]
        )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.model.memory.update(
            out.recalled.tokens.detach(),
            out.recalled.codes,
            decay=config.memory_decay,
            revive_after=config.revive_after,
            generator=step_generator(config.seed, "revive", step),
        )
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def save_checkpoint(self, directory: Path) -> None:
        """Write all that continuing needs into a directory; an older checkpoint there is replaced at once.

        Raises:
            TrainingDivergedError: a weight is not finite; the older checkpoint stays.
        """
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise TrainingDivergedError(f"{name} is not finite after step {self.step}")
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": value for name, value in state.items()})
        facts = {"step": self.step, "config": self.config.to_dict(), "saved_at": time.time()}
        checkpoint.save(directory / CHECKPOINT_FILE, tensors, facts)

    def load_checkpoint(self, directory: Path) -> bool:
        """Continue from a directory's checkpoint; False where there is none.

        Raises:
            CheckpointError: it is damaged, or of other settings.
        """
        path = directory / CHECKPOINT_FILE
        if not path.exists():
            return False
        tensors, facts = checkpoint.load(path)
        try:
            self._restore(path, tensors, facts)
        except (SettingError, RuntimeError, KeyError, IndexError) as error:
            raise checkpoint.CheckpointError(f"{path} was written by another release: {error}") from error
        return True

    def _restore(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        saved = PPLConfig.from_dict(facts["config"])
        if saved != self.config:
            changed = [name for name, value in saved.to_dict().items() if value != self.config.to_dict()[name]]
            raise checkpoint.CheckpointError(f"{path} was trained with other settings: {', '.join(changed)}")
        prefix = "model."
        self.model.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                # the fused optimiser walks memory: a moment must lie as its parameter does
                like = parameters[int(index)]
                laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                state.setdefault(int(index), {})[key] = laid_out
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = int(facts["step"])

    def export(self, directory: Path, keypoint_names: tuple[str, ...] | None = None) -> None:
        """Write a version: weights.safetensors, config.json, prior.json and memory.json.

        Args:
            directory: an existing, empty directory.
            keypoint_names: K names; numbered where not given.
        """
        self.model.eval()
        weights = self.model.state_dict()
        checkpoint.save(directory / "weights.safetensors", weights, {"step": self.step})
        checkpoint.save_json(directory / "config.json", self.config.to_dict())
        checkpoint.save_json(directory / "prior.json", PosePrior.of(self.model, keypoint_names).to_json())
        memory = self.model.memory
        facts = {
            "num_banks": self.config.num_banks,
            "bank_size": self.config.bank_size,
            "token_dim": self.config.token_dim,
            "use_counts": memory.use_counts.tolist(),
            "prototypes": [
                {"keypoints": pose.keypoints.tolist(), "codes": pose.codes.tolist(), "count": pose.count}
                for pose in prototypes(self.model, self.codes())
            ],
        }
        checkpoint.save_json(directory / "memory.json", facts)

    @torch.no_grad()
    def codes(self, batch_size: int = 64) -> Tensor:
        """The memory's codes (N, M) of all training pictures, by the model as it is."""
        self.model.eval()
        found = []
        for images in in_order(self.batches.images, batch_size):
            with autocast(self.config.precision, self.device):
                keypoints = self.model.locate(to_tensor(images, self.device)).keypoints
            found.append(self.model.memory(keypoints).codes.cpu())
        return torch.cat(found)


def learning_rate(config: PPLConfig, step: int) -> float:
    """The learning rate of a step counted from 0."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def link_width(config: PPLConfig, step: int) -> float:
    """sigma squared of a step: falls geometrically over the first part of the run, then stays."""
    span = config.link_width_fraction * config.steps
    done = min(1.0, step / span) if span > 0 else 1.0
    width: float = config.link_width_start ** (1 - done) * config.link_width**done
    return width


def _parameter_groups(model: PosePriorLearner, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and the link weights do not."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]

"""Training: pictures in, a learned prior out. One optimisation step is :meth:`Trainer.train_step`."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import PPLConfig
from model.data import Batches, Images, mask_patches, step_generator, to_tensor
from model.network.device import autocast, channels_last, pick_device
from model.network.perceptual import perceptual_network
from model.network.pose_prior_learner import Forward, PosePriorLearner
from model.process_group import ALONE, Group
from model.version import export, tensor_files
from model.version.history import History
from model.version.prior import PosePrior, check_given

from .augmentation import augment
from .losses import boundary_loss, link_regularization_loss, memory_loss, reconstruction_loss
from .occluding import hidden_part_losses
from .schedules import learning_rate, link_width

_PRIORS = ("own_prior", "link_colours")  # tables, not matrices that multiply: they do not decay
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
    """Trains a :class:`PosePriorLearner` on still pictures, or on the frames of clips.

    The model rebuilds each picture from a reference: of stills the picture itself, masked; of clips another frame
    of the same clip, as it is.

    Every random choice is drawn from the seed and the step's number, so a run that is stopped, saved, loaded
    and continued takes the same steps as one that was not: bit for bit on a CPU with the same number of threads.
    Several processes, a group, train one model together: each takes its share of every batch, and gradients, codebook
    and reported losses are those of the whole batch, so that the weights of all stay the same. Batch norms take the
    statistics of the whole batch on CUDA; elsewhere each process normalises its share by itself, and the running
    statistics are averaged.
    On CUDA some sums (``index_add_``, the gradient of bilinear resizing) run in no fixed order.

    Args:
        images: uint8 (N, S, S, 3) with S the configured image size; may be a memory map.
        config: all settings.
        device: "auto", "cpu", "cuda" or a torch device name.
        perceptual_weights: a local file of the perceptual network's weights.
        clips: which clip each picture is a frame of, integers (N,); None for stills.
        prior: what the settings ``keypoint_prior=predefined`` and ``connectivity_prior=predefined`` start from.
            The exported prior bears its keypoint names.
        group: the processes that train together; their joint batch is ``batch_size``.

    Attributes:
        mode: "clips" or "stills", what the setting of that name came to.
        history: snapshots of the prior along the run.

    Raises:
        ValueError: pictures of another size, clips or a prior that do not fit the settings, or no such device.
        SettingError: a batch that the group can't share evenly.
        WeightsUnavailableError: the perceptual network can't be had.
    """

    def __init__(
        self,
        images: Images,
        config: PPLConfig,
        device: str = "auto",
        perceptual_weights: Path | None = None,
        *,
        clips: NDArray[np.int64] | None = None,
        prior: PosePrior | None = None,
        group: Group = ALONE,
    ) -> None:
        if images.shape[1:] != (config.image_size, config.image_size, 3):
            raise ValueError(f"images are {images.shape[1:]}; expected ({config.image_size}, {config.image_size}, 3)")
        check_given(prior, config)
        config.check_processes(group.size)
        self.config, self.group = config, group
        self.mode = _mode(config, clips)
        self.device = pick_device(device)
        self.batches = Batches(
            images, config.batch_size, config.seed, horizontal_flip=config.horizontal_flip, clips=clips, group=group
        )
        perceptual = perceptual_network(config.perceptual, config.perceptual_size, perceptual_weights)
        self.perceptual = channels_last(perceptual, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            given = {"keypoint_prior": prior.keypoint_prior, "link_weights": prior.link_weights} if prior else {}
            model = PosePriorLearner(config, **given)
        self.model = channels_last(_synchronised(model, group, self.device), self.device)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.step = 0
        self.keypoint_names = prior.keypoint_names if prior else None
        self.history = History(config.steps, config.history_snapshots)
        self.history.watch(self.model, self.step)

    def run(self) -> Generator[StepReport]:
        """Train to the configured number of steps, reporting each.

        Raises:
            TrainingDivergedError: a loss is no longer finite. Weights are then of no use.
        """
        while self.step < self.config.steps:
            losses = self.train_step()
            self.step += 1
            self.history.watch(self.model, self.step)
            values = dict(zip(losses, self.group.mean(torch.stack(list(losses.values()))).tolist(), strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the {name} loss is {value} at step {self.step} of {self.config.steps}; "
                        f"a lower learning_rate than {self.config.learning_rate:g} may help"
                    )
            yield StepReport(self.step, values)

    def train_step(self) -> dict[str, Tensor]:
        """One optimisation step on the batch of the current step; the losses of this process's share by name."""
        config, step = self.config, self.step
        self.model.train()  # an export on the way left it in eval mode
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        image = self._augmented(self.batches.at(step))
        reference = self._reference(image)
        with autocast(config.precision, self.device):
            with torch.no_grad():
                target = self.perceptual(image)
            out = self.model(image, reference, link_width(config, step))
            drawn = self.perceptual(out.reconstruction)
            hidden = self._hidden_part_losses(image, out)
        losses = {"reconstruction": reconstruction_loss(drawn, target, self.group), **self._pose_losses(out), **hidden}
        total = losses["reconstruction"] + config.boundary_weight * losses["boundary"]
        if self.model.memory is not None:
            total = total + config.link_regularization_weight * losses["link_regularization"] + losses["memory"]
        if hidden:
            total = total + config.occlusion_weight * hidden["occlusion"]
            total = total + config.refinement_weight * hidden["refinement"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.group.average(_shared(self.model))
        self.optimizer.step()
        if self.model.memory is not None and out.recalled is not None:
            self.model.memory.update(
                out.recalled.tokens.detach(),
                out.recalled.codes,
                decay=config.memory_decay,
                revive_after=config.revive_after,
                generator=step_generator(config.seed, "revive", step),
                group=self.group,
            )
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def _augmented(self, images: Images) -> Tensor:
        """Pictures of the current step's batch as a tensor (B, 3, S, S); a picture and its reference alike."""
        image, strength = to_tensor(images, self.device), self.config.augmentation
        if not strength:
            return image
        return augment(image, strength, step_generator(self.config.seed, "augment", self.step), self.group)

    def _reference(self, image: Tensor) -> Tensor:
        """What the batch of the current step (B, 3, S, S) is rebuilt from, of the same shape."""
        config, step = self.config, self.step
        if self.mode == "clips":
            return self._augmented(self.batches.references_at(step))
        generator = step_generator(config.seed, "mask", step)
        return mask_patches(image, config.mask_ratio, config.mask_grid, generator, self.group)

    def _pose_losses(self, out: Forward) -> dict[str, Tensor]:
        """The losses beside reconstruction; AutoLink has no prior and no memory to lose."""
        losses = {"boundary": boundary_loss(out.keypoints)}
        if out.keypoint_prior is not None and out.recalled is not None:
            losses["link_regularization"] = link_regularization_loss(
                out.keypoint_prior, out.keypoints, self.model.link_weights, self.group
            )
            losses["memory"] = memory_loss(out.recalled, out.keypoints, self.config.memory_decode_weight)
        return losses

    def _hidden_part_losses(self, image: Tensor, out: Forward) -> dict[str, Tensor]:
        """The losses of hidden parts, of half of the batch; none before they count, and none for AutoLink."""
        config, step = self.config, self.step
        wanted = config.occlusion_weight + config.refinement_weight > 0
        if self.model.memory is None or not wanted or step < config.occlusion_start * config.steps:
            return {}
        some = (config.batch_size + 1) // 2
        own = len(self.group.share(range(some)))
        hiding = step_generator(config.seed, "hide", step)
        return hidden_part_losses(
            self.model, image[:own], out.keypoints[:own], link_width(config, step), hiding, self.group, some
        )

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
        tensors.update({f"history.{name}": value for name, value in self.history.to_tensors().items()})
        facts = {"step": self.step, "config": self.config.to_dict(), "mode": self.mode, "saved_at": time.time()}
        tensor_files.save(directory / CHECKPOINT_FILE, tensors, facts)

    def load_checkpoint(self, directory: Path) -> bool:
        """Continue from a directory's checkpoint; False where there is none.

        Raises:
            CheckpointError: it is damaged, or of other settings.
        """
        path = directory / CHECKPOINT_FILE
        if not path.exists():
            return False
        tensors, facts = tensor_files.load(path)
        try:
            self._restore(path, tensors, facts)
        except tensor_files.CheckpointError:
            raise
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise tensor_files.CheckpointError(f"{path} was written by another release: {error}") from error
        return True

    def load_weights(self, path: Path) -> None:
        """Start from the weights of a version (``weights.safetensors``), codebook and all, with a fresh optimiser.

        Args:
            path: of a model of the same shape.

        Raises:
            CheckpointError: it is damaged, or of another shape.
            FileNotFoundError: there is none.
        """
        weights, _ = tensor_files.load(path)
        self._check_fits(path, weights)
        self.model.load_state_dict(weights)
        self.history = History(self.config.steps, self.config.history_snapshots)
        self.history.watch(self.model, self.step)

    def _check_fits(self, path: Path, weights: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        strange = sorted(weights.keys() ^ own.keys())
        strange += [name for name in own if name in weights and weights[name].shape != own[name].shape]
        if strange:
            raise tensor_files.CheckpointError(f"{path} was written by another release: {', '.join(strange[:5])}")

    def _restore(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        saved = PPLConfig.from_dict(facts["config"])
        if saved != self.config:
            changed = [name for name, value in saved.to_dict().items() if value != self.config.to_dict()[name]]
            raise tensor_files.CheckpointError(f"{path} was trained with other settings: {', '.join(changed)}")
        mode = facts.get("mode", "stills")  # of a release that knew no clips
        if mode != self.mode:
            raise tensor_files.CheckpointError(f"{path} was trained on {mode}; these are {self.mode}")
        step, history = int(facts["step"]), _named(tensors, "history.")
        weights = _named(tensors, "model.")
        self._check_fits(path, weights)
        moments = self._moments(_named(tensors, "optimizer."))
        self.history.restore(history)
        # not before all of it is known to fit: a run that starts over would start from these weights
        self.model.load_state_dict(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = step
        self.history.watch(self.model, self.step)

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
        """The optimiser's state, as it was saved, by the number of the parameter."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            # the fused optimiser walks memory: a moment must lie as its parameter does
            like = parameters[int(index)]
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            if laid_out.ndim and laid_out.shape != like.shape:  # a count of steps is a number
                raise KeyError(f"optimizer.{name}")
            state.setdefault(int(index), {})[key] = laid_out
        return state

    def export(self, directory: Path, keypoint_names: tuple[str, ...] | None = None) -> None:
        """Write a version: weights.safetensors, config.json, prior.json, memory.json and history.json.

        Args:
            directory: an existing, empty directory.
            keypoint_names: K names; those of the prior that was given, or numbers, where not given.
        """
        export.write_version(
            directory,
            self.model,
            self.batches.images,
            self.history,
            step=self.step,
            keypoint_names=keypoint_names or self.keypoint_names,
        )

    def codes(self, batch_size: int = 64) -> Tensor:
        """The memory's codes (N, M) of all training pictures, by the model as it is."""
        return export.codes(self.model, self.batches.images, batch_size)


def _mode(config: PPLConfig, clips: NDArray[np.int64] | None) -> str:
    if config.mode == "clips" and clips is None:
        raise ValueError("mode is clips, but no clips are given; expected the number of each picture's clip")
    if config.mode == "stills" and clips is not None:
        raise ValueError("mode is stills, but clips are given; expected none, or the mode clips or auto")
    return "stills" if clips is None else "clips"


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameter_groups(model: PosePriorLearner, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, link weights and colours, and a keypoint prior do not. What is frozen is in no
    group."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and name not in _PRIORS]
    plain = [p for name, p in trained if p.ndim <= 1 or name in _PRIORS]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _synchronised(model: PosePriorLearner, group: Group, device: torch.device) -> PosePriorLearner:
    """The model, its batch norms taking the statistics of the group's whole batch where torch can do so."""
    if group.size == 1 or device.type != "cuda":
        return model
    synchronised: PosePriorLearner = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synchronised


def _shared(model: PosePriorLearner) -> Iterator[Tensor]:
    """What a group averages before each step: the gradients, and the running statistics of batch norms."""
    yield from (p.grad for p in model.parameters() if p.grad is not None)
    yield from (value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var")))

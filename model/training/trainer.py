"""Training from pictures to a learned prior; :meth:`Trainer.train_step` is one optimisation step."""

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
from model.network.blocks import autocast, channels_last, pick_device, shrink
from model.network.perceptual import perceptual_network
from model.network.pose_prior_learner import Forward, PosePriorLearner
from model.process_group import ALONE, Group
from model.version import tensor_files
from model.version.prior import History, PosePrior
from model.version.prior_values import check_given
from model.version.tensor_files import write_version

from .attention_start import fit_clusters
from .augmentation import augment
from .losses import (
    boundary_loss,
    hidden_part_losses,
    link_regularization_loss,
    memory_loss,
    reconstruction_loss,
)
from .schedules import cluster_share, learning_rate, link_width
from .zoom import crop_pictures, fit_locator

CHECKPOINT_FILE = "checkpoint.safetensors"
# points and colours, not matrices that multiply: they do not decay
_TABLES = ("own_prior", "link_colours")


class TrainingDivergedError(RuntimeError):
    """A loss or a weight that is no longer finite; the message names it."""


@dataclass(frozen=True)
class StepReport:
    """The result of one step.

    Attributes:
        step: number of steps done.
        losses: each loss by name, unweighted, and the weighted sum as "total".
    """

    step: int
    losses: dict[str, float]


class Trainer:
    """The training of a :class:`PosePriorLearner` on pictures, or on the frames of clips.

    The model reconstructs each picture from a reference: the picture itself, masked, or another frame of its clip.

    Every random choice is drawn from the seed and the number of the step, so a run that is stopped and continued takes
    the same steps as an unbroken one: bit for bit on a CPU with the same number of threads. On CUDA some sums
    (``index_add_``, the gradient of bilinear resizing) run in no fixed order.

    Several processes, a group, train one model: each takes its share of every batch; gradients, codebook and reported
    losses are those of the whole batch, so their weights stay equal. Batch norms take the statistics of the whole batch
    on CUDA; elsewhere each process normalises its own share, and the running statistics are averaged.

    Args:
        images: uint8 (N, S, S, 3) with S the configured image size; may be a memory map.
        config: all settings.
        device: "auto", "cpu", "cuda" or a torch device name.
        perceptual_weights: a file with the weights of the perceptual network.
        clips: the number of each frame's clip, integers (N,); None for stills.
        prior: start of what the settings call "predefined"; its keypoint names are exported.
        cropped: whether the pictures are around boxes already. They are taken as they come then, and so are those of
            clips, where a crop of each frame would jump.
        group: the processes that train together; ``batch_size`` is that of all of them.

    Attributes:
        mode: "clips" or "stills".
        history: snapshots of the prior along the run.
        holds_weights: whether the model has the weights of the last step, or only those of the last checkpoint.

    Raises:
        ValueError: pictures of another size, clips or a prior that do not fit the settings, or no such device.
        SettingError: the group can't share a batch evenly.
        WeightsUnavailableError: the perceptual network's weights are missing.
    """

    holds_weights = True

    def __init__(
        self,
        images: Images,
        config: PPLConfig,
        device: str = "auto",
        perceptual_weights: Path | None = None,
        *,
        clips: NDArray[np.int64] | None = None,
        prior: PosePrior | None = None,
        cropped: bool = False,
        group: Group = ALONE,
    ) -> None:
        side = config.image_size
        if images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype} {images.shape[1:]}; expected uint8 ({side}, {side}, 3)")
        check_given(prior, config)
        config.check_processes(group.size)
        self.config, self.group = config, group
        self.mode = _mode(config, clips)
        self.device = pick_device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            given = {"keypoint_prior": prior.keypoint_prior, "link_weights": prior.link_weights} if prior else {}
            model = PosePriorLearner(config, **given)
        self.model = channels_last(_sync_batch_norms(model, group, self.device), self.device)
        self._uncropped, self._outdated = images, False
        if clips is None and not cropped:
            fit_locator(self.model, images, group)
        crops = crop_pictures(self.model, images)
        fit_clusters(self.model, crops, group)
        self.batches = Batches(
            crops,
            config.batch_size,
            config.seed,
            horizontal_flip=config.horizontal_flip,
            clips=clips,
            group=group,
        )
        perceptual = perceptual_network(config.perceptual, config.perceptual_size, perceptual_weights)
        self.perceptual = channels_last(perceptual, self.device)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.step = 0
        self.keypoint_names = prior.keypoint_names if prior else None
        self.history = History(config.steps, config.history_snapshots)
        self.history.record(self.model, self.step)

    @property
    def zoomed(self) -> bool:
        """Whether pictures are cropped around the thing, see :mod:`model.network.locator`."""
        return self.model.locator is not None and self.model.locator.fitted

    def run(self) -> Generator[StepReport]:
        """Train to the configured number of steps; yield a report of each.

        Raises:
            TrainingDivergedError: a loss is not finite, and the weights are of no use.
        """
        while self.step < self.config.steps:
            losses = self.train_step()
            self.step += 1
            self.history.record(self.model, self.step)
            values = dict(zip(losses, self.group.mean(torch.stack(list(losses.values()))).tolist(), strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the {name} loss is {value} at step {self.step} of {self.config.steps}; "
                        f"a lower learning_rate than {self.config.learning_rate:g} may help"
                    )
            yield StepReport(self.step, values)

    def train_step(self) -> dict[str, Tensor]:
        """Take one optimisation step; return the losses of this process's share, with the weighted sum as "total"."""
        config, step = self.config, self.step
        self.model.train()  # an export during the run leaves it in eval mode
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        # reconstruct the picture from its reference and its pose
        image = self._load(self.batches.at(step))
        small = shrink(image, config.side)
        reference = self._reference(small)
        with autocast(config.precision, self.device):
            with torch.no_grad():
                target = self.perceptual(small)
            out = self.model(image, reference, link_width(config, step))
            drawn = self.perceptual(out.reconstruction)
            hidden = self._hidden_part_losses(image, out)
        # weigh the losses, in this order: the order of a sum decides its last bits
        losses = {"reconstruction": reconstruction_loss(drawn, target, self.group), **self._pose_losses(out), **hidden}
        total = losses["reconstruction"] + config.boundary_weight * losses["boundary"]
        if self.model.memory is not None:
            total = total + config.link_regularization_weight * losses["link_regularization"] + losses["memory"]
        if hidden:
            total = total + config.occlusion_weight * hidden["occlusion"]
            total = total + config.refinement_weight * hidden["refinement"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.group.average(_averaged_tensors(self.model))
        self.optimizer.step()
        # the codebook follows by moving averages, without the optimiser (PPL appendix A6)
        if self.model.memory is not None and out.recalled is not None:
            self.model.memory.update(
                out.recalled.tokens.detach(),
                out.recalled.codes,
                decay=config.memory_decay,
                revive_after=config.revive_after,
                generator=step_generator(config.seed, "revive", step),
                group=self.group,
            )
        # now, not before the next step, so that the last step leaves none
        if self.model.regressor.clusters is not None:
            self.model.regressor.clusters.weaken(cluster_share(config, step + 1))
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def _load(self, images: Images) -> Tensor:
        """Convert pictures of the current batch to (B, 3, S, S) and augment them, references like their pictures."""
        image, strength = to_tensor(images, self.device), self.config.augmentation
        if not strength:
            return image
        return augment(image, strength, step_generator(self.config.seed, "augment", self.step), self.group)

    def _reference(self, image: Tensor) -> Tensor:
        """Return the references of the current batch, (B, 3, S, S)."""
        config, step = self.config, self.step
        if self.mode == "clips":
            return shrink(self._load(self.batches.references_at(step)), config.side)
        generator = step_generator(config.seed, "mask", step)
        return mask_patches(image, config.mask_ratio, config.mask_grid, generator, self.group)

    def _pose_losses(self, out: Forward) -> dict[str, Tensor]:
        losses = {"boundary": boundary_loss(out.keypoints)}
        if out.keypoint_prior is not None and out.recalled is not None:  # AutoLink has neither
            losses["link_regularization"] = link_regularization_loss(
                out.keypoint_prior, out.keypoints, self.model.link_weights, self.group
            )
            losses["memory"] = memory_loss(out.recalled, out.keypoints, self.config.memory_decode_weight)
        return losses

    def _hidden_part_losses(self, image: Tensor, out: Forward) -> dict[str, Tensor]:
        """Return the losses of hidden parts for half of the batch; none for AutoLink, or before they start."""
        config, step = self.config, self.step
        weighted = config.occlusion_weight + config.refinement_weight > 0
        if self.model.memory is None or not weighted or step < config.occlusion_start * config.steps:
            return {}
        total = (config.batch_size + 1) // 2
        own = len(self.group.share(range(total)))
        generator = step_generator(config.seed, "hide", step)
        return hidden_part_losses(
            self.model, image[:own], out.keypoints[:own], link_width(config, step), generator, self.group, total
        )

    def save_checkpoint(self, directory: Path) -> None:
        """Write weights, moments, history and settings to a directory, replacing its checkpoint atomically.

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
        """Continue from a directory's checkpoint; return False if it has none.

        Raises:
            CheckpointError: it is damaged, or from other settings; the trainer is unchanged.
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
        self._crop_again()
        return True

    def load_weights(self, path: Path) -> None:
        """Start from a version's ``weights.safetensors``, codebook included, with a fresh optimiser and history.

        Raises:
            CheckpointError: it is damaged, or of a model of another shape.
            FileNotFoundError: there is none.
        """
        weights, facts = tensor_files.load(path)
        self._check_fits(path, weights)
        tensor_files.check_features(self.model, facts)
        self._load_model(weights)
        self._crop_again()
        self.history = History(self.config.steps, self.config.history_snapshots)
        self.history.record(self.model, self.step)

    def show_checkpoint(self, directory: Path) -> None:
        """Take over weights and history of a checkpoint that other processes wrote, to look at them."""
        tensors, _ = tensor_files.load(directory / CHECKPOINT_FILE)
        self.model.load_state_dict(_select(tensors, "model."))
        self.history.restore(_select(tensors, "history."))

    def _load_model(self, weights: dict[str, Tensor]) -> None:
        before = {name: value.clone() for name, value in self.model.state_dict().items() if name.startswith("locator.")}
        self.model.load_state_dict(weights)
        self._outdated = any(not torch.equal(value, weights[name]) for name, value in before.items())

    def _crop_again(self) -> None:
        """Crop the pictures as the locator of loaded weights says, if it is another one."""
        if self._outdated:
            self.batches.images, self._outdated = crop_pictures(self.model, self._uncropped), False

    def _check_fits(self, path: Path, weights: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        unknown = sorted(weights.keys() ^ own.keys())
        unknown += [name for name in own if name in weights and weights[name].shape != own[name].shape]
        if unknown:
            raise tensor_files.CheckpointError(f"{path} was written by another release: {', '.join(unknown[:5])}")

    def _restore(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        saved = PPLConfig.from_dict(facts["config"])
        if saved != self.config:
            changed = [name for name, value in saved.to_dict().items() if value != self.config.to_dict()[name]]
            raise tensor_files.CheckpointError(f"{path} was trained with other settings: {', '.join(changed)}")
        mode = facts.get("mode", "stills")  # the first release had no clips
        if mode != self.mode:
            raise tensor_files.CheckpointError(f"{path} was trained on {mode}; these are {self.mode}")
        step, weights = int(facts["step"]), _select(tensors, "model.")
        self._check_fits(path, weights)
        moments = self._moments(_select(tensors, "optimizer."))
        self.history.restore(_select(tensors, "history."))
        # only now that everything fits: after an error, a fresh run would start from these weights
        self._load_model(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = step
        self.history.record(self.model, self.step)

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
        """Return the optimiser's state by the index of the parameter."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            # the fused optimiser reads memory in order: a moment must be laid out as its parameter is
            like = parameters[int(index)]
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            if laid_out.ndim and laid_out.shape != like.shape:  # the count of steps is a scalar
                raise KeyError(f"optimizer.{name}")
            state.setdefault(int(index), {})[key] = laid_out
        return state

    def export(self, directory: Path, keypoint_names: tuple[str, ...] | None = None) -> None:
        """Write a version to an empty directory, as :func:`model.version.tensor_files.write_version` does.

        ``keypoint_names`` are K names; unless given, those of the prior that training started from, or numbers.
        """
        names = keypoint_names or self.keypoint_names
        write_version(directory, self.model, self.batches.images, self.history, step=self.step, keypoint_names=names)


def _mode(config: PPLConfig, clips: NDArray[np.int64] | None) -> str:
    if config.mode == "clips" and clips is None:
        raise ValueError("mode is clips, but no clips are given; expected the number of each picture's clip")
    if config.mode == "stills" and clips is not None:
        raise ValueError("mode is stills, but clips are given; expected none, or the mode clips or auto")
    return "stills" if clips is None else "clips"


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameter_groups(model: PosePriorLearner, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters: matrices decay; biases, norms, link weights and tables do not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and name not in _TABLES].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _sync_batch_norms(model: PosePriorLearner, group: Group, device: torch.device) -> PosePriorLearner:
    """Make batch norms use the statistics of the group's whole batch; torch can do so on CUDA only."""
    if group.size == 1 or device.type != "cuda":
        return model
    converted: PosePriorLearner = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def _averaged_tensors(model: PosePriorLearner) -> Iterator[Tensor]:
    """Yield the tensors that a group averages at each step: gradients, and the running statistics of batch norms."""
    yield from (p.grad for p in model.parameters() if p.grad is not None)
    yield from (value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var")))

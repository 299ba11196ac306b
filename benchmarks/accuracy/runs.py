"""Train and measure a row; write its result as one JSON file.

A stopped run continues from its checkpoint; a finished one is not repeated.

In the results' folder, for a group of runs that differ by their seed alone:

- ``GROUP/plan.json``: how many steps every seed takes;
- ``GROUP/seed0/``: the checkpoint while it trains, then ``version/``, as a train job would publish it;
- ``GROUP.seed0.json``: the result, numbers only.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import Trainer
from model.predictor import Predictor
from model.training.trainer import CHECKPOINT_FILE
from model.version.prior import PosePrior

from .measures import mean_pose, measure
from .packs import Pack, read_pack
from .rows import MEAN_POSE, Plan, plan

CALIBRATION_STEPS = 30
_WARM_UP_STEPS = 5  # not counted: kernels are chosen and memory is taken in the first ones
_LOSSES_OVER = 100  # last steps
_LONGEST_OPTIONS = 80  # characters of a file's name


@dataclass(frozen=True)
class Request:
    """The runs that the command line asks for; all fields but the seed identify the group.

    Attributes:
        minutes: how long a run takes, with the measurement of its pace; None if steps are given.
        steps: None if minutes are given.
        options: settings that replace the row's.
        label: a few words that the tables show beside the row.
    """

    set_file: Path
    row: str
    preset: str = "compact"
    minutes: float | None = None
    steps: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    prior: Path | None = None
    device: str = "auto"
    perceptual_weights: Path | None = None

    @property
    def group(self) -> str:
        """The name of the runs' files without the seed."""
        parts = [self.set_file.stem, self.row.replace(":", "-")]
        if self.row == MEAN_POSE:
            return ".".join(parts)
        options = ",".join(f"{name}={value}" for name, value in sorted(self.options.items())).replace("/", "_")
        if len(options) > _LONGEST_OPTIONS:
            options = hashlib.sha256(options.encode()).hexdigest()[:12]
        budget = f"{self.minutes:g}min" if self.minutes is not None else f"{self.steps}steps"
        preset = self.preset if self.preset != "compact" else ""
        prior = self.prior.stem if self.prior else ""
        return ".".join(part for part in (*parts, preset, prior, options, budget) if part)


def run(request: Request, seeds: list[int], out: Path) -> Iterator[tuple[Path, bool]]:
    """Train and measure a row with each seed; yield each result's file, and whether it is new.

    Raises:
        SettingError, ValueError: a row, setting, prior or pack is not valid, or a result exists with other settings.
        CheckpointError: the checkpoint to continue from is damaged or from other settings.
        TrainingDivergedError: a loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    if request.row == MEAN_POSE:
        seeds = seeds[:1]  # nothing is drawn
    chosen = None if request.row == MEAN_POSE else plan(request.row, request.preset, request.options, request.prior)
    pack: Pack | None = None
    for seed in seeds:
        file = out / f"{request.group}.seed{seed}.json"
        if file.exists():
            _check_same(file, _describe_request(request, seed))
            yield file, False
            continue
        side = chosen.config.image_size if chosen else 64
        pack = pack or read_pack(request.set_file, side)
        facts = _mean_pose(pack) if chosen is None else _train(request, chosen, pack, seed, out)
        write_json(file, {**_describe_request(request, seed), **facts, **_machine(request.device)})
        yield file, True


def _mean_pose(pack: Pack) -> dict[str, Any]:
    return {"steps": 0, "seconds_trained": 0.0, **_counts(pack), **mean_pose(pack)}


def _train(request: Request, chosen: Plan, pack: Pack, seed: int, out: Path) -> dict[str, Any]:
    folder = out / request.group
    (folder / f"seed{seed}").mkdir(parents=True, exist_ok=True)
    timing = _steps(request, replace(chosen, config=replace(chosen.config, seed=seed)), pack, folder / "plan.json")
    config = replace(chosen.config, seed=seed, steps=timing["steps"])
    work = folder / f"seed{seed}"
    trainer = _trainer(request, Plan(config, chosen.prior), pack)
    trainer.load_checkpoint(work)
    clock = _Clock(work / "seconds.json", trainer.step)
    latest: list[dict[str, float]] = []
    for report in trainer.run():
        latest = [*latest[1 - _LOSSES_OVER :], report.losses]
        if report.step % config.checkpoint_every == 0 or report.step == config.steps:
            clock.note(report.step)
            trainer.save_checkpoint(work)
    version = _export(trainer, work)
    prior = PosePrior.from_json(json.loads((version / "prior.json").read_text()))
    started = time.perf_counter()
    measured = measure(Predictor.load(version, request.device), prior, pack)
    result = {
        "settings": config.to_dict(),
        **timing,
        "seconds_trained": round(clock.seconds, 1),
        "seconds_per_step": round(clock.seconds / config.steps, 5),
        "losses": {name: _mean_of(name, latest) for name in (latest[-1] if latest else ())},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        **_counts(pack),
        "seconds_measured": round(time.perf_counter() - started, 1),
        **measured,
    }
    (work / CHECKPOINT_FILE).unlink()
    return result


def _export(trainer: Trainer, work: Path) -> Path:
    """Write the version; its folder is there once it is whole, so that it can be drawn while it is measured."""
    version, partial = work / "version", work / "version.partial"
    for folder in (partial, version):
        if folder.exists():
            shutil.rmtree(folder)
    partial.mkdir()
    trainer.export(partial)
    return partial.rename(version)


def _steps(request: Request, chosen: Plan, pack: Pack, file: Path) -> dict[str, Any]:
    """Return the number of steps of each run: as given, or as many as fit in the time, measured once a group."""
    if request.steps is not None:
        return {"steps": request.steps}
    if file.exists():
        timing: dict[str, Any] = json.loads(file.read_text())
        return timing
    assert request.minutes is not None
    started = time.perf_counter()
    count = CALIBRATION_STEPS
    trainer = _trainer(request, replace(chosen, config=replace(chosen.config, steps=count)), pack)
    ticks = []
    for _ in trainer.run():  # each report reads the losses, so a step has ended when it comes
        ticks.append(time.perf_counter())
    pace = (ticks[-1] - ticks[_WARM_UP_STEPS - 1]) / (count - _WARM_UP_STEPS)
    left = request.minutes * 60 - (time.perf_counter() - started)
    timing = {"steps": max(1, int(left / pace)), "measured_pace": round(pace, 5), "threads": torch.get_num_threads()}
    write_json(file, timing)
    return timing


def _trainer(request: Request, chosen: Plan, pack: Pack) -> Trainer:
    weights = request.perceptual_weights
    return Trainer(pack.train.images, chosen.config, request.device, weights, prior=chosen.prior)


class _Clock:
    """A clock of the training that the checkpoint holds; steps lost by a stop do not count."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        self._at: dict[str, float] = json.loads(file.read_text()) if step and file.exists() else {}
        self._before = self._at.get(str(step), 0.0)
        self._started = time.perf_counter()
        self.seconds = self._before

    def note(self, step: int) -> None:
        """Record the time of a step, before its checkpoint is written."""
        self.seconds = self._before + time.perf_counter() - self._started
        self._at[str(step)] = self.seconds
        write_json(self._file, self._at)


def _describe_request(request: Request, seed: int) -> dict[str, Any]:
    asked = asdict(request)
    files = {name: path.name for name in ("prior", "perceptual_weights") if (path := asked[name])}
    return {
        "format": 1,
        "group": request.group,
        "set": request.set_file.stem,
        **{name: asked[name] for name in ("row", "label", "preset", "minutes")},
        "options": asked["options"],
        **files,
        "seed": seed,
    }


def _check_same(file: Path, asked: Mapping[str, Any]) -> None:
    """Raise ValueError if an existing result was made with other settings; its name may be the same."""
    made = json.loads(file.read_text())
    for name in ("row", "preset", "options", "prior", "perceptual_weights"):
        if made.get(name) != asked.get(name):
            raise ValueError(
                f"{file.name} exists, made with {name} {made.get(name)}; expected {asked.get(name)}; "
                "give another --out, or move that file away"
            )


def _machine(device: str) -> dict[str, Any]:
    cuda = device != "cpu" and torch.cuda.is_available()
    return {
        "machine": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _counts(pack: Pack) -> dict[str, int]:
    return {"train_images": len(pack.train.images), "heldout_images": len(pack.test.images)}


def write_json(file: Path, facts: Mapping[str, Any]) -> None:
    """Write a file atomically."""
    beside = file.with_name(f".{file.name}.part")
    beside.write_text(json.dumps(facts, indent=1) + "\n")
    beside.replace(file)


def _mean_of(name: str, reports: list[dict[str, float]]) -> float:
    """Return the mean of a loss over the steps that had it; the losses of hidden parts begin later."""
    return float(np.mean([losses[name] for losses in reports if name in losses]))

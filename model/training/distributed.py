"""Training by several processes, one a GPU, or several on a CPU.

``torchrun --nproc-per-node 2 -m model.training.distributed PICTURES VERSION`` trains on a folder of pictures and
writes a
version into a folder that is made for it. ``--clips`` takes each folder below it as a clip, ``--preset`` and
``--set name=value`` give the settings (``batch_size`` is that of all processes together), ``--prior FILE`` the prior
to start from, as the API exports it, where the settings want one; the number of keypoints is then the prior's.
``--checkpoint FOLDER`` goes on from a checkpoint there and writes one every ``checkpoint_every`` steps: the same
command goes on with a run that was stopped, and the number of processes may be another one then. ``--device`` is
auto, cpu or cuda. Rank 0 prints every step as a line of JSON.

The processes agree over NCCL on CUDA, each on the GPU of its local rank, and over Gloo elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from model.config import PPLConfig, resolve
from model.data import load_clips, load_folder
from model.network.device import pick_device
from model.network.perceptual import WeightsUnavailableError
from model.process_group import ALONE, Group
from model.version import tensor_files
from model.version.prior import PosePrior, check_given

from .trainer import Trainer

_SILENCE = timedelta(minutes=30)  # of another process, until it counts as gone: a checkpoint may be slow to write


def pick_rank_device(device: str, local_rank: int, processes: int) -> str:
    """The torch device of one of the processes on a machine.

    Args:
        device: "auto", "cpu" or "cuda"; a certain GPU only for one process.
        local_rank: of the process, from 0.
        processes: on this machine.

    Raises:
        ValueError: no such device, or fewer GPUs than processes.
    """
    found = pick_device(device)
    if found.type != "cuda" or processes == 1:
        return str(found)
    if found.index is not None:
        raise ValueError(f"device is '{device}', one GPU for {processes} processes; expected cuda, auto or cpu")
    if torch.cuda.device_count() < processes:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs for {processes} processes; expected one each, or device cpu"
        )
    return f"cuda:{local_rank}"


@contextmanager
def join_group(device: str, rank: int, processes: int, meeting: str = "env://") -> Iterator[Group]:
    """The group of this process and its peers, until the block ends.

    Args:
        device: of this process.
        rank: of this process in the whole group.
        processes: in the whole group.
        meeting: where they find each other, torch.distributed's ``init_method``.
    """
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=processes,
        timeout=_SILENCE,
        device_id=torch.device(device) if on_cuda else None,
    )
    yield Group(rank, processes)
    distributed.destroy_process_group()  # not after an error: it may wait for peers that are gone


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """What the command was given can't be trained on; the message is for whoever gave it."""


def main(arguments: list[str] | None = None) -> int:
    """One of the processes that torchrun starts; returns the exit code."""
    given = _parser().parse_args(arguments)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    here, local_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    try:
        with _refusing():
            prior = given.prior and PosePrior.from_json(tensor_files.load_json(given.prior))
            config = _config(given.preset, given.settings, prior)
            config.check_processes(processes)
            check_given(prior, config)
            device, side = pick_rank_device(given.device, local_rank, here), config.image_size
            images, clips = (
                load_clips(given.pictures, side) if given.clips else (load_folder(given.pictures, side), None)
            )
            if rank == 0:
                _check_free(given.version)
        with join_group(device, rank, processes) if processes > 1 else nullcontext(ALONE) as group:
            with _refusing():
                trainer = Trainer(
                    images, config, device, given.perceptual_weights, clips=clips, prior=prior, group=group
                )
                if given.checkpoint:
                    trainer.load_checkpoint(given.checkpoint)
                if rank == 0:  # only now: what is refused leaves no folder behind
                    given.version.mkdir(parents=True, exist_ok=True)
            _train(trainer, given.version, given.checkpoint)
    except _Refused as refused:
        print(f"can't train: {refused}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun -m model.training.distributed", description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("version", type=Path)
    parser.add_argument("--clips", action="store_true")
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--perceptual-weights", type=Path)
    return parser


def _config(preset: str, assignments: list[str], prior: PosePrior | None) -> PPLConfig:
    values = dict(assignment.partition("=")[::2] for assignment in assignments)
    if prior is not None:
        values.setdefault("num_keypoints", str(len(prior.keypoint_names)))
    return resolve(preset, values)


def _check_free(version: Path) -> None:
    """An empty folder will do: a run that was killed leaves one behind."""
    if version.exists() and (not version.is_dir() or any(version.iterdir())):
        raise ValueError(f"{version} is there already and not empty; expected a folder that is new or empty")


@contextmanager
def _refusing() -> Iterator[None]:
    """What is wrong with the given becomes :class:`_Refused`; an error of the training itself keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, WeightsUnavailableError) as error:
        raise _Refused(str(error)) from error


def _train(trainer: Trainer, version: Path, kept: Path | None) -> None:
    first = trainer.group.rank == 0
    trainer.group.wait()  # until all have read the checkpoint: rank 0 goes on to write the next
    for report in trainer.run():
        if first:
            print(json.dumps({"step": report.step, "losses": report.losses}), flush=True)
            if kept and report.step % trainer.config.checkpoint_every == 0:
                trainer.save_checkpoint(kept)
    if first:
        if kept:
            trainer.save_checkpoint(kept)
        trainer.export(version)
    trainer.group.wait()


if __name__ == "__main__":
    sys.exit(main())

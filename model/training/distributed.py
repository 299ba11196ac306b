"""Training by several processes, one a GPU or several on a CPU, without the service.

    torchrun --nproc-per-node 2 -m model.training.distributed PICTURES VERSION

The processes exchange data over NCCL on CUDA, each on the GPU of its local rank, and over Gloo elsewhere. Rank 0
prints every step as a line of JSON. With --checkpoint, the same command continues a run that was stopped, with any
number of processes.
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

from model.config import DEFAULT_PRESET, resolve
from model.data import load_clips, load_folder
from model.network.blocks import pick_device
from model.network.perceptual import WeightsUnavailableError
from model.process_group import ALONE, Group
from model.version import tensor_files
from model.version.prior import PosePrior
from model.version.prior_values import check_given

from .trainer import Trainer

_PEER_TIMEOUT = timedelta(minutes=30)  # long, as the others wait while rank 0 writes a checkpoint


def pick_rank_device(device: str, local_rank: int, processes: int) -> str:
    """Return the torch device of one of the processes on a machine, by its local rank, from 0.

    ``device`` is "auto", "cpu" or "cuda"; for a single process any torch device name. Raises ValueError if there is no
    such device, or there are fewer GPUs than processes.
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
    """Join the group of training processes until the block ends; ``meeting`` is torch.distributed's init_method."""
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=processes,
        timeout=_PEER_TIMEOUT,
        device_id=torch.device(device) if on_cuda else None,
    )
    yield Group(rank, processes)
    distributed.destroy_process_group()  # not after an error: it may wait for crashed peers


class _UnusableInput(Exception):  # noqa: N818 - only used in this module
    """Input of the command that can't be trained on."""


def main(arguments: list[str] | None = None) -> int:
    """Run one of the processes that torchrun starts; return its exit status: 0, or 2 for unusable input."""
    given = _parser().parse_args(arguments)
    version: Path = given.version
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_processes, local_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    try:
        with _convert_errors():
            prior = given.prior and PosePrior.from_json(tensor_files.load_json(given.prior))
            values = dict(assignment.partition("=")[::2] for assignment in given.settings)
            if prior is not None:
                values.setdefault("num_keypoints", str(len(prior.keypoint_names)))
            config = resolve(given.preset, values)
            config.check_processes(processes)
            check_given(prior, config)
            device, side = pick_rank_device(given.device, local_rank, local_processes), config.image_size
            images, clips = (
                load_clips(given.pictures, side) if given.clips else (load_folder(given.pictures, side), None)
            )
            # an empty folder will do: a run that was killed leaves one behind
            if rank == 0 and version.exists() and (not version.is_dir() or any(version.iterdir())):
                raise ValueError(f"{version} is there already and not empty; expected a folder that is new or empty")
        with join_group(device, rank, processes) if processes > 1 else nullcontext(ALONE) as group:
            with _convert_errors():
                trainer = Trainer(
                    images, config, device, given.perceptual_weights, clips=clips, prior=prior, group=group
                )
                if given.checkpoint:
                    trainer.load_checkpoint(given.checkpoint)
                if rank == 0:  # only now, so that unusable input leaves no folder behind
                    version.mkdir(parents=True, exist_ok=True)
            _train(trainer, version, given.checkpoint)
    except _UnusableInput as error:
        print(f"can't train: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    raw, name = argparse.RawDescriptionHelpFormatter, "torchrun -m model.training.distributed"
    parser = argparse.ArgumentParser(prog=name, description=__doc__, formatter_class=raw)
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("version", type=Path, help="folder to write the version to, new or empty")
    parser.add_argument("--clips", action="store_true", help="take each folder of pictures as a clip")
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    setting = "a setting; batch_size is that of all processes together"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help=setting)
    parser.add_argument("--prior", type=Path, help="prior to start from, as the API exports it; gives num_keypoints")
    parser.add_argument("--checkpoint", type=Path, help="folder to continue from, and to write checkpoints to")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--perceptual-weights", type=Path, help="file with the weights of the perceptual network")
    return parser


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Turn errors about the input into _UnusableInput; an error of the training itself keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, WeightsUnavailableError) as error:
        raise _UnusableInput(str(error)) from error


def _train(trainer: Trainer, version: Path, checkpoint: Path | None) -> None:
    reports = trainer.group.rank == 0
    trainer.group.wait()  # all must have read the checkpoint before rank 0 writes the next
    for report in trainer.run():
        if reports:
            print(json.dumps({"step": report.step, "losses": report.losses}), flush=True)
            if checkpoint and report.step % trainer.config.checkpoint_every == 0:
                trainer.save_checkpoint(checkpoint)
    if reports:
        if checkpoint:
            trainer.save_checkpoint(checkpoint)
        trainer.export(version)
    trainer.group.wait()


if __name__ == "__main__":
    sys.exit(main())

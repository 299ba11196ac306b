"""``python -m worker.training.rank``: one of several processes that train a job, started by
:mod:`worker.training.rank_processes`.

The first line of standard input holds the instructions, in JSON. Rank 0 then takes a step for each line "step" and
saves a checkpoint for each "save"; the other ranks follow through torch's collectives. Reports are lines of JSON:
{"step", "losses"}, {"saved"} or {"error", "kind", "errno"}. The process exits once standard input ends, because the
worker has crashed or stopped the run.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from service.contract.logs import configure_logging
from worker.settings import LOG_FORMAT, quick_imports, set_threads


def main() -> int:
    """Follow the instructions and return the exit code."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what libraries print out of the reports
    instructions: dict[str, Any] = json.loads(sys.stdin.readline() or "null") or {}
    if not instructions:
        return 2
    configure_logging(instructions["log_level"], instructions["log_format"], LOG_FORMAT)
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(commands,), name="commands", daemon=True).start()
    with quick_imports():
        set_threads(instructions["threads"])
    if sys.platform == "linux":  # all ranks run on this machine
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    try:
        _train(instructions, commands, reports)
    except Exception as error:  # the worker must see any failure
        logging.getLogger(__name__).exception("training process %d failed", instructions["rank"] + 1)
        kind = "OSError" if isinstance(error, OSError) else type(error).__name__
        _report(reports, {"error": str(error), "kind": kind, "errno": getattr(error, "errno", None)})
        sys.stderr.flush()
        os._exit(1)  # a normal exit would make torch wait for the other ranks
    return 0


def _train(instructions: dict[str, Any], commands: queue.SimpleQueue[str], reports: TextIO) -> None:
    from model.config import PPLConfig
    from model.training.distributed import join_group, pick_rank_device
    from model.training.trainer import Trainer
    from service.contract.jobs.files import JobFiles

    from .runner import load_training_input

    rank, processes, job_id = instructions["rank"], instructions["processes"], instructions["job_id"]
    files = JobFiles(Path(instructions["data_root"]))
    data = load_training_input(files, job_id)
    device = pick_rank_device(instructions["device"], rank, processes)
    weights = instructions["perceptual_weights"]
    with join_group(device, rank, processes, instructions["meeting"]) as group:
        config = PPLConfig.from_dict(instructions["config"])
        given = (data.images, config, device, weights and Path(weights))
        cropped = instructions["cropped"]
        trainer = Trainer(*given, clips=data.clips, prior=data.prior, cropped=cropped, group=group)
        if files.start(job_id).exists():
            trainer.load_weights(files.start(job_id))
        checkpoint = files.checkpoint(job_id)
        trainer.load_checkpoint(checkpoint)
        group.wait()  # all ranks must have read the checkpoint before rank 0 overwrites it
        steps = trainer.run()
        if rank:
            deque(steps, maxlen=0)  # take all steps
            threading.Event().wait()  # until the worker kills this process
        while True:
            if commands.get() == "save":
                trainer.save_checkpoint(checkpoint)
                _report(reports, {"saved": trainer.step})
            else:
                report = next(steps)
                _report(reports, {"step": report.step, "losses": report.losses})


def _read_commands(commands: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line.strip())
    os._exit(0)


def _report(reports: TextIO, message: dict[str, Any]) -> None:
    try:
        reports.write(json.dumps(message) + "\n")
        reports.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

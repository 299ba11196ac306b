"""``python -m worker.training.rank``: one of several processes that train a job;
:mod:`worker.training.rank_processes` starts it.

The first line of its standard input is its order, in JSON. Rank 0 then takes a step for each line "go" and saves for
each "save"; the others follow by waiting for it in torch. Reports are lines of JSON: {"step", "losses"}, {"saved"},
or {"error", "kind", "errno"}. When standard input ends, the worker is gone or wants no more: the process ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO


def main() -> int:
    """Returns the exit code."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no report
    order: dict[str, Any] = json.loads(sys.stdin.readline() or "null") or {}
    if not order:
        return 2
    logging.basicConfig(
        level=order["log_level"], format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    words: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(words,), name="orders", daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(order["threads"])
    if sys.platform == "linux":  # all ranks are on this machine
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    try:
        _work(order, words, reports)
    except Exception as error:  # whatever it is, the worker is told
        logging.getLogger(__name__).exception("training process %d failed", order["rank"] + 1)
        kind = "OSError" if isinstance(error, OSError) else type(error).__name__
        _say(reports, {"error": str(error), "kind": kind, "errno": getattr(error, "errno", None)})
        sys.stderr.flush()
        os._exit(1)  # torch would wait for the others
    return 0


def _work(order: dict[str, Any], words: queue.SimpleQueue[str], reports: TextIO) -> None:
    import torch

    from model.config import PPLConfig
    from model.training.distributed import join_group, pick_rank_device
    from model.training.trainer import Trainer
    from service.contract.jobs.files import JobFiles

    from .training_input import training_input

    torch.set_num_threads(order["threads"])
    rank, processes = order["rank"], order["processes"]
    files = JobFiles(Path(order["data_root"]))
    given = training_input(files, order["job_id"])
    device = pick_rank_device(order["device"], rank, processes)
    weights = order["perceptual_weights"]
    with join_group(device, rank, processes, order["meeting"]) as group:
        trainer = Trainer(
            given.images,
            PPLConfig.from_dict(order["config"]),
            device,
            weights and Path(weights),
            clips=given.clips,
            prior=given.prior,
            group=group,
        )
        start = files.start(order["job_id"])
        if start.exists():
            trainer.load_weights(start)
        checkpoint = files.checkpoint(order["job_id"])
        trainer.load_checkpoint(checkpoint)
        group.wait()  # until all have read it: rank 0 goes on to write the next
        steps = trainer.run()
        while rank:
            if next(steps, None) is None:
                threading.Event().wait()  # until the worker wants no more
        while True:
            if words.get() == "save":
                trainer.save_checkpoint(checkpoint)
                _say(reports, {"saved": trainer.step})
            else:
                report = next(steps)
                _say(reports, {"step": report.step, "losses": report.losses})


def _listen(words: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        words.put(line.strip())
    os._exit(0)


def _say(reports: TextIO, message: dict[str, Any]) -> None:
    try:
        reports.write(json.dumps(message) + "\n")
        reports.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

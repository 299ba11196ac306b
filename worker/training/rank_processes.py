"""Training by several processes: started here, led step by step over pipes, and never left behind.

The worker's own process trains nothing then. It starts one :mod:`worker.training.rank` a rank, tells rank 0 to go on,
or to
save, after every step, and takes the state over from the last checkpoint once all steps are done. Each of them ends
by itself when its standard input does, so that a worker that is killed takes them along.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.config import PPLConfig
from model.training.distributed import pick_rank_device
from model.training.trainer import StepReport, Trainer, TrainingDivergedError
from worker.jobs.held_job import Stopping
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5  # whether the job is still wanted, while a step is under way
_OTHERS_MAY_TAKE_S = 3.0  # to tell why they ended, once one has


class RankDied(Exception):  # noqa: N818 - what happened, as LeaseLost
    """A training process ended without a word, as one does that is killed; the job goes on from its checkpoint."""


class RankError(RuntimeError):
    """A training process met an error, which the message has."""


def check_devices(device: str, processes: int) -> None:
    """Raises ValueError where there are not so many devices for a process each."""
    pick_rank_device(device, processes - 1, processes)


def rank_order(job_id: str, config: PPLConfig, settings: WorkerSettings) -> dict[str, Any]:
    """What the processes of a job are told, each having its part of the worker's threads."""
    return {
        "job_id": job_id,
        "config": config.to_dict(),
        "data_root": str(settings.data_root),
        "device": settings.device,
        "perceptual_weights": settings.perceptual_weights and str(settings.perceptual_weights.absolute()),
        "threads": max(1, settings.training_threads // settings.training_processes),
        "log_level": settings.log_level,
    }


class SharedTrainer(Trainer):
    """A trainer whose steps are taken by several processes.

    Args:
        processes: how many, more than one.
        order: what :mod:`worker.training.rank` reads, but for rank, number of processes and meeting point.
        checkpoint: folder of the job's checkpoint, which the processes start from, if there is one.
        check: raises where the job is no longer wanted here, as ``custody.check``.
    """

    def __init__(
        self,
        *given: Any,
        processes: int,
        order: dict[str, Any],
        checkpoint: Path,
        check: Callable[[], None],
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self.config.check_processes(processes)
        self._processes = processes
        self._order = order
        self._folder = checkpoint
        self._check = check
        self._ranks: Ranks | None = None

    def run(self) -> Generator[StepReport]:
        """Train to the configured number of steps, reporting each; closing it ends the processes.

        Raises:
            RankDied, RankError, or what failed as it would with one process.
        """
        if self.step >= self.config.steps:
            return
        with tempfile.TemporaryDirectory(prefix="ppl-ranks-") as meeting:
            order = {**self._order, "meeting": f"file://{meeting}/meeting"}
            with Ranks(order, self._processes, self._check) as self._ranks:
                try:
                    while self.step < self.config.steps:
                        self._ranks.tell("go")
                        told = self._ranks.hear("step")
                        self.step = int(told["step"])
                        yield StepReport(self.step, told["losses"])
                    self.save_checkpoint(self._folder)
                finally:
                    self._ranks = None
        self.load_checkpoint(self._folder)

    def save_checkpoint(self, directory: Path) -> None:
        """As of a trainer; while steps are taken, rank 0 writes into the job's folder."""
        if self._ranks is None:
            super().save_checkpoint(directory)
            return
        assert directory == self._folder
        self._ranks.tell("save")
        self._ranks.hear("saved")


class Ranks:
    """The processes of one run, from the start of the block to its end; at the end they are killed.

    Args:
        order: what each is to do.
        processes: how many.
        check: called twice a second while waiting; what it raises, but for Stopping, ends the wait. A step under way
            is finished first where this process shall end, so that it can be saved.
    """

    def __init__(self, order: dict[str, Any], processes: int, check: Callable[[], None]) -> None:
        self._order = order
        self._check = check
        self._count = processes
        self._started: list[subprocess.Popen[str]] = []
        self._heard: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()

    def __enter__(self) -> Ranks:
        try:
            for rank in range(self._count):
                self._start(rank)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def tell(self, word: str) -> None:
        """Tell rank 0 what comes next; that it is gone shows when it is heard."""
        self._write(0, word)

    def hear(self, what: str) -> dict[str, Any]:
        """The next report of rank 0, which has a member of that name.

        Raises:
            RankDied, RankError, TrainingDivergedError, MemoryError, OSError; what ``check`` raises.
        """
        while True:
            try:
                rank, message = self._heard.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                with suppress(Stopping):
                    self._check()
                continue
            if message is None or "error" in message:
                raise self._cause({rank: message})
            assert what in message, message
            return message

    def _start(self, rank: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.training.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the worker
        )
        self._started.append(process)
        threading.Thread(target=self._listen, args=(rank, process), name=f"rank-{rank}", daemon=True).start()
        self._write(rank, json.dumps({**self._order, "rank": rank, "processes": self._count}))
        logger.info("training process %d of %d is pid %d", rank + 1, self._count, process.pid)

    def _write(self, rank: int, line: str) -> None:
        pipe = self._started[rank].stdin
        assert pipe is not None
        try:
            pipe.write(line + "\n")
            pipe.flush()
        except BrokenPipeError:
            logger.debug("training process %d is gone", rank + 1)

    def _listen(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self._heard.put((rank, json.loads(line)))
        except ValueError:  # half a line of one that was killed, or the pipe closed at the end
            logger.debug("training process %d was cut off", rank + 1)
        self._heard.put((rank, None))

    def _cause(self, ended: dict[int, dict[str, Any] | None]) -> Exception:
        """Why the run ended: one lost process lets others fail, which then say that a peer is gone."""
        until = time.monotonic() + _OTHERS_MAY_TAKE_S
        while len(ended) < self._count and (left := until - time.monotonic()) > 0:
            try:
                rank, message = self._heard.get(timeout=left)
            except queue.Empty:
                break
            if message is None or "error" in message:
                ended.setdefault(rank, message)
        told = {rank: message for rank, message in ended.items() if message is not None}
        reasons = {rank: message for rank, message in told.items() if message["kind"] != "PeerLostError"}
        for rank, message in sorted(reasons.items()):
            return as_raised(message, f"training process {rank + 1} of {self._count}")
        silent = sorted(rank for rank in ended if rank not in told)
        if not silent:
            return RankDied(
                f"the {self._count} training processes lost each other: {next(iter(told.values()))['error']}"
            )
        codes = [f"process {rank + 1} of {self._count} ({_ending(self._started[rank])})" for rank in silent]
        return RankDied(f"training {', '.join(codes)} ended without a word; lack of memory is the usual reason")


def _ending(process: subprocess.Popen[str]) -> str:
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def as_raised(message: dict[str, Any], who: str) -> Exception:
    """The error that a process told of, of a type that says the same to the job's owner."""
    kind, text = message["kind"], str(message["error"])
    logger.error("%s failed: %s: %s", who, kind, text)
    if kind == TrainingDivergedError.__name__:
        return TrainingDivergedError(text)
    if kind == "OSError" and message.get("errno"):
        return OSError(message["errno"], text)
    if kind in ("MemoryError", "OutOfMemoryError"):
        return MemoryError(text)
    return RankError(f"{who}: {kind}: {text}")

"""Train with several processes, driven over pipes and killed with the worker.

The worker's own process does not train then. It starts one :mod:`worker.training.rank` per rank, sends rank 0 a
command for each step and each checkpoint, and loads the last checkpoint once all steps are done. A rank exits when its
standard input ends, so no rank outlives a killed worker.
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
from model.training.trainer import StepReport, Trainer, TrainingDivergedError
from worker.jobs import RankCrashed, Stopping
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_CHECK_EVERY_S = 0.5  # whether the job was cancelled or paused, while a step is running
_MAX_WAIT_FOR_OTHERS_S = 3.0  # once one rank has ended, for the others to report why


class RankError(RuntimeError):
    """A training process reported the error in the message."""


def rank_instructions(job_id: str, config: PPLConfig, settings: WorkerSettings, *, cropped: bool) -> dict[str, Any]:
    """Return the instructions that all ranks of a job share; each gets its part of the worker's threads."""
    return {
        "processes": settings.training_processes,
        "job_id": job_id,
        "config": config.to_dict(),
        "cropped": cropped,
        "data_root": str(settings.data_root),
        "device": settings.device,
        "perceptual_weights": settings.perceptual_weights and str(settings.perceptual_weights.absolute()),
        "threads": max(1, settings.training_threads // settings.training_processes),
        "log_level": settings.log_level,
        "log_format": settings.log_format,
    }


class MultiprocessTrainer(Trainer):
    """A trainer whose steps are taken by several processes, which start from the job's checkpoint if it exists.

    ``instructions`` come from `rank_instructions`; ``check`` raises if the work must end, like `HeldJob.check`.
    """

    holds_weights = False

    def __init__(
        self, instructions: dict[str, Any], checkpoint: Path, check: Callable[[], None], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.config.check_processes(instructions["processes"])
        self._instructions, self._folder, self._check = instructions, checkpoint, check
        self._ranks: RankProcesses | None = None

    def run(self) -> Generator[StepReport]:
        """Train to the configured number of steps and yield each report; closing the generator kills the ranks.

        Raises RankCrashed, RankError, or the error that training in one process would raise.
        """
        if self.step >= self.config.steps:
            return
        with tempfile.TemporaryDirectory(prefix="ppl-ranks-") as meeting:
            instructions = {**self._instructions, "meeting": f"file://{meeting}/meeting"}
            with RankProcesses(instructions, self._check) as self._ranks:
                try:
                    while self.step < self.config.steps:
                        self._ranks.send("step")
                        report = self._ranks.receive("step")
                        self.step = int(report["step"])
                        yield StepReport(self.step, report["losses"])
                    self.save_checkpoint(self._folder)
                finally:
                    self._ranks = None
        self.load_checkpoint(self._folder)

    def save_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint; while the ranks run, rank 0 writes it into the job's folder."""
        if self._ranks is None:
            super().save_checkpoint(directory)
            return
        assert directory == self._folder
        self._ranks.send("save")
        self._ranks.receive("saved")
        self.show_checkpoint(directory)


class RankProcesses:
    """The processes of one run: started when the block begins, killed when it ends.

    Args:
        instructions: from `rank_instructions`, with "meeting", torch.distributed's init_method.
        check: called twice a second while waiting. Its exceptions end the wait, except Stopping: the current step is
            finished first, so that it can be saved.
    """

    def __init__(self, instructions: dict[str, Any], check: Callable[[], None]) -> None:
        self._instructions, self._check = instructions, check
        self._count: int = instructions["processes"]
        self._processes: list[subprocess.Popen[str]] = []
        # rank and message; None when the rank's output ends
        self._reports: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()

    def __enter__(self) -> RankProcesses:
        try:
            for rank in range(self._count):
                self._start(rank)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            with suppress(BrokenPipeError), process:  # closes its pipes
                pass

    def send(self, line: str, rank: int = 0) -> None:
        """Send a command to a rank; `receive` raises if it has ended."""
        pipe = self._processes[rank].stdin
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.write(line + "\n")
            pipe.flush()

    def receive(self, member: str) -> dict[str, Any]:
        """Return the next report of rank 0, which must contain `member`. Raises the errors of `MultiprocessTrainer`."""
        while True:
            try:
                rank, message = self._reports.get(timeout=_CHECK_EVERY_S)
            except queue.Empty:
                with suppress(Stopping):
                    self._check()
                continue
            if message is None or "error" in message:
                raise self._find_cause({rank: message})
            assert member in message, message
            return message

    def _start(self, rank: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.training.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C must reach the worker only
        )
        self._processes.append(process)
        threading.Thread(target=self._read_reports, args=(rank, process), name=f"rank-{rank}", daemon=True).start()
        self.send(json.dumps({**self._instructions, "rank": rank}), rank)
        logger.info("training process %d of %d started: pid=%d", rank + 1, self._count, process.pid)

    def _read_reports(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # half a line from a killed process, or the pipe was closed
            for line in process.stdout:
                self._reports.put((rank, json.loads(line)))
        self._reports.put((rank, None))

    def _find_cause(self, ended: dict[int, dict[str, Any] | None]) -> Exception:
        """Return why the run ended. When one rank is lost the others fail too, with PeerLostError."""
        until = time.monotonic() + _MAX_WAIT_FOR_OTHERS_S
        while len(ended) < self._count and (left := until - time.monotonic()) > 0:
            try:
                rank, message = self._reports.get(timeout=left)
            except queue.Empty:
                break
            if message is None or "error" in message:
                ended.setdefault(rank, message)
        errors = {rank: message for rank, message in sorted(ended.items()) if message is not None}
        for rank, message in errors.items():
            if message["kind"] != "PeerLostError":
                return rebuild_error(message, f"training process {rank + 1} of {self._count}")
        silent = sorted(ended.keys() - errors.keys())
        if not silent:
            reason = next(iter(errors.values()))["error"]
            return RankCrashed(f"the {self._count} training processes lost their connection: {reason}")
        codes = [f"process {rank + 1} of {self._count} ({_exit_reason(self._processes[rank])})" for rank in silent]
        return RankCrashed(f"training {', '.join(codes)} ended without a report; often the cause is too little memory")


def rebuild_error(message: dict[str, Any], process: str) -> Exception:
    """Return the error that a rank reported, of a type that gives the job the same error code."""
    kind, text = message["kind"], str(message["error"])
    logger.error("%s failed: %s: %s", process, kind, text)
    if kind == TrainingDivergedError.__name__:
        return TrainingDivergedError(text)
    if kind == "OSError" and message.get("errno"):
        return OSError(message["errno"], text)
    if kind in ("MemoryError", "OutOfMemoryError"):
        return MemoryError(text)
    return RankError(f"{process}: {kind}: {text}")


def _exit_reason(process: subprocess.Popen[str]) -> str:
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"

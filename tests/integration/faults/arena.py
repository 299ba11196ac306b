"""A running platform under load, with jobs and background estimates that must end once and right."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from service.client import APIError, Client, Job, JobStatus
from service.client.errors import Unreachable
from service.client.types import BackgroundEstimate
from tests.support.stack_process import TINY, StackProcess, archive, within

from .load import REFUSED, Load, ask_first

CHECKPOINT_EVERY = 20
_STEPS = 300
_PATIENCE_S = 90.0
Accepted = TypeVar("Accepted", Job, BackgroundEstimate)
_RESUMED = re.compile(r"^(\S+ \S+) .*job=(\w+): training from step (\d+) to")


class Arena:
    """``ppl up`` under load, and what must hold of it.

    Attributes:
        faults: what is wrong: a job or background estimate that failed, versions that were visible half-written, …
    """

    def __init__(
        self, root: Path, *options: str, plain: int = 3, clients: int = 2, works: bool = True, **settings: str
    ) -> None:
        self.data_root = root / "data"
        self.stack = StackProcess(self.data_root, *options, PPL_SAMPLE_CATEGORIES="true", **settings)
        self.faults: list[str] = []
        self.trained: list[str] = []  # ids of accepted jobs
        self.estimated: list[str] = []  # ids of accepted background estimates
        self.progress: list[tuple[float, str, int]] = []  # unix time, job, step
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        try:
            with Client(self.stack.url) as client:
                self.known = ask_first(client)
            self.load = Load(self.stack.url, self.known, 30.0, plain, clients)
            parts = [self._watch_versions, *([self._train, self._estimate] if works else [])]
            self._threads = [threading.Thread(target=self._guard, args=(part, root), daemon=True) for part in parts]
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.stack.end()
            raise

    def close(self) -> None:
        """Stop the load, wait for what was accepted, check it, and end the platform."""
        try:
            self._stop.set()
            for thread in self._threads:
                thread.join(_PATIENCE_S * 3)
                if thread.is_alive():
                    self.faults.append(f"{thread.name} does not end")
            self.load.stop()
            self._check_once()
            self._check_resumed()
        finally:
            self.stack.end()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = _PATIENCE_S) -> None:
        """Wait for something; note it as a fault if it does not come."""
        if not within(timeout_s, lambda: bool(condition()), every_s=0.02):
            self.faults.append(f"not within {timeout_s:g} s: {what}")

    def recovery_s(self, since: float) -> float:
        """Wait until a request sent after a moment is answered right, and return the seconds that it took."""
        self.until(lambda: self.load.recovered(since), "a right answer")
        found = self.load.recovered(since)
        return float("inf") if found is None else found

    def training_recovery_s(self, since: float) -> float:
        """Wait until a job is trained after a moment of monotonic time, and return the seconds that it took."""
        moment = time.time() - time.monotonic() + since
        self.until(lambda: self._next_start(moment), "a training")
        return (self._next_start(moment) or float("inf")) - moment

    def _next_start(self, moment: float) -> float | None:
        return next((at for at, _, _ in self.resumed() if at > moment), None)

    def _guard(self, part: Callable[[Path], None], root: Path) -> None:
        try:
            part(root)
        except Exception as error:
            self.faults.append(f"{part.__name__} ended: {error!r}")
            raise

    def _train(self, root: Path) -> None:
        pictures = archive(root / "crosses.zip")
        settings = {**TINY, "steps": _STEPS, "checkpoint_every": CHECKPOINT_EVERY}
        with Client(self.stack.url) as client:
            while not self._stop.is_set():
                key = f"job-{time.monotonic_ns()}"
                job = self._insist(
                    lambda key=key: client.train(
                        "cross", pictures, "compact", settings, activate="always", idempotency_key=key
                    )
                )
                if job is None:
                    return
                self.trained.append(job.id)
                job = client.wait(job.id, self._note, poll_s=0.2, timeout_s=_PATIENCE_S * 2)
                if job.status is not JobStatus.SUCCEEDED:
                    self.faults.append(f"job {job.id} {job.status}: {job.error}")

    def _note(self, job: Job) -> None:
        self.progress.append((time.time(), job.id, job.progress.step))

    def _estimate(self, root: Path) -> None:
        pictures = [known.picture for known in self.known]
        with Client(self.stack.url) as client:
            while not self._stop.wait(0.5):
                key = f"estimate-{time.monotonic_ns()}"
                begun = self._insist(lambda key=key: client.estimate_async("dog", pictures, idempotency_key=key))
                if begun is None:
                    return
                self.estimated.append(begun.id)
                found = client.wait_estimate(begun.id, poll_s=0.2, timeout_s=_PATIENCE_S * 2)
                poses = found.result.images if found.result else []
                if found.status != "succeeded" or not all(
                    known.is_right(np.array([(point.x, point.y) for point in pose.keypoints]))
                    for known, pose in zip(self.known, poses, strict=True)
                ):
                    self.faults.append(f"background estimate {found.id} {found.status}: {found.error}")

    def _insist(self, submit: Callable[[], Accepted]) -> Accepted | None:
        """Submit with the same key until it is accepted; None once it is stopped."""
        while not self._stop.is_set():
            try:
                return submit()
            except Unreachable:
                pass
            except APIError as error:
                if error.status not in REFUSED:
                    raise
            self._stop.wait(0.5)
        return None

    def _watch_versions(self, root: Path) -> None:
        """Check every version in the moment in which it becomes visible."""
        seen: set[Path] = set()
        while not self._stop.wait(0.005):
            for folder in self.data_root.glob("categories/*/versions/[!.]*"):
                if folder not in seen:
                    seen.add(folder)
                    self.faults += [f"{folder.name}: {fault}" for fault in _faults_of(folder)]

    def _check_once(self) -> None:
        with Client(self.stack.url) as client:
            jobs = {job.id: job for job in client.jobs()}
            versions = [entry.version for entry in client.versions.list("cross")] if self.trained else []
            estimates = [entry.id for entry in client.estimates()]
        for what, accepted, found in (
            ("jobs", self.trained, list(jobs)),
            ("versions of jobs", [str(jobs[name].version) for name in self.trained if name in jobs], versions),
            ("background estimates", self.estimated, estimates),
        ):
            if sorted(accepted) != sorted(found):
                self.faults.append(f"{what} accepted and found differ: {sorted(accepted)} {sorted(found)}")

    def resumed(self) -> Iterator[tuple[float, str, int]]:
        """Yield the unix time, the job and the step of each start of a training."""
        for line in (self.data_root / "logs" / "worker-training.log").read_text().splitlines():
            if match := _RESUMED.match(line):
                yield datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp(), match[2], int(match[3])

    def _check_resumed(self) -> None:
        for at, job, step in self.resumed():
            seen = max((done for when, name, done in self.progress if name == job and when < at), default=0)
            if seen - step > CHECKPOINT_EVERY:
                self.faults.append(f"job {job} had done {seen} steps and resumed from {step}")


def _faults_of(folder: Path) -> list[str]:
    faults = []
    try:
        files = json.loads((folder / "version.json").read_bytes())["files"]
        for name, digest in files.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                faults.append(f"{name} is not as version.json says")
    except (OSError, ValueError, KeyError) as error:
        faults.append(repr(error))
    return faults

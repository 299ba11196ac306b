"""A platform under a mixed load, sampled: what it is, what it did, and what became of its resources."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.integration.faults.load import Answer, Load, count
from tests.support.stack_process import StackProcess

from . import estimating, training
from .sampler import Sample, Sampler
from .trend import Trend, Verdict, fit_trend
from .world import Action, Players, Role, World

# so short that an hour has many times each
RETENTION = {
    "PPL_BACKGROUND_KEPT_S": "60",
    "PPL_STALE_UPLOAD_S": "60",
    "PPL_IDEMPOTENCY_TTL_S": "60",
    "PPL_ENDED_JOBS_KEPT": "10",
}
ROLES = (
    Role(
        (
            estimating.estimate_with_everything,
            estimating.estimate_lines,
            estimating.estimate_as_coco,
            estimating.estimate_in_background,
            estimating.send_what_is_refused,
            estimating.abandon_upload,
        ),
        rest_s=1.0,
    ),
    Role(
        (
            estimating.stream_video,
            estimating.leave_stream,
            estimating.draw_video,
            estimating.locate_in_video,
            estimating.cancel_in_background,
        ),
        rest_s=2.0,
    ),
    Role((training.train, training.move_versions, training.train_on_dataset, training.interrupt_training), rest_s=2.0),
    Role((training.fit_landmarks, training.look_around, training.keep_video), rest_s=3.0),
)
ACTIONS: tuple[Action, ...] = tuple(action for role in ROLES for action in role.actions)
_LOAD_PAUSE_S = 0.25
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Row:
    """A line of the report: a resource, when at rest before and after the load, and its trend under it."""

    name: str
    unit: str
    before: float
    after: float
    trend: Trend
    bound: float

    @property
    def verdict(self) -> Verdict:
        return self.trend.judge(self.bound)


class Endurance:
    """A platform with short retention, its load and its samples.

    Args:
        folder: for all files, those of the platform and others.
        every_s: seconds between samples.
    """

    def __init__(self, folder: Path, every_s: float = 5.0, log: Path | None = None, **settings: str) -> None:
        temporary = folder / "temporary"
        temporary.mkdir(parents=True)
        with patch.dict(os.environ, TMPDIR=str(temporary)):
            self.stack = StackProcess(
                folder / "data", PPL_SAMPLE_CATEGORIES="true", PPL_WEBHOOK_PRIVATE="true", **RETENTION | settings
            )
        try:
            self.world = World(self.stack, folder / "files")
            self.sampler = Sampler(self.stack, temporary, every_s, log)
        except BaseException:
            self.stack.end()
            raise
        self.answers: list[Answer] = []

    def do(self, actions: Sequence[Action] = ACTIONS) -> None:
        """Do actions one after the other."""
        with self.stack.client() as client:
            for action in actions:
                self.world.act(action, client)

    def run(self, seconds: float, roles: Sequence[Role] = ROLES, until: Callable[[], bool] = lambda: False) -> None:
        """Play all roles beside a steady load of estimates for some time, while samples are taken."""
        load = Load(self.stack.url, self.world.known, _DEADLINE_S, plain=1, clients=1, pause_s=_LOAD_PAUSE_S)
        players = Players(self.world, roles)
        self.sampler.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            time.sleep(0.5)
        self.sampler.stop()
        players.stop()
        load.stop()
        self.answers += load.answers()
        for answer in self.answers:
            if answer.outcome != "right":
                self.world.faults.append(f"estimate {answer.outcome}: {answer.detail[:300]}")

    def rest(self, seconds: float) -> Sample:
        """Wait and return a sample of the platform at rest."""
        time.sleep(seconds)
        return self.sampler.take()

    def close(self) -> list[str]:
        """End the platform, and return all faults."""
        self.sampler.close()
        self.world.close()
        code = self.stack.end()
        logs = "".join(path.read_text(errors="replace") for path in (self.stack.data_root / "logs").glob("*.log"))
        faults = [*self.world.faults, *self.sampler.faults]
        if code:
            faults.append(f"ppl up ended with {code}")
        if found := logs.count("Traceback"):
            at = logs.index("Traceback")
            faults.append(f"{found} tracebacks in the logs, the first: {logs[max(0, at - 300) : at + 1500]}")
        return faults

    def sent(self) -> tuple[int, int]:
        """Return the number of estimates of the steady load, and how many of them were right."""
        return len(self.answers), count(self.answers)["right"]


def describe(samples: Sequence[Sample], before: Sample, after: Sample) -> list[Row]:
    """Return the rows of the report: trends of the samples, and what was there at rest."""
    rows = []
    times = [sample.at for sample in samples]

    def add(name: str, unit: str, bound: float, read: Callable[[Sample], float]) -> None:
        values = [read(sample) for sample in samples]
        rows.append(Row(name, unit, read(before), read(after), fit_trend(times, values), bound))

    for part in before.processes:
        add(f"{part}: memory", "MB", 5.0, lambda s, part=part: s.processes[part].memory_kb / 1024)
        add(f"{part}: its own memory", "MB", 5.0, lambda s, part=part: s.processes[part].own_kb / 1024)
        add(f"{part}: descriptors", "", 2.0, lambda s, part=part: s.processes[part].descriptors)
        add(f"{part}: threads", "", 2.0, lambda s, part=part: s.processes[part].threads)
    add("short-lived processes", "", 1.0, lambda s: sum(s.children.values()))
    add("temporary files", "", 2.0, lambda s: len(s.temporary))
    add("Redis keys", "", 5.0, lambda s: sum(s.keys.values()))
    add("Redis memory", "MB", 2.0, lambda s: s.redis_bytes / 2**20)
    for folder in ("categories", "datasets", "estimates", "jobs"):
        add(f"{folder}/: files", "", 10.0, lambda s, folder=folder: s.disk.get(folder, (0, 0))[0])
        add(f"{folder}/: size", "MB", 5.0, lambda s, folder=folder: s.disk.get(folder, (0, 0))[1] / 2**20)
    for folder in ("valkey", "logs"):
        add(f"{folder}/: size", "MB", 20.0, lambda s, folder=folder: s.disk.get(folder, (0, 0))[1] / 2**20)
    return rows

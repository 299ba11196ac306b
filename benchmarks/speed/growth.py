"""Measure growth: by batch, K and S for the model; by resident categories, stored jobs and versions for the platform.

python -m benchmarks.speed.growth [--json] [--jobs 10000] [--versions 1000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import redis
import torch

from model.config import PPLConfig, resolve
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor
from service.contract.jobs.store import JobStatus, JobStore, NewJob
from service.contract.versions.store import VersionStore

from .machine import resident_bytes
from .report import Check, Report, Row, run
from .stack import Stack
from .timing import add_torch_arguments, device_of, time_in_turns

LISTING_MS = 50.0
_LISTED = 15  # times


def measure(options: argparse.Namespace) -> Report:
    """Measure all tables; the bar is that listing stays quick with many stored jobs and versions."""
    device = device_of(options)
    rows = resident_rows(device)  # first: later the process has memory to spare
    rows += model_rows(options, device)
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), workers=0) as stack:
        listed = [*job_rows(options, stack), *version_rows(options, stack)]
    return Report(
        "growth",
        f"what grows with what, preset compact, on {device}",
        [*rows, *listed],
        checks=[
            Check(f"{row['what']} of {row['of']}, ms", row["ms"], LISTING_MS, at_least=False)
            for row in listed
            if "ms" in row
        ],
        notes=["listing: the median of a page of 50 over HTTP from the gateway; the last page where `last`"],
    )


def model_rows(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return the milliseconds a picture by batch, number of keypoints and side; the preset has the other settings."""
    works: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    rng = np.random.default_rng(0)

    def add(what: str, of: int, batch: int, **changes: int) -> None:
        config = resolve("compact", changes)
        predictor = Predictor(_frozen(config), str(device))
        pictures = rng.integers(0, 256, (batch, config.image_size, config.image_size, 3), dtype=np.uint8)
        works[f"{what}:{of}"] = lambda: predictor.predict(pictures)
        counts[f"{what}:{of}"] = batch

    for batch in (1, 8, 32, 128):
        add("batch", batch, batch)
    for keypoints in (4, 8, 16, 32):
        add("K", keypoints, 16, num_keypoints=keypoints)
    for side in (32, 64, 128):
        add("S", side, 16, image_size=side)
    seconds = time_in_turns(works, options.repeats, device)
    return [
        {"what": name.partition(":")[0], "of": int(name.partition(":")[2]), "ms_an_image": 1e3 * taken / counts[name]}
        for name, taken in seconds.items()
    ]


def resident_rows(device: torch.device) -> list[Row]:
    """Return this process's memory for each further resident version."""
    config = resolve("compact")
    held, rows, before = [], [], resident_bytes()
    for count in range(1, 9):
        held.append(Predictor(_frozen(config), str(device)))
        if count in (1, 2, 4, 8):
            rows.append({"what": "categories resident", "of": count, "mb": (resident_bytes() - before) / 1e6})
    return rows


def _frozen(config: PPLConfig) -> PosePriorLearner:
    """Return a model in eval mode, as read from a version."""
    model = PosePriorLearner(config)
    model.freeze()
    return model


def job_rows(options: argparse.Namespace, stack: Stack) -> list[Row]:
    """Measure listing the first page of jobs and a late one, and the jobs' memory in Redis."""
    with redis.Redis.from_url(stack.redis_url) as client:
        store, before = JobStore(client), client.info("memory")["used_memory"]
        settings = {"preset": "compact", **resolve("compact").to_dict()}
        for _ in range(options.jobs):
            job = store.create(NewJob("dog", settings, 1200))
            store.update(job.id, lambda record: record.move(JobStatus.CANCELLED))
        used = client.info("memory")["used_memory"] - before
        cursor = min(name.decode() for name in client.zrange("ppl:jobs", 60, 60))
    url = stack.urls[0]
    return [
        {"what": "jobs", "of": options.jobs, "mb": used / 1e6},
        {"what": "listing jobs", "of": options.jobs, "ms": _listing(f"{url}/train-jobs")},
        {"what": "listing jobs, last", "of": options.jobs, "ms": _listing(f"{url}/train-jobs?cursor={cursor}")},
        {
            "what": "listing jobs, one status",
            "of": options.jobs,
            "ms": _listing(f"{url}/train-jobs?status=cancelled"),
        },
    ]


def version_rows(options: argparse.Namespace, stack: Stack) -> list[Row]:
    """Measure listing a category's versions, and the categories. Versions share their files on disk (hard links)."""
    store = VersionStore(stack.data_root)
    sample = store.path("dog", store.resolve("dog"))
    for number in range(options.versions):
        folder = sample.with_name(f"20260101T000000-{number:06x}")
        folder.mkdir()
        for file in sample.iterdir():
            os.link(file, folder / file.name)
    url = stack.urls[0]
    return [
        {
            "what": "listing versions",
            "of": options.versions,
            "ms": _listing(f"{url}/priors/dog/versions"),
        },
        {"what": "listing priors", "of": options.versions, "ms": _listing(f"{url}/priors")},
    ]


def _listing(url: str) -> float:
    taken = []
    with httpx.Client(trust_env=False, timeout=60) as client:
        for _ in range(_LISTED):
            started = time.perf_counter()
            client.get(url).raise_for_status()
            taken.append(time.perf_counter() - started)
    return 1e3 * statistics.median(taken)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the stored amounts and the device."""
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=1000)
    add_torch_arguments(parser, repeats=5)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))

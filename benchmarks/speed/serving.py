"""Compare the whole service under load with one process that calls the same model, and with LitServe, in one run.

python -m benchmarks.speed.serving [--json] [--clients 1 8 64 256] [--seconds 4] [--rounds 2] [--no-litserve]

Photographs of 640 x 480 to poses of the sample category. All contestants run the whole time and are loaded in
turn. LitServe comes with the extra ``bench``; without it that part is left out, with a note.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import torch

from service.contract.versions.store import VersionStore

from .bare import Bare
from .load import Load, closed_loop, post
from .photos import photos, upload
from .report import Check, Report, Row, run
from .stack import Stack, StackError
from .timing import percentile

BAR = 0.8
P50_MS, P95_MS = 5.0, 12.0
AT_CLIENTS = 64
_BATCH = 32
_PHOTOS = 32
_START_S = 120.0
_ALONE = 40  # photographs for the latency of decoding and model


def measure(options: argparse.Namespace) -> Report:
    """Measure all. The ratio is of pictures a second at 64 clients, or the largest number: ours / bare process."""
    pictures = photos(_PHOTOS)
    ours = [post("/estimate", *upload("dog", photo)) for photo in pictures]
    theirs = [post("/predict", *upload("dog", photo)) for photo in pictures]
    loads: dict[tuple[str, int], Load] = {}
    alone: list[float] = []
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        environment = {"PPL_DEVICE": options.device, "PPL_BATCH_LIMIT": str(_BATCH)}
        if options.threads:
            environment["PPL_INFERENCE_THREADS"] = str(options.threads)
        stack = opened.enter_context(Stack(Path(folder), environment=environment))
        store = VersionStore(stack.data_root)
        version = store.path("dog", store.resolve("dog"))
        bare = Bare(version, _BATCH, options.decode_threads, options.device)
        targets = {"service": (stack.urls, ours)}
        if options.litserve:
            url = opened.enter_context(_litserve(version, options, Path(folder) / "litserve.log"))
            targets["litserve"] = ([url], theirs)
        threads = torch.get_num_threads()
        for number in range(-1, options.rounds):
            order = list(targets) if number % 2 else list(targets)[::-1]
            seconds = options.seconds if number >= 0 else min(1.0, options.seconds)  # the first round warms up
            for clients in options.clients:
                for name in order:
                    load = closed_loop(*targets[name], clients, seconds)
                    if number >= 0:
                        key = name, clients
                        loads[key] = loads[key] + load if key in loads else load
            rate = bare.per_s(pictures, seconds)
            latencies = [bare.one(photo) for photo in pictures[:_ALONE]]
            if number >= 0:
                rates.append(rate)
                alone += latencies
    bare_rate = statistics.median(rates)
    rows: list[Row] = [
        {"contestant": name, "clients": clients, **_figures(load)} for (name, clients), load in sorted(loads.items())
    ]
    bare_p50, bare_p95 = 1e3 * statistics.median(alone), 1e3 * percentile(alone, 95)
    rows.append({"contestant": "bare, batches", "pictures_per_s": bare_rate})
    rows.append({"contestant": "bare, one by one", "p50_ms": bare_p50, "p95_ms": bare_p95})
    most = AT_CLIENTS if AT_CLIENTS in options.clients else max(options.clients)
    service = loads["service", most]
    checks = [Check("failed requests", sum(load.failures.total() for load in loads.values()), 0, at_least=False)]
    if 1 in options.clients:
        one = loads["service", 1]
        checks.append(Check("p50 at 1 client, ms above decode + model", one.ms(50) - bare_p50, P50_MS, at_least=False))
        checks.append(Check("p95 at 1 client, ms above decode + model", one.ms(95) - bare_p95, P95_MS, at_least=False))
    if options.litserve:
        other = loads["litserve", most]
        checks.append(Check(f"pictures/s at {most} clients, service / LitServe", service.per_s / other.per_s, 1.0))
        checks.append(Check(f"p99 at {most} clients, service / LitServe", service.ms(99) / other.ms(99), 1.0, False))
    return Report(
        "serving",
        f"the whole service, JPEGs of 640 x 480, one a request, preset compact, on {options.device}",
        rows,
        ratio=service.per_s / bare_rate,
        bar=BAR,
        checks=checks,
        notes=[
            f"ratio of pictures/s at {most} clients: service / one process that decodes and calls the model in batches "
            f"of {_BATCH}",
            f"core split: gateway, worker and load share all cores; the worker's torch threads as set by default or "
            f"--threads ({options.threads or 'default'}), the bare process {threads}, its decoders "
            f"{options.decode_threads}; the load generator is one process on the same machine",
            *([] if options.litserve else ["LitServe was left out: pip install 'pose-prior-learner[bench]'"]),
        ],
    )


def _figures(load: Load) -> Row:
    return {
        "pictures_per_s": load.per_s,
        "p50_ms": load.ms(50),
        "p95_ms": load.ms(95),
        "p99_ms": load.ms(99),
        "failures": load.failures.total(),
    }


@contextmanager
def _litserve(version: Path, options: argparse.Namespace, log: Path) -> Iterator[str]:
    """Run LitServe with the same version during the block; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.litserve_server",
        str(version),
        str(port),
        "--batch",
        str(_BATCH),
    ]
    command += ["--decode-threads", str(options.decode_threads), "--device", options.device]
    command += ["--threads", str(options.threads)] if options.threads else []
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StackError(f"LitServe did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield url
        finally:
            with suppress(ProcessLookupError):  # and its children, which would outlive it
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=1.0).is_success
    except httpx.TransportError:
        return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the load, and of each contestant's threads."""
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch threads of each worker process")
    parser.add_argument(
        "--decode-threads", type=int, default=2, help="decoding threads of the bare process and of LitServe"
    )
    parser.add_argument("--litserve", action=argparse.BooleanOptionalAction, default=find_spec("litserve") is not None)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))

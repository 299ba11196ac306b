"""How far the platform goes: costs measured on this machine, a simulation held against it, and 10 to 1,000 workers.

python -m benchmarks.speed.capacity measure    what a picture and a batch cost each part, into benchmarks/results
python -m benchmarks.speed.capacity validate   pictures/s and latencies of the same loads, simulated and measured
python -m benchmarks.speed.capacity            the simulation with 1 to 1,000 workers, and what gives out first
python -m benchmarks.speed.capacity plan       the simulation of the numbers of parts that docs/operation.md advises

Costs are processor time, which other programs on the machine hardly change; `validate` needs an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import redis
import torch

from model.predictor import Predictor
from service.contract import routing
from service.contract.versions.store import VersionStore
from service.runtime.redis_clients import async_redis_client
from service.runtime.worker_queue import LiveWorkers

from .load import closed_loop, post
from .machine import machine, versions
from .photos import photos, upload
from .report import Check, Report, Row, run
from .simulation import Costs, Layout, Linear, Simulation
from .stack import Stack
from .timing import percentile

COSTS = Path(__file__).parents[1] / "results" / "capacity.costs.json"
PARTS = ("client", "loop", "pool", "valkey", "worker", "received", "sent")
_LIMITS = (1, 8, 32)  # PPL_BATCH_LIMIT of stacks with one worker and one gateway, on which the costs are measured
_CLIENTS = {1: (32,), 8: (64,), 32: (1, 4, 16, 64, 128)}
_TWO = (8, 32, 64)  # clients of two workers, and of two workers and two gateways, to hold the simulation against
_ENVIRONMENT = {
    "PPL_DEVICE": "cpu",
    "PPL_INFERENCE_THREADS": "1",
    "PPL_DECODE_THREADS": "2",
    "PPL_LATE_BATCH_S": "30",
}
# of find_limits: device, workers, gateways, Valkey servers, is_routed, is_shared
_LAYOUTS = (
    ("cpu", 1, 1, 1, False, True),
    ("cpu", 10, 10, 1, False, False),
    ("cpu", 10, 10, 1, False, True),
    ("cpu", 100, 100, 1, False, False),
    ("cpu", 100, 100, 1, False, True),
    ("cpu", 100, 100, 10, False, True),
    ("cpu", 100, 100, 10, True, True),
    ("cpu", 1000, 1000, 1, False, True),
    ("cpu", 1000, 1000, 100, True, True),
    ("gpu", 1, 4, 1, False, True),
    ("gpu", 10, 40, 1, False, True),
    ("gpu", 10, 40, 5, True, True),
    ("gpu", 100, 400, 1, False, True),
    ("gpu", 100, 400, 50, True, True),
)
_PLANNED = ((250, 1, 1, 1), (1_000, 2, 2, 1), (10_000, 16, 16, 2), (100_000, 160, 160, 16))  # pictures/s, numbers
_TRIED = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
_P99_MS = 250.0
_HOP_S = 0.0001
_LINK = 1.25e9  # 10 Gbit/s
_GATEWAY_CORES = 3
_GPU_MODEL_S = Linear(0.003, 0.00003)
_SEEDS = 4
_TICK = os.sysconf("SC_CLK_TCK")


def _process_s(pid: int) -> float:
    """Return a process's processor time, to the nanosecond: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime((~pid << 3) | 2)


def _main_thread_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


class Meter:
    """A reader of what the parts of a stack, and all programs on the machine, have used since their start."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._redis = stack, redis.Redis.from_url(stack.redis_url)

    def read(self) -> dict[str, float]:
        """Return processor seconds and bytes by part, and the counts of pictures and batches."""
        pids, traffic = self._stack.pids(), self._redis.info("stats")
        gateways = [pid for name, pid in pids.items() if name.startswith("gateway")]
        loop = sum(map(_main_thread_s, gateways))
        found = {
            "client": time.process_time(),
            "loop": loop,
            "pool": sum(map(_process_s, gateways)) - loop,
            "valkey": _process_s(pids["valkey"]),
            "worker": sum(_process_s(pid) for name, pid in pids.items() if name.startswith("worker")),
        }
        everything = sum(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])) / _TICK
        return {
            **found,
            "others": everything - sum(found.values()),
            "received": traffic["total_net_input_bytes"],
            "sent": traffic["total_net_output_bytes"],
            "pictures": self._stack.read_metric("ppl_batch_pictures_sum"),
            "batches": self._stack.read_metric("ppl_batch_pictures_count"),
            "seconds": time.perf_counter(),
        }


@dataclass
class Measured:
    """One load of one stack, over all rounds."""

    clients: int
    batch_limit: int = 32
    workers: int = 1
    gateways: int = 1
    is_shared: bool = True  # false for loads measured when each gateway counted on all workers
    used: dict[str, float] = field(default_factory=dict)
    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def stack(self) -> tuple[int, int, int]:
        """The settings that identify its stack: batch limit, workers, gateways."""
        return self.batch_limit, self.workers, self.gateways

    def run(self, stack: Stack, meter: Meter, requests: list[bytes], seconds: float) -> None:
        """Put the load on its stack once more."""
        before = meter.read()
        load = closed_loop(stack.urls, requests, self.clients, seconds)
        used = _used(before, meter.read())
        self.used = {name: self.used.get(name, 0.0) + value for name, value in used.items()}
        self.per_s.append(load.per_s)
        self.p50_ms.append(load.ms(50))
        self.p99_ms.append(load.ms(99))
        self.others.append(used["others"] / used["seconds"])


def _used(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def measure_costs(options: argparse.Namespace) -> Report:
    """Load stacks with batches of several sizes, and split what each part used into a batch's and a picture's share."""
    requests = [post("/estimate", *upload("dog", photo)) for photo in photos(16)]
    fitted = [Measured(clients, limit) for limit in _LIMITS for clients in _CLIENTS[limit]]
    loads = [*fitted, *(Measured(clients, 32, 2, gateways) for gateways in (1, 2) for clients in _TWO)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        stacks: dict[tuple[int, int, int], Stack] = {}
        for kind in dict.fromkeys(load.stack for load in loads):
            limit, workers, gateways = kind
            environment = {**_ENVIRONMENT, "PPL_BATCH_LIMIT": str(limit)}
            path = Path(folder) / "-".join(map(str, kind))
            stacks[kind] = opened.enter_context(
                Stack(path, workers=workers, gateways=gateways, environment=environment)
            )
        meters = {kind: Meter(stack) for kind, stack in stacks.items()}
        for stack in stacks.values():
            closed_loop(stack.urls, requests, 16, 1.0)
        torch.set_num_threads(1)
        versions_of = VersionStore(stacks[fitted[0].stack].data_root)
        predictor = Predictor.load(versions_of.path("dog", versions_of.resolve("dog")), "cpu")
        model_s: dict[int, list[float]] = {}
        first = meters[fitted[0].stack]
        before = first.read()
        time.sleep(3 * options.seconds)
        idle = _used(before, first.read())
        for number in range(options.rounds):
            for load in loads if number % 2 else reversed(loads):
                load.run(stacks[load.stack], meters[load.stack], requests, options.seconds)
            for size, used_s in _model_s(predictor).items():
                model_s.setdefault(size, []).append(used_s)
        beat = _measure_heartbeats(stacks[fitted[0].stack])
    shares = np.array([[load.used["batches"], load.used["pictures"]] for load in fitted])
    rows: list[Row] = []
    costs: dict[str, dict[str, float]] = {}
    for part in PARTS:
        idle_per_s = 0.0 if part == "client" else idle[part] / idle["seconds"]
        spent = np.array([load.used[part] - idle_per_s * load.used["seconds"] for load in fitted])
        batch, picture = _fit(shares / shares[:, 1:], spent / shares[:, 1])
        costs[part] = {"batch": batch, "picture": picture, "idle_per_s": idle_per_s}
        unit = 1.0 if part in ("received", "sent") else 1e3
        row: Row = {
            "part": part,
            "unit": "ms" if unit > 1 else "bytes",
            "batch": batch * unit,
            "picture": picture * unit,
        }
        for load, used in zip(fitted, spent, strict=True):
            row[f"{load.clients}/{load.batch_limit}"] = unit * used / load.used["pictures"]
        rows.append(row)
    sizes = {f"{load.clients}/{load.batch_limit}": load.used["pictures"] / load.used["batches"] for load in fitted}
    rows.append({"part": "pictures a batch", **sizes})
    medians = {size: statistics.median(taken) for size, taken in model_s.items()}
    of_model = np.array([[1.0, size] for size in medians])
    batch, picture = _fit(of_model / of_model[:, 1:], np.array(list(medians.values())) / of_model[:, 1])
    costs["model"] = {"batch": batch, "picture": picture, "idle_per_s": 0.0}
    rows.append({"part": "model alone", "unit": "ms", "batch": 1e3 * batch, "picture": 1e3 * picture})
    alone = next(load for load in fitted if load.clients == 1)
    found = {
        "picture": "JPEG of 640 x 480, one a request; squares of 64 x 64; preset compact, no refinement",
        "costs": costs,
        "model_ms_by_batch": {size: 1e3 * median for size, median in medians.items()},
        "spread": _fit_spread(Costs(**{part: _linear(costs[part]) for part in PARTS}), alone),
        "heartbeat": beat,
        "loads": [asdict(load) for load in loads],
        "machine": machine(),
        "versions": versions(),
    }
    options.costs.write_text(json.dumps(found, indent=1) + "\n")
    notes = [
        "batch, picture: least squares over the columns to the right, in which 16/32 is the use for a picture by 16 "
        "clients with PPL_BATCH_LIMIT=32; what an idle stack uses is taken off",
        "loop, pool: the gateway's main thread and its others; worker: with the model, one thread; valkey: with its "
        "append-only file",
    ]
    return Report(
        "capacity measure", "what a batch and a picture cost each part, preset compact, on cpu", rows, notes=notes
    )


def _model_s(predictor: Predictor, times: int = 5) -> dict[int, float]:
    """Return the processor seconds that the model alone needs for batches, by their size, with one thread."""
    used: dict[int, float] = {}
    side = predictor.config.image_size
    for size in (1, 4, 8, 16, 32):
        squares = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        predictor.predict(squares)
        before = time.process_time()
        for _ in range(times):
            predictor.predict(squares)
        used[size] = (time.process_time() - before) / times
    return used


def _measure_heartbeats(stack: Stack, count: int = 200, times: int = 20) -> dict[str, float]:
    """Return what a gateway and Valkey need for each worker when the gateway looks which live, once a second."""
    with redis.Redis.from_url(stack.redis_url) as client:
        real = client.zrange(routing.workers_key("inference"), 0, -1)[0].decode()
        text = client.get(routing.worker_key("inference", real))
        for number in range(count - 1):
            client.set(routing.worker_key("inference", f"{real}-{number}"), text, ex=60)
            client.zadd(routing.workers_key("inference"), {f"{real}-{number}": time.time() + 60})
        valkey = stack.pids()["valkey"]

        async def refresh() -> float:
            connection = async_redis_client(stack.redis_url)
            workers = LiveWorkers(connection)
            await workers.refresh()
            started = time.process_time()
            for _ in range(times):
                await workers.refresh()
            took = time.process_time() - started
            assert len(workers.live["inference"]) == count
            await connection.aclose()
            return took

        before, sent = _process_s(valkey), client.info("stats")["total_net_output_bytes"]
        gateway_s = asyncio.run(refresh())
        used, out = _process_s(valkey) - before, client.info("stats")["total_net_output_bytes"] - sent
        reads = count * times
        return {"gateway_s": gateway_s / reads, "valkey_s": used / reads, "bytes": out / (count * (times + 1))}


def _fit_spread(costs: Costs, alone: Measured) -> float:
    """Return the spread of work with which one client's p99 / p50 is as measured."""
    aim = statistics.median(alone.p99_ms) / statistics.median(alone.p50_ms)
    low, high = 0.0, 1.5
    while high - low > 0.01:
        middle = (low + high) / 2
        found = Simulation(replace(costs, spread=middle), Layout(cores=2)).run(20.0, 1.0, 1)
        low, high = (middle, high) if found.ms(99) / found.ms(50) < aim else (low, middle)
    return middle


def _linear(cost: dict[str, float]) -> Linear:
    return Linear(cost["batch"], cost["picture"])


def read_costs(path: Path) -> tuple[Costs, list[Measured]]:
    """Return what `measure` wrote: the costs, and the loads they came from."""
    found = json.loads(path.read_text())
    costs = {part: _linear(found["costs"][part]) for part in PARTS}
    return Costs(**costs, spread=found["spread"]), [Measured(**load) for load in found["loads"]]


def validate(options: argparse.Namespace) -> Report:
    """Simulate the measured loads, on the cores that other programs left, and compare."""
    costs, loads = read_costs(options.costs)
    cores = json.loads(options.costs.read_text())["machine"]["cores"]
    rows: list[Row] = []
    for load in loads:
        left = cores - statistics.median(load.others)
        layout = Layout(load.gateways, load.workers, left, batch_limit=load.batch_limit, is_shared=load.is_shared)
        # like the load: from an idle stack, for as long
        seconds = load.used["seconds"] / len(load.per_s)
        runs = [Simulation(costs, layout, seed).run(seconds, 0.0, load.clients) for seed in range(_SEEDS)]
        latencies = [latency for each in runs for latency in each.latencies_s]
        row: Row = {"gateways": load.gateways, "workers": load.workers, "limit": load.batch_limit}
        row |= {"clients": load.clients, "cores": left}
        for name, measured, simulated in (
            ("pictures_per_s", statistics.median(load.per_s), statistics.fmean(each.per_s for each in runs)),
            ("p50_ms", statistics.median(load.p50_ms), 1e3 * percentile(latencies, 50)),
            ("p99_ms", statistics.median(load.p99_ms), 1e3 * percentile(latencies, 99)),
            (
                "batch",
                load.used["pictures"] / load.used["batches"],
                statistics.fmean(chain(*(each.batches for each in runs))),
            ),
        ):
            row |= {name: measured, f"{name}_simulated": simulated, f"{name}_%": 100 * (simulated / measured - 1)}
        rows.append(row)
    checks = [
        Check(f"largest difference of {name}, %", max(abs(row[f"{name}_%"]) for row in rows), 15, at_least=False)
        for name in ("pictures_per_s", "p50_ms", "p99_ms")
    ]
    return Report(
        "capacity validate", "measured and simulated, on the cores that other programs left", rows, checks=checks
    )


def _fit(shares: np.ndarray[Any, Any], spent: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the two shares of least squares that are not negative."""
    both = np.linalg.lstsq(shares, spent, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [max(0.0, float(column @ spent / (column @ column))) for column in shares.T]
    errors = [float(((column * cost - spent) ** 2).sum()) for column, cost in zip(shares.T, alone, strict=True)]
    return (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])


def find_limits(options: argparse.Namespace) -> Report:
    """Find the largest rate that is answered with p99 within the limit, for many workers, and what is busiest then."""
    rows = []
    for device, workers, gateways, shards, is_routed, is_shared in _LAYOUTS:
        if not options.workers or workers in options.workers:
            costs, layout = _assumed(options.costs, device, workers, gateways, shards, is_routed, is_shared)
            for tried in _TRIED:
                rate = float(f"{_ideal_per_s(costs, layout) * tried:.2g}")
                done = Simulation(costs, layout).run(_window_s(rate), 0.5, rate=rate)
                if done.per_s > 0.95 * rate and done.ms(99) < _P99_MS:
                    break
            rows.append(_row(device, costs, layout, done))
    title = f"simulated: the largest of some rates answered with p99 below {_P99_MS:g} ms, and how busy the parts are"
    return Report("capacity", title, rows, notes=_notes())


def plan(options: argparse.Namespace) -> Report:
    """Simulate the numbers of parts that the documentation advises for some rates."""
    rows = []
    for rate, workers, gateways, shards in _PLANNED:
        costs, layout = _assumed(options.costs, "cpu", workers, gateways, shards, shards > 1, True)
        rows.append(_row("cpu", costs, layout, Simulation(costs, layout).run(_window_s(rate), 0.5, rate=rate)))
    return Report("capacity plan", "simulated: advised numbers of parts at their loads", rows, notes=_notes())


def _assumed(
    path: Path, device: str, workers: int, gateways: int, shards: int, is_routed: bool, is_shared: bool
) -> tuple[Costs, Layout]:
    """Return measured costs and a layout of many machines, with what is assumed of them."""
    costs, _ = read_costs(path)
    found = json.loads(path.read_text())
    model, beat = _linear(found["costs"]["model"]), found["heartbeat"]
    costs = replace(costs, hop_s=_HOP_S)
    if device == "gpu":
        rest = Linear(max(0.0, costs.worker.batch - model.batch), max(0.0, costs.worker.picture - model.picture))
        costs = replace(costs, worker=rest, model_s=_GPU_MODEL_S)
    layout = Layout(
        gateways,
        workers,
        gateway_cores=_GATEWAY_CORES,
        decode_threads=_GATEWAY_CORES,
        shards=shards,
        link_bytes_per_s=_LINK,
        beat=(beat["gateway_s"], beat["valkey_s"], beat["bytes"]),
        is_shared=is_shared,
        is_routed=is_routed,
    )
    return costs, layout


def _row(device: str, costs: Costs, layout: Layout, done: Simulation) -> Row:
    batch = statistics.fmean(done.batches)
    model = done.per_s / batch * (costs.model_s.batch + costs.model_s.picture * batch) / layout.workers
    busy = {
        "valkey_%": 100 * done.load["valkey"],
        "link_%": 100 * done.load["link"] / _LINK,
        "loop_%": 100 * done.load["loop"],
        "gateway_%": 100 * done.load["gateway"] / _GATEWAY_CORES,
        "worker_%": 100 * (done.load["worker"] + model),
    }
    row: Row = {"device": device, "workers": layout.workers, "gateways": layout.gateways, "valkeys": layout.shards}
    row |= {"share": "yes" if layout.is_shared else "no", "routed": "yes" if layout.is_routed else "no"}
    p50_ms, p99_ms = (done.ms(percent) if done.latencies_s else None for percent in (50, 99))
    row |= {"pictures_per_s": done.per_s, "p50_ms": p50_ms, "p99_ms": p99_ms, "batch": batch}
    row |= {**busy, "busiest": max(busy, key=busy.__getitem__)[:-2]}
    print(row, flush=True)
    return row


def _notes() -> list[str]:
    return [
        f"assumed: {1e3 * _HOP_S:g} ms from one machine to another, {_LINK * 8 / 1e9:g} Gbit/s at each Valkey, "
        f"gateways of {_GATEWAY_CORES} cores, workers of one; a GPU needs {1e3 * _GPU_MODEL_S.batch:g} ms a batch "
        f"and {1e3 * _GPU_MODEL_S.picture:g} ms a picture; all else is measured",
        "share: whether gateways divide the workers among them; routed: whether a proxy sends the requests of a "
        "category to gateways of its own; busiest: the part nearest to its limit",
    ]


def _ideal_per_s(costs: Costs, layout: Layout) -> float:
    """Return the rate at which full batches would keep the first part wholly busy."""
    full = layout.batch_limit
    valkey = layout.shards * full / costs.valkey.of(full)
    link = layout.shards * _LINK * full / costs.sent.of(full)
    worker = layout.workers * full / (costs.worker.of(full) + costs.model_s.of(full))
    gateway = layout.gateways * _GATEWAY_CORES * full / (costs.loop.of(full) + costs.pool.of(full))
    return min(valkey, link, worker, gateway)


def _window_s(rate: float) -> float:
    """Return the seconds to simulate: fewer at high rates, of which a moment holds enough."""
    return min(4.0, max(0.5, 40_000 / rate))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("what", nargs="?", choices=("measure", "validate", "limits", "plan"), default="limits")
    parser.add_argument("--costs", type=Path, default=COSTS, metavar="FILE.json")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", help="simulate these numbers only")


def main() -> int:
    """Run the command line."""
    works = {"measure": measure_costs, "validate": validate, "limits": find_limits, "plan": plan}
    return run(lambda options: works[options.what](options), add_arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Run the platform's processes with their data in a folder: Valkey, inference workers and gateways."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from service.contract import routing
from service.contract.versions.store import VersionStore
from service.stack.supervisor import Child, ChildSpec
from service.stack.valkey import EmbeddedValkey
from service.versions.samples import install_samples

from .machine import cpu_seconds, resident_bytes

_START_S = 120.0
_TICK_S = 0.01
_STOP_S = 20.0


class StackError(RuntimeError):
    """A part did not start; the message ends with its log."""


class Stack:
    """The platform's processes, each started when the one before is ready; they run until ``close``.

    Unlike `ppl up` it has no training worker and restarts nothing.

    Args:
        folder: folder for data and logs.
        environment: PPL_… settings of all parts.

    Attributes:
        urls: URLs of the gateways.
        ready_s: how long each part took to become ready, by its name: a gateway until it answers, a worker until its
            first heartbeat.
    """

    def __init__(
        self, folder: Path, *, workers: int = 1, gateways: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_root = folder / "data"
        install_samples(VersionStore(self.data_root))
        server = EmbeddedValkey.create_in(folder / "valkey")
        self.redis_url = server.url
        self.urls: list[str] = []
        self.ready_s: dict[str, float] = {}
        self._children: dict[str, Child] = {}
        self._environment = {
            "PPL_DATA_ROOT": str(self.data_root),
            "PPL_REDIS_URL": server.url,
            "PPL_LOG_LEVEL": "WARNING",
            **(environment or {}),
        }
        self._logs = folder / "logs"
        try:
            self._start(server.spec(self._logs / "valkey.log"), server.accepts_commands)
            for number in range(workers):
                self._start_worker(number)
            for number in range(gateways):
                self._start_gateway(number, workers)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pids(self) -> dict[str, int]:
        """Return the process ids by the name of the part."""
        return {name: child.pid for name, child in self._children.items() if child.pid}

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each part has used."""
        return {name: cpu_seconds(pid) for name, pid in self.pids().items()}

    def resident_mb(self) -> dict[str, float]:
        """Return the memory of each part that is in RAM, in 10^6 bytes."""
        return {name: resident_bytes(pid) / 1e6 for name, pid in self.pids().items()}

    def read_metric(self, name: str, *, relayed: bool = False) -> float:
        """Read a metric and add up its labels, over all gateways, or with `relayed` the workers' from one gateway."""
        totals = [_total(httpx.get(f"{url}/metrics", trust_env=False, timeout=10).text, name) for url in self.urls]
        return totals[0] if relayed else sum(totals)

    def close(self) -> None:
        """Stop all parts in reverse order."""
        for child in reversed(self._children.values()):
            process = child.process
            if process is None:
                continue
            process.terminate()
            with suppress(Exception):
                process.wait(_STOP_S)
            if process.poll() is None:
                process.kill()
                process.wait()

    def _start_worker(self, number: int) -> None:
        spec = self._spec(f"worker-{number}", ("worker", "inference"))
        with redis.Redis.from_url(self.redis_url) as client:
            self._start(spec, lambda: client.zcard(routing.workers_key("inference")) > number)

    def _start_gateway(self, number: int, workers: int) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1024)
            fd = listener.fileno()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            command = ("service.gateway.serve", "--fd", str(fd))
            with httpx.Client(base_url=url, trust_env=False, timeout=1.0) as client:
                self._start(self._spec(f"gateway-{number}", command, (fd,)), lambda: _good(client, "/livez"))
                if workers:
                    self._await(f"gateway-{number}", lambda: _good(client, "/readyz"))
        self.urls.append(url)

    def _spec(self, name: str, command: tuple[str, ...], pass_fds: tuple[int, ...] = ()) -> ChildSpec:
        return ChildSpec(
            name, (sys.executable, "-m", *command), self._logs / f"{name}.log", env=self._environment, pass_fds=pass_fds
        )

    def _start(self, spec: ChildSpec, ready: Callable[[], bool]) -> None:
        child = self._children[spec.name] = Child(spec)
        started = time.perf_counter()
        child.start()
        self._await(spec.name, ready)
        self.ready_s[spec.name] = time.perf_counter() - started

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        child = self._children[name]
        deadline = time.monotonic() + _START_S
        while not ready():
            assert child.process is not None
            if child.process.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"{name} did not start:\n{child.log_tail()}")
            time.sleep(_TICK_S)


def _good(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.TransportError:
        return False


def _total(exposition: str, name: str) -> float:
    families = text_string_to_metric_families(exposition)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)

"""Two gateways, two inference workers and a training worker that share only Redis and a bucket of an S3 server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from service.client import APIError, Client, JobStatus
from service.client.types import EstimateStatus
from service.stack.valkey import free_port
from tests.support.forks import Fork
from tests.support.gateway_process import serve
from tests.support.s3 import s3_server
from tests.support.stack_process import TINY, archive, drawing, within
from tests.support.worker_process import work

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Machines:
    """Processes, each with a folder of its own."""

    def __init__(self, root: Path, redis_url: str, environment: dict[str, str]) -> None:
        self._root = root
        self._environment = {
            **environment,
            "PPL_REDIS_URL": redis_url,
            "PPL_SAMPLE_CATEGORIES": "false",
            "PPL_DEVICE": "cpu",
            "PPL_INFERENCE_THREADS": "1",
            "PPL_TRAINING_THREADS": "1",
            "PPL_TRAINING_NICE": "0",
        }
        self.processes: dict[str, Fork] = {}

    def start(self, name: str, function: Callable[..., int | None], *arguments: str, **more: str) -> None:
        """Start a process with a data root named like it."""
        root = self._root / name
        root.mkdir(exist_ok=True)
        environment = {**os.environ, **self._environment, "PPL_DATA_ROOT": str(root), **more}
        self.processes[name] = Fork(self._root / f"{name}.log", environment, function, *arguments)

    def start_gateway(self, name: str) -> str:
        port = free_port()
        self.start(name, serve, PPL_HOST="127.0.0.1", PPL_PORT=str(port))
        return f"http://127.0.0.1:{port}"

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(60)

    def files(self, name: str) -> list[str]:
        return sorted(str(path.relative_to(self._root / name)) for path in (self._root / name).rglob("*.safetensors"))

    def log(self, name: str) -> str:
        return (self._root / f"{name}.log").read_text()

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self._root.glob("*.log")))


@pytest.fixture
def machines(tmp_path: Path, redis_url: str, redis_client: redis.Redis) -> Iterator[Machines]:
    with s3_server(tmp_path / "s3.log") as environment:
        machines = Machines(tmp_path, redis_url, environment)
        try:
            yield machines
        finally:
            for process in machines.processes.values():
                process.kill()
                process.wait()


def answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.TransportError:
            return False

    return ready


def test_platform_runs_on_machines_that_share_only_redis_and_a_bucket(machines: Machines, tmp_path: Path) -> None:
    urls = [machines.start_gateway("gateway-1"), machines.start_gateway("gateway-2")]
    machines.start("training-1", work, "training")
    machines.start("inference-1", work, "inference")
    machines.start("inference-2", work, "inference")
    assert all(within(120, answers(url)) for url in urls), machines.logs()

    with Client(urls[0]) as one, Client(urls[1]) as other:
        pictures = archive(tmp_path / "crosses.zip")
        long = one.train("cross", pictures, "compact", {**TINY, "steps": 20_000, "checkpoint_every": 5})
        assert within(120, lambda: len(other.checkpoints(long.id)) > 1), machines.logs()
        assert other.preview(long.id).startswith(b"\x89PNG")

        # the machine that trains is lost; another one goes on from the checkpoint in the bucket
        machines.stop("training-1", signal.SIGKILL)
        # the newest may have been reported before it was sent
        reached = sorted(checkpoint.step for checkpoint in other.checkpoints(long.id))[-2]
        machines.start("training-2", work, "training")
        assert within(120, lambda: other.job(long.id).progress.step > reached + 20), machines.logs()
        resumed = re.search(r"training from step (\d+)", machines.log("training-2"))
        assert resumed, machines.log("training-2")
        assert int(resumed[1]) >= reached
        other.cancel(long.id)
        assert within(30, lambda: other.job(long.id).status is JobStatus.CANCELLED)

        job = one.wait(one.train("cross", pictures, "compact", TINY, activate="always").id, timeout_s=240)
        assert job.status is JobStatus.SUCCEEDED, job.error
        first = job.version
        assert first is not None
        assert within(10, lambda: other.prior("cross").version == first)
        poses = [client.estimate("cross", [drawing(100)]).images[0].keypoints for client in (one, other)]
        assert poses[0] == poses[1]
        assert not machines.files("gateway-2"), "a gateway needs no weights"

        # each inference worker alone answers both gateways, from its own copy of the weights
        few, results = [drawing(100 + number) for number in range(4)], []
        for stopped, other_worker in (("inference-1", "inference-2"), ("inference-2", "inference-1")):
            machines.stop(stopped)
            for client in (one, other):
                assert client.estimate("cross", [drawing(100)]).images[0].keypoints == poses[0]
                background = client.wait_estimate(client.estimate_async("cross", few).id)
                results.append(background.result)
            assert machines.files(other_worker), "the worker has its own copy of the weights"
            machines.start(stopped, work, "inference")
        assert all(result.images == results[0].images for result in results)

        # a dataset that came through one gateway is inspected elsewhere, and trained on through the other
        dataset = one.datasets.create(pictures)
        assert other.datasets.wait(dataset.id, timeout_s=120).found.pictures == 24
        assert other.datasets.picture(dataset.id, 3) == one.datasets.picture(dataset.id, 3)

        # roll forward and back through different gateways
        second = one.wait(
            other.train("cross", dataset=dataset.id, preset="compact", settings=TINY, activate=False).id, timeout_s=240
        ).version
        assert second is not None
        one.aliases.put("cross", "active", second, expected=first)
        assert within(5, lambda: other.estimate("cross", [drawing(100)]).version == second)
        other.aliases.put("cross", "active", first, expected=second)
        assert within(5, lambda: one.estimate("cross", [drawing(100)]).version == first)
        with pytest.raises(APIError, match="active"):
            one.versions.delete("cross", first)
        one.versions.delete("cross", second)
        one.datasets.delete(dataset.id)
        assert within(5, lambda: list(other.datasets.list()) == [])
        assert within(5, lambda: [entry.version for entry in other.versions.list("cross")] == [first])

        # results of the background are in the bucket: made through one gateway, served by both
        done = list(one.estimates())
        assert len(done) == len(results)
        for estimate in done:
            found = [client.estimate_job(estimate.id) for client in (one, other)]
            assert [estimate.status for estimate in found] == [EstimateStatus.SUCCEEDED] * 2
            assert found[0].result == found[1].result
            assert len(found[0].result.images) == len(few)
        for estimate in done:
            other.delete_estimate(estimate.id)
        assert within(5, lambda: list(one.estimates()) == [])

    _lose_gateways(machines, urls[0])


def _lose_gateways(machines: Machines, url: str) -> None:
    """An estimate in the background outlives the gateway that took it, and its result the one that ended it."""
    many = [drawing(100 + number) for number in range(40)]
    for name in ("gateway-2", "inference-1", "inference-2"):  # so that the estimate can't end too early
        machines.stop(name)
    with Client(url) as one:
        begun = one.estimate_async("cross", many)
        assert within(60, lambda: one.estimate_job(begun.id).status is EstimateStatus.RUNNING), machines.logs()
    machines.stop("gateway-1", signal.SIGKILL)

    machines.start("inference-1", work, "inference")
    second = machines.start_gateway("gateway-2")
    assert within(120, answers(second)), machines.logs()
    with Client(second) as other:
        ended = other.wait_estimate(begun.id, timeout_s=240)
        assert ended.status is EstimateStatus.SUCCEEDED, machines.logs()
        assert len(ended.result.images) == len(many)
        assert ended.result.errors == []

    # with the second one gone too, a third has the result
    machines.stop("gateway-2", signal.SIGKILL)
    third = machines.start_gateway("gateway-3")
    assert within(120, answers(third)), machines.logs()
    with Client(third) as last:
        assert last.estimate_job(begun.id).result == ended.result
        last.delete_estimate(begun.id)
        assert list(last.estimates()) == []

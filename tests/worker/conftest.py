"""Real parts at their smallest: a tiny model, a tiny upload, the worker's objects on the session's Valkey."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import redis
import torch
from PIL import Image

from model import preview
from model.config import PPLConfig, resolve
from model.training.trainer import Trainer
from service.contract.durable_files import write_json
from service.contract.jobs.files import JobFiles
from service.contract.jobs.progress import PaceBook
from service.contract.jobs.store import Job, JobSource, JobStore, NewJob, new_job_id
from service.contract.versions.store import VersionStore
from worker.caretaker import Caretaker
from worker.jobs import JobTaker, Stop
from worker.metrics import TrainingMetrics
from worker.settings import WorkerSettings
from worker.training import runner as training
from worker.training.runner import TrainingRunner
from worker.uploads.preparer import Preparer

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
    "steps": 6,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _small_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw little at each checkpoint; a preview of the usual size takes a quarter of the time of a tiny training."""
    monkeypatch.setattr(preview, "PICTURES", 2)
    monkeypatch.setattr(preview, "_TILE_PX", 16)


def tiny(**changes: object) -> PPLConfig:
    return resolve("compact", {**TINY, **changes})


def settings_of(config: PPLConfig) -> dict[str, bool | int | float | str]:
    return {"preset": "compact", **config.to_dict()}


def picture(seed: int = 0, width: int = 48, height: int = 40, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as training exports it, without a step of training."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("version")
    Trainer(images, tiny(), "cpu").export(folder)
    return folder


@pytest.fixture
def publish(data_root: Path, tiny_version: Path) -> Callable[..., str]:
    """publish(category, version, job_id) puts the tiny version into the store."""

    def put(category: str = "dog", version: str = "v1", job_id: str = "0123456789") -> str:
        store = VersionStore(data_root)
        with store.staging(category, version) as folder:
            shutil.copytree(tiny_version, folder, dirs_exist_ok=True)
            write_json(folder / "version.json", {"format": 1, "version": version, "job_id": job_id})
            store.publish(folder, category, version)
        return version

    return put


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return during(step, act), which calls act on the trainer after a step; during() undoes it."""
    acts: dict[int, Callable[[Trainer], object]] = {}

    class Watched(Trainer):
        def train_step(self) -> dict[str, torch.Tensor]:
            losses = super().train_step()
            if self.step + 1 in acts:
                acts[self.step + 1](self)
            return losses

    monkeypatch.setattr(training, "Trainer", Watched)

    def arrange(step: int | None = None, act: Callable[[Trainer], object] | None = None) -> None:
        if step is None or act is None:
            acts.clear()
        else:
            acts[step] = act

    return arrange


@pytest.fixture
def desk(redis_client: redis.Redis, redis_url: str, data_root: Path) -> SimpleNamespace:
    """The training worker's parts, wired as worker.app wires them, but driven by the test."""
    settings = WorkerSettings(redis_url=redis_url, data_root=data_root, device="cpu", training_threads=1)
    jobs, files, store = JobStore(redis_client), JobFiles(settings.data_root), VersionStore(settings.data_root)
    metrics, stop, sent = TrainingMetrics(), Stop(), []
    taker = JobTaker(jobs, files, metrics, "test", stop)
    preparer = Preparer(taker, settings)
    runner = TrainingRunner(taker, store, settings, PaceBook(redis_client))
    caretaker = Caretaker(preparer, store, sent.append)

    def upload(members: dict[str, bytes] | None = None, config: PPLConfig | None = None) -> Job:
        members = {f"{n}.jpg": picture(n) for n in range(9)} if members is None else members
        config = config or tiny()
        job_id = new_job_id()
        files.create(job_id)
        files.archive(job_id).write_bytes(zipped(members))
        # a tiny run fails the quality check, but its version must become active
        return jobs.create(NewJob("dog", settings_of(config), config.steps, job_id=job_id, activate="always"))

    def from_folder(folder: str) -> Job:
        return jobs.create(
            NewJob("dog", settings_of(tiny()), 6, JobSource(kind="folder", folder=folder), activate="always")
        )

    def prepared(config: PPLConfig | None = None) -> Job:
        job = upload(config=config)
        caretaker.prepare(job.id)
        return jobs.get(job.id)

    return SimpleNamespace(
        settings=settings,
        jobs=jobs,
        files=files,
        store=store,
        metrics=metrics,
        stop=stop,
        sent=sent,
        runner=runner,
        caretaker=caretaker,
        upload=upload,
        from_folder=from_folder,
        prepared=prepared,
        tiny=tiny,
        picture=picture,
    )

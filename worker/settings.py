"""Settings of the workers, read from the environment (PPL_…)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from service.contract.settings import CommonSettings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause garbage collection during imports, a fifth faster, and exempt their objects from later collections."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def set_threads(count: int) -> None:
    """Let torch use this many threads; call it before anything else imports torch."""
    # the libraries below torch read these when they are loaded
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)
    torch.set_num_interop_threads(1)


class WorkerSettings(CommonSettings):
    """Settings of the workers alone; inference and training share the cores by their numbers of threads."""

    inference_threads: int = Field(default_factory=lambda: max(1, usable_cores() // 2), ge=1, le=512)
    """threads of the inference worker"""
    training_threads: int = Field(default_factory=usable_cores, ge=1, le=512)
    """threads of the training worker; by default the fastest number of those it tries"""
    training_nice: int = Field(default=0, ge=0, le=19)
    """niceness of the training worker, so that inference goes first"""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu or cuda"""
    models_resident: int = Field(default=4, ge=1)
    """versions kept in memory; the least recently used is evicted first"""
    perceptual_weights: Path | None = None
    """local file of the perceptual network's weights"""
    video_max_bytes: int = Field(default=4 * 2**30, ge=1024)
    """bytes of one video file"""
    video_max_duration_s: float = Field(default=14_400.0, gt=0)
    """length of one video"""
    video_max_frames: int = Field(default=20_000, ge=2)
    """frames decoded of one video; longer videos are sampled at key frames only"""
    video_timeout_s: float = Field(default=600.0, gt=0)
    """time for decoding one video"""
    worker_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """port on which a worker serves its metrics"""
    worker_metrics_host: str = "0.0.0.0"  # noqa: S104 - for scraping
    """address of that port"""

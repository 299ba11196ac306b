"""The baseline of the service: one process that decodes the same pictures and calls the same model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.predictor import Predictor
from service.contract.media.fitting import fit_square, reduction_for_boxes
from service.contract.media.pictures import open_reduced


class Bare:
    """A resident model with threads that decode for it; no HTTP, no queue.

    Args:
        version: folder of a version.
        batch: pictures in a batch; always full.
        decode_threads: number of threads that decode ahead of the model.
    """

    def __init__(self, version: Path, batch: int, decode_threads: int, device: str = "auto") -> None:
        self.predictor = Predictor.load(version, device)
        self.batch, self.decode_threads = batch, decode_threads

    def square(self, photo: bytes) -> NDArray[np.uint8]:
        """Decode a photograph and fit it to the model's square, as the gateway does."""
        side = self.predictor.config.image_size
        return fit_square(open_reduced(photo, reduction_for_boxes(side)), side)[0]

    def one(self, photo: bytes) -> float:
        """Return the seconds to decode one photograph and estimate it in a batch of one."""
        started = time.perf_counter()
        self.predictor.predict(self.square(photo)[None])
        return time.perf_counter() - started

    def per_s(self, photos: Sequence[bytes], seconds: float) -> float:
        """Return the pictures a second in full batches; two are decoded while the model works."""
        with ThreadPoolExecutor(self.decode_threads) as pool:
            ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
            number = done = 0
            started = time.perf_counter()
            while time.perf_counter() - started < seconds:
                while len(ahead) < 2:
                    ahead.append(
                        [pool.submit(self.square, photos[(number + n) % len(photos)]) for n in range(self.batch)]
                    )
                    number += self.batch
                self.predictor.predict(np.stack([square.result() for square in ahead.popleft()]))
                done += self.batch
            took = time.perf_counter() - started
            for waiting in ahead:
                for square in waiting:
                    square.cancel()
        return done / took

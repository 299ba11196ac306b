"""Serve the same predictor with LitServe (extra ``bench``), tuned by its documentation.

python -m benchmarks.speed.litserve_server VERSION PORT [--batch 32] [--threads 1] [--decode-threads 2]

By its guide to speed, requests are collected into batches, threads decode the pictures of a batch in ``batch``, and it
uses the fast queue and several API servers if there are enough cores.
"""

# no `from __future__ import annotations`: LitServe looks at the type of decode_request's argument itself

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from fastapi import Request

from model.predictor import Predictor
from service.contract.media.fitting import fit_square, reduction_for_boxes
from service.contract.media.pictures import open_reduced


class PoseAPI(litserve.LitAPI):
    """An API that takes a photograph in the form field ``images`` and returns its keypoints in pixels."""

    def __init__(self, version: Path, threads: int, decode_threads: int, **options: Any) -> None:
        super().__init__(**options)
        self.version, self.threads, self.decode_threads = version, threads, decode_threads

    def setup(self, device: str) -> None:
        """Load the model in the process that runs it."""
        torch.set_num_threads(self.threads)
        self.predictor = Predictor.load(self.version, device)
        self.pool = ThreadPoolExecutor(self.decode_threads)

    def decode_request(self, request: Request) -> bytes:
        """Return the bytes; they are decoded with the whole batch."""
        data: bytes = request["images"].file.read()
        return data

    def batch(self, inputs: list[bytes]) -> Any:
        """Decode all pictures of a batch in parallel; return their squares and frames."""
        return list(self.pool.map(self._fit, inputs))

    def predict(self, x: Any) -> list[tuple[Any, Any]]:
        """Return keypoints in pixels, and scores."""
        found = self.predictor.predict(np.stack([square for square, _ in x]))
        return [
            (frame.to_picture(points), scores)
            for (_, frame), points, scores in zip(x, found.keypoints, found.scores, strict=True)
        ]

    def unbatch(self, output: Any) -> Any:
        """Return the list; `predict` has one item a picture."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Encode the keypoints as JSON."""
        points, scores = output
        return {"keypoints": points.round(3).tolist(), "scores": scores.round(4).tolist()}

    def _fit(self, data: bytes) -> Any:
        side = self.predictor.config.image_size
        return fit_square(open_reduced(data, reduction_for_boxes(side)), side)


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batch-timeout", type=float, default=0.005)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode-threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    api = PoseAPI(
        options.version,
        options.threads,
        options.decode_threads,
        max_batch_size=options.batch,
        batch_timeout=options.batch_timeout,
    )
    server = litserve.LitServer(api, accelerator=options.device, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

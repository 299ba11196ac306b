"""Make what a release leaves behind: a data root, and the messages between its gateway and worker.

    cd CHECKOUT_OF_THE_RELEASE; PYTHONPATH=. python …/tests/upgrade/make_fixture.py FIXTURE.tar.xz

Runs that release's `ppl up`, talks to it over HTTP, and leaves out what the release did not have. Between training and
estimates it replaces each large tensor of the weights by signs that repeat, times its mean size (and the checksum by
that of the new file): random floats cannot be compressed, and the fixture would have megabytes.

With `--bucket`, for releases that have object stores, the data root is moved to a bucket by `ppl backup` and
`ppl restore`, and the fixture is that.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import save_file

TINY = {
    "preset": "compact", "steps": 12, "image_size": 32, "perceptual_size": 32, "base_width": 8, "num_keypoints": 4,
    "num_banks": 2, "bank_size": 4, "token_dim": 8, "batch_size": 8, "mask_grid": 4, "checkpoint_every": 6,
}  # fmt: skip
NEWER = {"memory_width": 16, "features": "none", "activate": "always"}  # settings that not every release has


def drawing(seed: int) -> bytes:
    """Return a PNG of a cross on a dark background."""
    image = Image.new("RGB", (40, 32), (20, 30, 40))
    draw = ImageDraw.Draw(image)
    x, y, d = 16 + seed % 9, 12 + seed % 7, 5 + seed % 5
    draw.line((x - d, y - d, x + d, y + d), fill=(230, 220, 40), width=3)
    draw.line((x + d, y - d, x - d, y + d), fill=(40, 220, 230), width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pictures() -> bytes:
    """Return a zip of drawings."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(16):
            archive.writestr(f"crosses/{index:02}.png", drawing(index))
    return buffer.getvalue()


def environ_of(pid: int) -> dict[str, str]:
    """Return the environment of a process."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


class Release:
    """The running release."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "service.cli", "up", "--data-root", str(root), "--port", "0"]
        environment = {**os.environ, "PPL_INFERENCE_THREADS": "1", "PPL_TRAINING_THREADS": "1"}
        environment["PPL_SAMPLE_CATEGORIES"] = "false"
        shown = subprocess.run([*command[:4], "--help"], capture_output=True, text=True, check=True).stdout
        command += ["--json"] if "--json" in shown else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        announced = json.loads(self.process.stdout.readline())
        self.pids: dict[str, int] = announced["pids"]
        self.http = httpx.Client(base_url=announced["url"], timeout=120, trust_env=False)
        self.redis = redis.Redis.from_url(environ_of(self.pids["gateway"])["PPL_REDIS_URL"])

    def stop(self) -> None:
        """End all its processes."""
        for pid in self.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def train(self) -> dict[str, Any]:
        """Train a version and return the finished job."""
        files = {"archive": ("crosses.zip", pictures(), "application/zip")}
        fields = {"category": "crosses", **TINY, **NEWER}
        while (answer := self.http.post("/train-jobs", data=fields, files=files)).status_code == 422:
            unknown = [name for name in NEWER if name in answer.text and name in fields]
            assert unknown, answer.text
            for name in unknown:
                del fields[name]
        path = f"/train-jobs/{answer.raise_for_status().json()['id']}"
        while (job := self.http.get(path).json())["status"] not in ("succeeded", "failed"):
            time.sleep(0.3)
        assert job["status"] == "succeeded", job
        return job

    def has(self, path: str) -> bool:
        """Return whether the release has a path."""
        return any(known.startswith(path) for known in self.http.get("/openapi.json").json()["paths"])

    def estimate(self) -> dict[str, Any]:
        """Estimate the pose of a drawing."""
        answer = self.http.post("/estimate", data={"category": "crosses"}, files={"images": ("x.png", drawing(3))})
        return answer.raise_for_status().json()

    def capture_messages(self) -> dict[str, Any]:
        """Return a batch as it waits in the queue, its pixels, its reply and the worker's heartbeat, in base64."""
        # a blocked read of a stopped process would still take the message: close its connection
        os.kill(self.pids["worker-inference"], signal.SIGSTOP)
        self.redis.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        thread = threading.Thread(target=self.estimate)
        thread.start()
        (queue,) = self.until(lambda: self.redis.keys("ppl:inference:inference"))
        os.kill(self.pids["gateway"], signal.SIGSTOP)
        message = self.redis.lindex(queue, 0)
        (pixels,) = self.redis.keys("ppl:pixels:*")
        captured = {"message": message, "pixels": self.redis.get(pixels)}
        self.redis.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        os.kill(self.pids["worker-inference"], signal.SIGCONT)
        (reply,) = self.until(lambda: self.redis.keys("ppl:reply:*"))
        captured["reply"] = self.redis.lindex(reply, 0)
        (beat,) = [key for key in self.redis.keys("ppl:worker:inference:*") if self.redis.type(key) == b"string"]
        captured["heartbeat"] = self.redis.get(beat)
        os.kill(self.pids["gateway"], signal.SIGCONT)
        thread.join()
        return {name: base64.b64encode(value).decode() for name, value in captured.items()}

    @staticmethod
    def until(found: Any) -> Any:
        """Return what is found once there is something."""
        while not (value := found()):
            time.sleep(0.005)
        return [value] if not isinstance(value, list) else value


def coarsen(folder: Path) -> None:
    """Make the weights of a version compressible, and correct their checksum."""
    path, facts = folder / "weights.safetensors", json.loads((folder / "version.json").read_text())
    with safe_open(path, "np") as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32 and tensor.ndim > 1 and tensor.size > 256:
            signs = np.resize(np.where(tensor.flat[:1021] < 0, -1, 1), tensor.shape)
            tensors[name] = (signs * np.abs(tensor).mean()).astype(np.float32)
    save_file(tensors, path, notes)
    preview = folder / "preview.png"
    if preview.exists():
        Image.open(preview).quantize(8).save(preview)
    for changed in (path, preview):
        if changed.name in facts["files"]:
            facts["files"][changed.name] = hashlib.sha256(changed.read_bytes()).hexdigest()
    (folder / "version.json").write_text(json.dumps(facts))


def main() -> None:
    """Write the fixture."""
    folder = Path(tempfile.mkdtemp())
    root = folder / "data"
    release = Release(root)
    try:
        jobs = [release.train(), release.train()]
        release.stop()
        for version in root.glob("categories/crosses/versions/*"):
            coarsen(version)
        release = Release(root)
        seen: dict[str, Any] = {"jobs": jobs, "estimate": release.estimate()}
        if release.has("/priors/{category}/aliases"):
            answer = release.http.put("/priors/crosses/aliases/before", json={"version": jobs[0]["version"]})
            answer.raise_for_status()
            seen["aliases"] = release.http.get("/priors/crosses/aliases").json()
        if release.has("/datasets"):
            files = {"archive": ("crosses.zip", pictures(), "application/zip")}
            made = release.http.post("/datasets", data={"name": "garden"}, files=files).raise_for_status().json()
            path = f"/datasets/{made['id']}"
            while release.http.get(path).json()["status"] == "inspecting":
                time.sleep(0.3)
            seen["dataset"] = release.http.get(path).json()
        for name, path in (("prior", "/priors/crosses"), ("history", "/priors/crosses/history")):
            if (answer := release.http.get(path)).is_success:
                seen[name] = answer.json()
        key = [sys.executable, "-m", "service.cli", "keys", "create", "lab", "--scope", "train", "--json"]
        environment = {**os.environ, "PPL_DATA_ROOT": str(root)}
        done = subprocess.run(key, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            seen["key"] = json.loads(done.stdout)
        seen["messages"] = release.capture_messages()
        release.redis.bgrewriteaof()
        time.sleep(2)
    finally:
        release.stop()
    shutil.rmtree(root / "logs", ignore_errors=True)
    for path in (root / "stack.lock", root / "valkey" / "valkey.conf"):
        path.unlink()
    kept = "data"
    if "--bucket" in sys.argv:
        kept, bucket = "bucket", {"PPL_STORE_URL": f"file://{folder}/bucket"}
        for words, more in ((["backup"], {}), (["restore"], bucket)):
            command = [sys.executable, "-m", "service.cli", *words, str(folder / "ppl.tar"), "--data-root", str(root)]
            subprocess.run(command, env={**os.environ, **more}, check=True)
    (folder / "seen.json").write_text(json.dumps(seen, indent=1))
    with tarfile.open(sys.argv[1], "w:xz", preset=9) as archive:
        for path in (kept, "seen.json"):
            archive.add(folder / path, path)
    print(Path(sys.argv[1]).stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""The whole platform through `ppl up`: train, estimate, follow the README's tour, kill each part, recover.

The tests share one stack and run in their order; each leaves it working.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from service.client import APIError, Client, Job, JobStatus, png_bytes
from service.client.types import BackgroundEstimate, Dataset
from tests.support.stack_process import TINY, StackProcess, archive, drawing, running, within

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "service" / "samples"
TOUR = (ROOT / "README.md").read_text(encoding="utf-8").split("### A tour of ten minutes", 1)[1].split("\n### ", 1)[0]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TOUR, re.DOTALL) for line in block.splitlines() if line]
SMALL = " ".join(f"--set {name}={value}" for name, value in TINY.items() if name != "steps")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),  # a loaded machine may take ten times as long as an idle one
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]


class Shared:
    """The current stack; tests that restart it replace it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stack = StackProcess(root / "data")
        self.job: Job | None = None
        self.dataset: Dataset | None = None

    def restart(self) -> None:
        self.stack = StackProcess(self.root / "data")

    def client(self) -> Client:
        return self.stack.client()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp("stack"))
    yield shared
    shared.stack.end()


@pytest.fixture
def client(shared: Shared) -> Iterator[Client]:
    with shared.client() as client:
        yield client


def test_pictures_become_a_prior(shared: Shared, client: Client) -> None:
    job = client.wait(
        client.train("cross", archive(shared.root / "crosses.zip"), "compact", TINY, activate="always").id,
        timeout_s=300,
    )

    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.progress.step == job.progress.total_steps == TINY["steps"]
    assert job.metrics["images"] == 24
    prior = client.prior("cross")
    assert prior.version == job.version
    assert len(prior.keypoint_prior) == prior.num_keypoints == TINY["num_keypoints"]
    assert len(prior.links) == 3  # the skeleton: a tree
    assert len(client.prior("cross", all_links=True).links) == 6
    memory = client.memory("cross")
    assert sum(prototype.count for prototype in memory.prototypes) == 24
    assert Image.open(io.BytesIO(client.link_map("cross"))).format == "PNG"
    shared.job = job


def test_poses_come_in_pixels_of_the_picture(client: Client) -> None:
    estimate = client.estimate(
        "cross",
        [drawing(100), drawing(101, 64, 200)],
        refine_steps=2,
        include=("overlay", "link_map", "trajectory"),
        boxes=[(0, 0, 40, 32), (8, 60, 40, 50)],
    )

    assert [(image.width, image.height) for image in estimate.images] == [(40, 32), (64, 200)]
    for image in estimate.images:
        assert len(image.keypoints) == TINY["num_keypoints"]
        assert len(image.trajectory or []) == 3
        for picture in (image.overlay, image.link_map):
            assert Image.open(io.BytesIO(png_bytes(picture or ""))).size == (image.width, image.height)


def test_the_command_line_reaches_the_stack(shared: Shared, tmp_path: Path) -> None:
    picture, out = tmp_path / "new.png", tmp_path / "out.png"
    picture.write_bytes(drawing(102))
    command = [sys.executable, "-m", "service.cli", "estimate", "cross", picture, "--overlay", out]

    done = subprocess.run([*command, "--url", shared.stack.url], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    with Image.open(out) as drawn:
        assert drawn.size == (40, 32)


def test_landmarks_of_the_sample_category_are_fitted_with_the_real_model(client: Client, tmp_path: Path) -> None:
    labels = json.loads((SAMPLES / "dog_labels.json").read_text())["heldout"]
    names, sizes = sorted(labels)[:24], {}
    with zipfile.ZipFile(SAMPLES / "dog_heldout.zip") as pictures:
        for name in names:
            (tmp_path / name).write_bytes(pictures.read(f"dog/{name}"))
            with Image.open(tmp_path / name) as picture:
                sizes[name] = picture.width
    places = {
        name: np.array(labels[name]["keypoints"]) * sizes[name] - 0.5 for name in names
    }  # the pictures are square
    rows = [f"{name},{mark},{x},{y}" for name in names[:16] for mark, (x, y) in enumerate(places[name])]
    (tmp_path / "labels.csv").write_text("\n".join(["image,keypoint,x,y", *rows]))

    fitted = client.landmarks.fit("dog", "joints", [tmp_path / name for name in names[:16]], tmp_path / "labels.csv")
    found = client.estimate("dog", [tmp_path / name for name in names[16:]], landmarks="joints")

    errors = fitted.cross_validation
    assert errors.error_percent < 0.8 * errors.mean_place_percent
    off = [
        np.hypot(*(np.array([(mark.x, mark.y) for mark in image.landmarks or ()]) - places[name]).T) / sizes[name]
        for name, image in zip(names[16:], found.images, strict=True)
    ]
    assert 100 * np.mean(off) < 0.9 * errors.mean_place_percent


def test_imported_version_gives_the_same_poses(client: Client, tmp_path: Path) -> None:
    client.name_keypoints("dog", [f"part {index}" for index in range(16)])
    client.versions.import_file("hound", client.versions.export("dog", "active", tmp_path / "dog.zip"))

    poses = [client.estimate(category, [drawing(103)]).images[0].keypoints for category in ("dog", "hound")]

    assert poses[0] == poses[1]
    assert poses[1][15].name == "part 15"
    assert [entry.name for entry in client.landmarks.list("hound")] == ["joints"]


def test_dataset_is_inspected_and_trained_on_and_its_version_survives_it(
    shared: Shared, client: Client, tmp_path: Path
) -> None:
    created = client.datasets.create(archive(tmp_path / "a.zip", 12), name="twelve")
    dataset = client.datasets.wait(created.id, timeout_s=300)

    assert (dataset.status, dataset.found.pictures, dataset.found.formats) == ("ready", 12, {"PNG": 12})
    assert Image.open(io.BytesIO(client.datasets.contact_sheet(dataset.id))).format == "JPEG"
    job = client.wait(
        client.train("twelve", None, "compact", TINY, dataset=dataset.id, activate="always").id, timeout_s=300
    )
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert client.prior("twelve").training["dataset"] == {"id": dataset.id, "digest": dataset.digest, "name": "twelve"}
    assert client.datasets.get(dataset.id) == dataset, "training takes nothing from it"
    client.datasets.delete(dataset.id)
    assert len(client.estimate("twelve", [drawing(104)]).images) == 1
    shared.dataset = client.datasets.create(archive(tmp_path / "b.zip", 9))


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """What the tour says to have: folders of pictures, one picture more, and labels."""
    for name, first, count in (("photos", 0, 24), ("more", 100, 12), ("labelled", 200, 12)):
        (tmp_path / name).mkdir()
        for number in range(first, first + count):
            (tmp_path / name / f"{number:03}.jpg").write_bytes(drawing(number))
    (tmp_path / "new.jpg").write_bytes(drawing(999))
    rows = [f"{number:03}.jpg,centre,{18 + number % 4},{14 + number % 3}" for number in range(200, 212)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,keypoint,x,y", *rows]) + "\n")
    return tmp_path


def test_every_command_of_the_readmes_tour_does_what_it_says(shared: Shared, garden: Path) -> None:
    """In its order, in a shell. Only what takes long is made short: the steps, and the size of the trained model."""
    assert len(COMMANDS) >= 12
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PPL_URL": shared.stack.url, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        short = re.sub(r"--set steps=\d+", "--set steps=6", command)
        if short.startswith("ppl train mine photos"):
            short = f"{short} {SMALL}"
        if short.startswith("ppl train"):
            short = f"{short} --activate-always"  # no run of six steps is any good
        done = subprocess.run(
            ["bash", "-c", short], cwd=garden, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{short}:\n{done.stdout}{done.stderr}"
    with Image.open(garden / "sheet.jpg") as sheet, Image.open(garden / "pose.png") as pose:
        assert sheet.format == "JPEG"
        assert pose.size == (40, 32)
    assert (garden / "poses.csv").read_text().count(".jpg") == 24
    assert (garden / "mine.zip").stat().st_size > 1000


def test_documentation_and_figures_are_served(shared: Shared) -> None:
    assert httpx.get(shared.stack.docs).status_code == 200
    assert "ppl_" in httpx.get(shared.stack.url + "/metrics").text


def test_a_killed_gateway_is_restarted_and_connections_wait(shared: Shared, client: Client) -> None:
    before = shared.stack.kill_child("gateway")

    assert client.prior("cross").num_keypoints == TINY["num_keypoints"]
    assert shared.stack.child_pid("gateway") != before


def test_a_request_survives_the_death_of_its_worker(shared: Shared, client: Client) -> None:
    shared.stack.kill_child("worker-inference")

    assert len(client.estimate("cross", [drawing(103)]).images) == 1


def test_a_request_survives_a_worker_killed_during_its_batch(shared: Shared, client: Client) -> None:
    """Return whether the worker has taken the batch and neither acknowledged nor answered it."""
    assert within(120, lambda: httpx.get(shared.stack.url + "/readyz").status_code == 200)
    keys = Redis.from_url(shared.stack.redis_url)
    worker = shared.stack.child_pid("worker-inference")
    answers: list[object] = []

    def ask() -> None:
        with shared.client() as own:
            try:
                answers.append(own.estimate("cross", [drawing(n) for n in range(32)], refine_steps=10))
            except APIError as error:
                answers.append(error)

    asking = threading.Thread(target=ask)
    held = False
    try:
        asking.start()
        # stop it when it has taken the message, long before it can refine 32 pictures 10 times
        held = within(60, lambda: keys.hlen("ppl:inference:unacked") > 0, every_s=0.001)
        os.kill(worker, signal.SIGSTOP)
        assert held
        assert keys.hlen("ppl:inference:unacked") == 1
        assert keys.keys("ppl:pixels:*"), "not answered yet"
        assert not answers
    finally:
        os.kill(worker, signal.SIGKILL)
        asking.join(200)
        keys.close()
    assert not asking.is_alive()
    (answer,) = answers
    if isinstance(answer, APIError):
        assert answer.status in (503, 504)
        assert answer.code in ("timeout", "worker_unavailable")
    else:
        assert len(answer.images) == 32
    assert shared.stack.child_pid("worker-inference") != worker
    assert len(client.estimate("cross", [drawing(103)]).images) == 1


def test_a_background_estimate_survives_killed_gateway_and_worker(
    shared: Shared, client: Client, tmp_path: Path, video: Callable[..., bytes]
) -> None:
    path = tmp_path / "walk.mp4"
    path.write_bytes(video(96, size=(320, 240)))
    begun = client.estimate_async("dog", video=path, refine_steps=10)
    assert within(120, lambda: client.estimate_job(begun.id).progress.done > 0)
    shared.stack.kill_child("gateway")
    killed: list[int] = []

    def kill_worker(_: BackgroundEstimate) -> None:
        if not killed:
            killed.append(shared.stack.kill_child("worker-inference"))

    found = client.wait_estimate(begun.id, kill_worker, timeout_s=300)
    assert killed
    assert found.status == "succeeded"
    assert found.result is not None
    assert [pose.frame for pose in found.result.images] == list(range(96))
    assert found.result.errors == []


def test_a_job_continues_from_the_version_with_new_pictures(shared: Shared, client: Client) -> None:
    assert shared.job is not None
    assert shared.job.version is not None
    more = archive(shared.root / "more.zip", 12)
    begun = client.train("cross", more, settings={"steps": 4}, continue_from="active", activate="always")
    job = client.wait(begun.id, timeout_s=300)
    assert job.status is JobStatus.SUCCEEDED, job.error
    diff = client.versions.diff("cross", shared.job.version, "active")
    assert diff.matched_by == "number"
    client.aliases.put("cross", "active", shared.job.version)


def test_a_killed_valkey_is_restarted_with_its_jobs(shared: Shared, client: Client) -> None:
    assert shared.job is not None
    shared.stack.kill_child("valkey")

    assert client.wait(shared.job.id).version == shared.job.version
    assert within(120, lambda: httpx.get(shared.stack.url + "/readyz").status_code == 200)
    assert len(client.estimate("cross", [drawing(104)]).images) == 1


def test_a_training_continues_after_its_worker_was_killed(shared: Shared, client: Client) -> None:
    settings = {**TINY, "steps": 70}
    job = client.train("again", archive(shared.root / "again.zip"), "compact", settings)
    assert within(300, lambda: client.job(job.id).progress.step > 20)
    shared.stack.kill_child("worker-training")
    assert client.job(job.id).status is JobStatus.RUNNING
    job = client.wait(job.id, poll_s=0.5, timeout_s=300)

    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.progress.step == 70


def test_a_killed_stack_leaves_no_process_and_loses_no_data(shared: Shared) -> None:
    assert shared.job is not None
    assert shared.job.version is not None
    names = ("valkey", "worker-inference", "worker-training", "gateway")
    pids = [shared.stack.child_pid(name) for name in names]

    shared.stack.end(signal.SIGKILL)

    assert within(60, lambda: not any(running(pid) for pid in pids))
    shared.restart()
    with shared.client() as client:
        assert client.job(shared.job.id) == shared.job
        assert client.prior("cross").version == shared.job.version
        assert shared.dataset is not None
        assert client.datasets.wait(shared.dataset.id, timeout_s=300).found.pictures == 9
        assert len(client.estimate("cross", [drawing(105)], version=shared.job.version).images) == 1


def test_a_second_stack_with_the_same_data_is_refused(shared: Shared) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-root", str(shared.stack.data_root)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)

    assert done.returncode == 1
    assert f"process {shared.stack.process.pid}" in done.stderr


def test_sigterm_stops_everything_in_order(shared: Shared) -> None:
    names = ("valkey", "worker-inference", "worker-training", "gateway")
    pids = [shared.stack.child_pid(name) for name in names]

    assert shared.stack.end() == 0
    assert not any(running(pid) for pid in pids)
    logs = shared.stack.data_root / "logs"
    assert "Finished server process" in (logs / "gateway.log").read_text()
    assert "ready to exit" in (logs / "valkey.log").read_text()

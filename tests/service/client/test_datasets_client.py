"""Client and commands on datasets, against a real gateway and the worker's real inspector."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import APIError, Client, InputError
from service.client.types import DatasetStatus
from tests.support.arena import arena_frame, encode_film, walk
from tests.support.cli_process import CommandLine
from tests.support.live_gateway import live_gateway_and_inspector


@pytest.fixture
def url(make_settings: Callable[..., Any]) -> Iterator[str]:
    with live_gateway_and_inspector(make_settings()) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def ppl(url: str, tmp_path: Path, command_line: CommandLine) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return command_line.run(*arguments, cwd=tmp_path, PPL_URL=url)

    return run


@pytest.fixture
def photos(tmp_path: Path, make_picture: Callable[..., bytes]) -> Path:
    """A folder of five pictures, two of them the same, and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(make_picture(90 + 10 * number, 70))
    (folder / "twin.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"x")
    return folder


def test_folder_is_sent_once_and_trained_from_twice(client: Client, photos: Path) -> None:
    created = client.datasets.create(photos, name="garden")
    seen = []
    dataset = client.datasets.wait(created.id, seen.append, timeout_s=60)

    assert (dataset.status, dataset.name, created.already_there) == (DatasetStatus.READY, "garden", False)
    assert (dataset.found.pictures, dataset.found.skipped, dataset.found.duplicates) == (5, 1, 1)
    assert seen[-1] == dataset
    sheet = Image.open(io.BytesIO(client.datasets.contact_sheet(dataset.id)))
    assert sheet.format == "JPEG"
    pictures = list(client.datasets.pictures(dataset.id))
    assert [(it.number, Path(it.name).name) for it in pictures] == list(enumerate(sorted(os.listdir(photos))))
    second = Image.open(io.BytesIO(client.datasets.picture(dataset.id, 1)))
    assert (second.format, second.size) == ("JPEG", (100, 70))
    for number, code in ((pictures[-1].number + 1, "unknown_picture"), (4, "not_an_image")):
        with pytest.raises(APIError) as missing:
            client.datasets.picture(dataset.id, number)
        assert missing.value.code == code
    jobs = [client.train(category, dataset=dataset.id, settings={"steps": 20}) for category in ("bird", "owl")]
    assert [job.dataset and job.dataset.id for job in jobs] == [dataset.id] * 2
    assert jobs[0].settings["steps"] == 20
    with pytest.raises(APIError) as refused:
        client.datasets.delete(dataset.id)
    assert (refused.value.status, refused.value.code) == (409, "dataset_in_use")
    for job in jobs:
        client.cancel(job.id)
    client.datasets.delete(dataset.id)
    assert list(client.datasets.list()) == []


def test_pictures_without_one_place_are_warned_of(
    client: Client, tmp_path: Path, ppl: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(50):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(folder / f"{number}.png")
    said = ppl("datasets", "create", folder).stdout
    assert "warning: the thing does not seem to be of one size and in one place" in said
    (dataset,) = client.datasets.list()
    assert [warning.code for warning in dataset.found.warnings] == ["varying_place"]


def test_same_pictures_are_the_same_dataset_whenever_they_were_written(client: Client, photos: Path) -> None:
    first = client.datasets.create(photos)
    copies = shutil.copytree(photos, photos.parent / "again" / "photos")
    for path in copies.iterdir():
        os.utime(path, (time.time() - 10_000_000,) * 2)
    again = client.datasets.create(copies)
    assert (again.id, again.already_there) == (first.id, True)


def test_several_files_and_folders_are_one_dataset(client: Client, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    shutil.copy(photos / "1.png", other)
    created = client.datasets.create([photos, str(other)], mode="clips")
    dataset = client.datasets.wait(created.id, timeout_s=60)
    assert (dataset.mode, dataset.files, dataset.found.pictures, dataset.found.clips) == ("clips", 7, 6, 1)
    with pytest.raises(InputError, match=r"two of the files are called photos/0\.png"):
        client.datasets.create([photos, photos])
    with pytest.raises(InputError, match="can't read"):
        client.datasets.create([photos, tmp_path / "none.png"])
    with pytest.raises(InputError, match="no pictures"):
        client.datasets.create([])


def test_motion_that_the_inspection_found_is_printed(client: Client, ppl: Callable[..., Any], tmp_path: Path) -> None:
    places = [(x, y) for x, y in walk(48)]
    (tmp_path / "arena.mkv").write_bytes(encode_film(arena_frame(place, n) for n, place in enumerate(places)))
    dataset = client.datasets.wait(client.datasets.create(tmp_path / "arena.mkv").id, timeout_s=60)
    motion = dataset.found.motion
    assert motion is not None
    assert (motion.sure, motion.frames, motion.found) == (True, 40, 40)
    assert [box.image for box in motion.boxes] == dataset.found.frames
    assert dataset.found.frames[0] == "arena.mkv#000003"
    assert abs(motion.boxes[0].x + motion.boxes[0].width / 2 - places[3][0]) < 4
    shown = ppl("datasets", "show", dataset.id).stdout
    assert f"found in 40 of 40 frames, {motion.side_px:g} px wide; training crops to it" in shown
    (tmp_path / "still.mkv").write_bytes(encode_film(arena_frame(None, n) for n in range(9)))
    assert (
        "nothing found surely in 9 frames (still.mkv: nothing moves)" in ppl("datasets", "create", "still.mkv").stdout
    )


def test_pictures_and_dataset_exclude_each_other(client: Client, photos: Path) -> None:
    for given in ({}, {"pictures": photos, "dataset": "0" * 24}):
        with pytest.raises(InputError, match="either pictures or a dataset"):
            client.train("bird", **given)


def test_labels_are_sent_with_a_dataset(client: Client, photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "l.csv"
    labels.write_text("image,keypoint,x,y\nnone.png,nose,1,2\n")
    with pytest.raises(APIError) as refused:
        client.datasets.create(photos, labels=labels)
    assert refused.value.code == "bad_labels"
    assert "'none.png'" in str(refused.value)


def test_commands(ppl: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    created = ppl("datasets", "create", photos, "--name", "garden")
    assert created.returncode == 0, created.stderr
    twin = "there twice: twin.png = 0.png"
    for text in ("ready", "garden", "5 (5 PNG)", "left out: broken.jpg: ", twin, "64-127 px"):
        assert text in created.stdout, created.stdout
    again = ppl("datasets", "create", photos, "--json")
    dataset = json.loads(again.stdout)
    assert (dataset["already_there"], dataset["found"]["pictures"]) == (True, 5)

    listed = ppl("datasets", "list")
    assert dataset["id"] in listed.stdout
    assert json.loads(ppl("datasets", "list", "--json").stdout)["items"][0]["id"] == dataset["id"]
    assert "median" in ppl("datasets", "show", dataset["id"]).stdout
    written = ppl("datasets", "sheet", dataset["id"], "--out", "sheet.jpg")
    assert "written: sheet.jpg" in written.stdout
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width > 500

    job = ppl("train", "bird", "--dataset", dataset["id"], "--set", "steps=20")
    assert (job.returncode, f"dataset {dataset['id']}  garden" in job.stdout) == (0, True), job.stderr
    refused = ppl("datasets", "delete", dataset["id"], "--json")
    problem = json.loads(refused.stderr)
    assert (refused.returncode, problem["code"]) == (1, "dataset_in_use")
    ppl("cancel", problem["jobs"][0])
    assert f"deleted: dataset {dataset['id']}" in ppl("datasets", "delete", dataset["id"]).stdout
    assert "no datasets yet" in ppl("datasets", "list").stdout
    neither = ppl("train", "bird")
    assert (neither.returncode, "either pictures or a dataset" in neither.stderr) == (1, True)


def test_create_fails_if_nothing_is_usable(ppl: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    done = ppl("datasets", "create", folder)
    assert (done.returncode, "nothing in the dataset can be read" in done.stdout) == (1, True), done.stderr


def test_control_characters_in_file_names_are_replaced(client: Client, ppl, tmp_path: Path) -> None:
    member = "\x1b]0;title\x07\x9b2J.png"
    archive = tmp_path / "pictures\x1b[2J.zip"
    with zipfile.ZipFile(archive, "w") as file:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32)).save(buffer, "PNG")
        file.writestr("good.png", buffer.getvalue())
        file.writestr(member, b"no picture")
    dataset = client.datasets.wait(client.datasets.create(archive).id)
    assert (dataset.name, dataset.found.skipped_files[0].name) == (archive.name, member)
    for arguments in (("list",), ("show", dataset.id)):
        done = ppl("datasets", *arguments)
        assert done.returncode == 0, done.stderr
        assert "pictures\N{REPLACEMENT CHARACTER}[2J.zip" in done.stdout
        assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout)
    assert "\N{REPLACEMENT CHARACTER}2J.png" in done.stdout

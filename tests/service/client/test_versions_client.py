"""Client and commands on versions, against a real gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import APIError, Client, InputError
from service.contract.versions.store import VersionStore
from service.versions.samples import install_samples
from tests.support.cli_process import CommandLine
from tests.support.live_gateway import live_gateway

OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"


@pytest.fixture
def url(make_settings: Callable[..., Any], publish: Callable[..., str]) -> Iterator[str]:
    publish("dog", OLD)
    publish("dog", NEW)
    with live_gateway(make_settings()) as url:
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


def test_aliases_are_moved_and_versions_deleted(client: Client) -> None:
    assert [(entry.alias, entry.version) for entry in client.aliases.list("dog")] == [("active", NEW)]
    assert client.aliases.put("dog", "champion", "active").version == NEW
    assert client.aliases.put("dog", "active", OLD).version == OLD
    assert client.prior("dog").version == OLD
    assert client.prior("dog", "champion").version == NEW
    with pytest.raises(APIError) as caught:
        client.aliases.put("dog", "champion", OLD, expected=OLD)
    assert caught.value.status == 412
    with pytest.raises(APIError) as caught:
        client.versions.delete("dog", NEW)
    assert (caught.value.status, caught.value.code) == (409, "version_in_use")
    client.aliases.delete("dog", "champion")
    client.versions.delete("dog", NEW)
    assert [(entry.version, entry.aliases) for entry in client.versions.list("dog")] == [(OLD, ["active"])]


def test_commands_move_aliases_and_delete_versions(ppl: Any) -> None:
    moved = ppl("aliases", "set", "dog", "active", OLD, "--expected", NEW)
    assert (moved.returncode, moved.stdout) == (0, f"dog: active -> {OLD}\n"), moved.stderr
    refused = ppl("aliases", "set", "dog", "active", OLD, "--expected", NEW, "--json")
    assert json.loads(refused.stderr)["code"] == "precondition_failed"
    assert json.loads(ppl("aliases", "list", "dog", "--json").stdout)["items"][0]["version"] == OLD
    assert ppl("versions", "delete", "dog", NEW).returncode == 0
    listed = ppl("versions", "list", "dog").stdout.splitlines()
    assert len(listed) == 2
    assert listed[1].split() == [OLD, "2026-01-01", "00:00", "compact", "active"]


def test_keypoints_are_named_by_client_and_command(client: Client, ppl: Any) -> None:
    names = ["nose", "neck", "tail", "left paw", "right paw"]
    assert client.name_keypoints("dog", names).names == names
    assert client.name_keypoints("dog", names[::-1]).names == names[::-1]
    assert client.prior("dog").keypoint_names == names[::-1]
    done = ppl("names", "dog", *names, "--version", OLD)
    assert done.returncode == 0, done.stderr
    assert "3  left paw" in done.stdout
    assert json.loads(ppl("names", "dog", "--json").stdout) == {"category": "dog", "version": NEW, "names": names[::-1]}
    assert "5 keypoints" in ppl("names", "dog", "nose").stderr


def test_landmarks_by_client_and_command(client: Client, ppl: Any, make_picture: Any, tmp_path: Path) -> None:
    folder, rows = tmp_path / "photos", ["image,keypoint,x,y"]
    (folder / "sub").mkdir(parents=True)
    for number in range(8):
        name, where = f"{'sub/' if number % 2 else ''}{number}.png", (0.3 + 0.05 * number, 0.7 - 0.04 * number)
        (folder / name).write_bytes(make_picture(96, 64, where))
        rows += [f"{name},nose,{where[0] * 96},{where[1] * 64}"]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows))
    found = client.landmarks.fit("dog", "anatomy", [folder], labels)
    assert (found.images, found.landmarks) == (8, ["nose"])
    (image,) = client.estimate("dog", [folder / "0.png"], landmarks="anatomy").images
    assert image.landmarks is not None
    assert (image.landmarks[0].x, image.landmarks[0].y) == pytest.approx((0.3 * 96, 0.7 * 64), abs=2)
    assert [entry.name for entry in client.landmarks.list("dog")] == ["anatomy"]
    assert client.landmarks.get("dog", "anatomy", NEW).maps == found.maps
    done = ppl("landmarks", "fit", "dog", "again", folder, "--labels", labels, "--version", OLD)
    assert done.returncode == 0, done.stderr
    assert "fitted on 8 pictures" in done.stdout
    assert "nose" in ppl("estimate", "dog", folder / "0.png", "--landmarks", "again", "--version", OLD).stdout
    assert ppl("landmarks", "list", "dog").stdout.splitlines()[1].split()[:3] == ["anatomy", "1", "8"]
    assert json.loads(ppl("landmarks", "show", "dog", "anatomy", "--json").stdout)["strength"] == found.strength
    assert ppl("landmarks", "delete", "dog", "anatomy").returncode == 0
    assert list(client.landmarks.list("dog")) == []
    client.landmarks.delete("dog", "again", OLD)


def test_sample_version_is_exported_and_imported_by_client_and_command(
    client: Client, ppl: Any, data_root: Path, tmp_path: Path
) -> None:
    client.versions.delete("dog", OLD)
    install_samples(VersionStore(data_root.parent / "samples"))
    shutil.copytree(data_root.parent / "samples" / "categories" / "dog", data_root / "categories" / "terrier")
    done = ppl("versions", "export", "terrier")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("terrier-*.zip")
    assert file.name in done.stdout
    entry = client.versions.import_file("dog", file)
    assert (entry.active, entry.version) == (False, client.prior("terrier").version)
    brought = ppl("versions", "import", "hound", file, "--json")
    assert json.loads(brought.stdout)["active"] is True
    again = client.versions.export("hound", "active", tmp_path / "again.zip")
    assert zipfile.is_zipfile(again)
    refused = ppl("versions", "import", "hound", file)
    assert refused.returncode == 1
    assert "version_exists" in refused.stderr
    with pytest.raises(APIError):
        client.versions.export("hound", "nosuch", tmp_path / "never.zip")
    assert not list(tmp_path.glob("*never*"))
    with pytest.raises(InputError):
        client.versions.export("hound", "active", tmp_path / "no" / "such.zip")


def test_diff_by_client_and_command(client: Client, ppl: Any) -> None:
    found = client.versions.diff("dog", OLD, strong=0.3)
    assert (found.from_version, found.to_version, found.matched_by, found.strong) == (OLD, NEW, "position", 0.3)
    assert client.versions.diff("dog", OLD, NEW, match="number").matched_by == "number"
    said = ppl("versions", "diff", "dog", OLD).stdout
    assert "keypoints matched by position" in said
    assert "gained links, at least 0.25 of the strongest: none" in said
    assert json.loads(ppl("versions", "diff", "dog", OLD, "active", "--json").stdout)["lost_keypoints"] == []

"""``ppl evaluate`` of a version of rotated pictures finds headings as an estimate does: against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.cli.evaluation import evaluate_category
from service.cli.squares import read_squares
from service.client import Client, InputError
from service.contract.durable_files import write_json
from service.contract.messages import BatchReply
from tests.support.live_gateway import live_gateway

PLACES = [(50 + 14 * np.sin(turn), 40 - 14 * np.cos(turn)) for turn in np.radians(np.arange(0, 360, 30))]
BOXES = [(27, 22, 44, 44), *[(28 + n % 3, 19, 44, 44) for n in range(1, 12)]]


class Above:
    """A model that takes the thing for present where its disc is in the upper half; it notes what it found."""

    def __init__(self) -> None:
        self.keypoints: list[np.ndarray] = []

    def __call__(self, reply: BatchReply) -> None:
        assert reply.keypoints is not None
        assert reply.presences is not None
        reply.presences[:] = 1 / (1 + np.exp(12 * reply.keypoints[:, 0, 1]))
        self.keypoints.extend(np.array(reply.keypoints))

    def take(self, last: int) -> np.ndarray:
        """Return the last keypoints found and forget all."""
        found, self.keypoints = np.array(self.keypoints[-last:]), []
        return found


@pytest.fixture
def above() -> Above:
    return Above()


@pytest.fixture
def url(make_settings, publish, data_root: Path, above: Above) -> Iterator[str]:
    folder = data_root / "categories" / "dog" / "versions" / publish("dog")
    info, config = (json.loads((folder / name).read_text()) for name in ("version.json", "config.json"))
    config |= {"align": "heading", "locate": "off"}
    write_json(folder / "config.json", config)
    write_json(folder / "version.json", {**info, "settings": config})
    with live_gateway(make_settings(), above) as address:
        yield address


@pytest.fixture
def photos(tmp_path: Path, make_picture: Callable[..., bytes]) -> list[Path]:
    """Write twelve pictures with a disc, and the positions of the discs in labels.csv."""
    folder, rows = tmp_path / "photos", ["image,keypoint,x,y"]
    folder.mkdir()
    for number, (x, y) in enumerate(PLACES):
        (folder / f"{number:02}.png").write_bytes(make_picture(100, 80, (x / 100, y / 80)))
        rows.append(f"{number:02}.png,spot,{x},{y}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return sorted(folder.iterdir())


def write_boxes(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["image,x,y,width,height,angle", *rows]))
    return path


def test_pictures_without_an_angle_are_seen_as_an_estimate_sees_them(
    url: str, photos: list[Path], tmp_path: Path, above: Above
) -> None:
    rows = [f"{n:02}.png,{','.join(map(str, box))},{90 if n == 3 else ''}" for n, box in enumerate(BOXES)]
    boxes, labels, progress = write_boxes(tmp_path / "boxes.csv", rows), tmp_path / "labels.csv", list[Any]()
    with Client(url) as client:
        for sent in (boxes, None):
            answer = client.estimate("dog", photos, boxes=sent)
            estimated = above.take(last=12)
            turned = [image.region.angle for image in answer.images if image.region]
            assert len(set(turned)) > 6
            found = evaluate_category(
                client, "dog", photos, labels, boxes=sent, on_done=lambda *counts: progress.append(counts)
            )
            assert (found["images"], found["skipped_files"]) == (12, [])
            count = (24 + 1) * (11 if sent else 12) + 12
            assert len(above.keypoints) == count, "known angles are not tried"
            np.testing.assert_array_equal(above.take(last=12), estimated)
            assert (estimated[:, 0, 1] < -0.1).all()
            assert found["scores"]["headline"]["error_percent"] < 1
            assert progress[-1] == ((23, 23) if sent else (24, 24))
        upright = evaluate_category(client, "dog", photos, labels, align="off")
        assert upright["images"] == len(above.keypoints) == 12


def test_pictures_that_an_estimate_refuses_are_left_out_by_name(url: str, photos: list[Path], tmp_path: Path) -> None:
    rows = [f"{n:02}.png,{','.join(map(str, box))}," for n, box in enumerate(BOXES)]
    rows[5] = "05.png,300,300,40,40,"
    boxes, labels = write_boxes(tmp_path / "boxes.csv", rows), tmp_path / "labels.csv"
    with Client(url) as client:
        found = evaluate_category(client, "dog", photos, labels, boxes=boxes)
        assert found["images"] == 11
        ((name, reason),) = [tuple(item.values()) for item in found["skipped_files"]]
        assert name == "05.png"
        assert "lies outside of the picture" in reason
        write_boxes(boxes, [f"{n:02}.png,300,300,40,40," for n in range(12)])
        with pytest.raises(InputError, match=r"no picture could be read; 00.png: .* lies outside of the picture"):
            evaluate_category(client, "dog", photos, labels, boxes=boxes)


def test_labels_are_checked_before_a_heading_is_sought(
    url: str, photos: list[Path], tmp_path: Path, above: Above
) -> None:
    (tmp_path / "other.csv").write_text("image,keypoint,x,y\nelsewhere.png,nose,3,4\n")
    with Client(url) as client, pytest.raises(InputError, match="elsewhere"):
        evaluate_category(client, "dog", photos, tmp_path / "other.csv")
    assert above.keypoints == []


def test_pictures_of_no_fixed_camera_are_taken_whole_and_frames_are_not_tried(
    tmp_path: Path, video: Callable[..., bytes]
) -> None:
    rng, paths = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(9)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(path)
    squares = read_squares(paths, 32, locate="auto", align="heading", tries=True)
    assert squares.names == list(squares.undirected) == [path.name for path in paths]
    assert {found.box for found in squares.undirected.values()} == {(0, 0, 100, 80)}
    (tmp_path / "walk.mp4").write_bytes(video(6))
    with pytest.raises(InputError, match="the heading of the thing in it is not known"):
        read_squares([tmp_path / "walk.mp4"], 32, locate="auto", align="heading", tries=True)

"""``ppl evaluate`` against a small server that finds bright spots; the scoring is real."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from PIL import Image

from service.cli.evaluation import evaluate_category
from service.cli.squares import read_squares
from service.client import Client, InputError
from service.contract.media.fitting import Frame
from tests.support.api_double import TIMING, ApiDouble, serving
from tests.support.arena import arena_frame, walk
from tests.support.cli_process import ROOT, CommandLine
from tests.support.tiffs import tiff_of

SIDE = 32


class Seer(ApiDouble):
    """Answers /estimate with four points on the line from the red to the green spot of each picture.

    Attributes:
        sizes: of all received pictures.
        refine_steps: of all received requests.
        method, mode: of the version.
        links: of its prior.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, int]] = set()
        self.refine_steps: list[int] = []
        self.method, self.mode = "ppl", "stills"
        self.links = [{"i": 0, "j": 1, "weight": 1.0}]

    def _route(self) -> None:
        self.settings: dict[str, Any] = {"image_size": SIDE}

        @self.app.get("/priors/{category}")
        async def prior(category: str) -> Any:
            return {
                "category": category,
                "version": "v1",
                "num_keypoints": 4,
                "keypoint_names": None,
                "keypoint_prior": [[-0.3, 0], [-0.1, 0], [0.1, 0], [0.3, 0]],
                "connectivity_prior": [[self._weight(i, j) for j in range(4)] for i in range(4)],
                "links": self.links,
                "link_width": 0.001,
                "method": self.method,
                "mode": self.mode,
                "settings": self.settings,
                "training": {},
            }

        @self.app.post("/estimate")
        async def estimate(request: Request) -> Any:
            form = await self._note(request)
            steps = int(form["refine_steps"][0])
            self.refine_steps.append(steps)
            images = [self._seen(index, data, steps) for index, (_, data) in enumerate(form["images"])]
            return {"category": form["category"][0], "version": "v1", "images": images, "timing_ms": TIMING}

    def _weight(self, i: int, j: int) -> float:
        return sum(float(link["weight"]) for link in self.links if {link["i"], link["j"]} == {i, j})

    def _seen(self, index: int, data: bytes, steps: int) -> dict[str, Any]:
        image = Image.open(io.BytesIO(data))
        self.sizes.add(image.size)
        light = np.asarray(image, dtype=np.float64)[..., :2].clip(150) - 150 + 1e-9
        ys, xs = np.mgrid[: image.height, : image.width]
        mass = light.sum((0, 1))
        red, green = (np.array([(light[..., c] * axis).sum() / mass[c] for axis in (xs, ys)]) for c in (0, 1))
        places = [red + (green - red) * share / 3 for share in range(4)]
        points = [{"x": float(x), "y": float(y)} for x, y in places]
        keypoints = [{"id": number, "score": 1.0, **point} for number, point in enumerate(points)]
        return {
            "index": index,
            "width": image.width,
            "height": image.height,
            "keypoints": keypoints,
            "links": [],
            "trajectory": [points] * (steps + 1),
        }


@pytest.fixture
def api() -> Iterator[Seer]:
    with serving(Seer()) as api:
        assert isinstance(api, Seer)
        yield api


def drawn(places: np.ndarray) -> bytes:
    """Draw a picture of 96 x 64 pixels with a red and a green spot at these positions in pixels."""
    ys, xs = np.mgrid[:64, :96]
    channels = [np.where(np.hypot(xs - x, ys - y) < 5, 255, 0) for x, y in places]
    file = io.BytesIO()
    Image.fromarray(np.stack([*channels, np.zeros_like(xs)], axis=-1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """Write a folder of pictures, and a CSV of their labels: the two spots in pixels."""
    rng = np.random.default_rng(3)
    folder, rows = tmp_path / "photos", ["image,keypoint,x,y,split"]
    (folder / "sub").mkdir(parents=True)
    for number in range(30):
        places = rng.uniform((12, 12), (84, 52), (2, 2))
        name = f"{'sub/' if number % 2 else ''}{number:03}.png"
        (folder / name).write_bytes(drawn(places))
        split = "test" if number % 3 == 0 else "train"
        rows += [f"{name},{light},{x},{y},{split}" for light, (x, y) in zip(("red", "green"), places, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return folder, tmp_path / "labels.csv"


def test_poses_are_scored_by_every_protocol(api: Seer, photos: tuple[Path, Path]) -> None:
    with Client(api.url) as client:
        found = evaluate_category(client, "bird", [photos[0]], photos[1])
    assert (found["version"], found["images"], found["skipped_files"]) == ("v1", 30, [])
    scores = found["scores"]
    assert (scores["train_images"], scores["heldout_images"], scores["split_from"]) == (20, 10, "labels")
    assert scores["headline"]["error_percent"] < 1.5  # it finds spots to about a pixel of 32
    assert scores["headline"]["mean_pose_percent"] > 10
    assert "summed_error" in scores["summed"]
    assert api.sizes == {(SIDE, SIDE)}
    assert set(api.refine_steps) == {0}


def test_pictures_labels_and_boxes_come_through_pipes(api: Seer, photos: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos[0].rglob("*.png"):
            archive.write(path, path.relative_to(photos[0]))
    names = sorted({row.partition(",")[0] for row in photos[1].read_text().splitlines()[1:]})
    boxes = "\n".join(["image,x,y,width,height", *(f"{name},0,0,96,64" for name in names)])
    (tmp_path / "boxes.csv").write_text(boxes)
    ppl = f"{sys.executable} -m service.cli evaluate bird - --labels <(cat labels.csv) --boxes <(cat boxes.csv) --json"
    command = ["bash", "-c", f"cat photos.zip | {ppl}"]
    environment = {**os.environ, "PPL_URL": api.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with Client(api.url) as client:
        by_name = evaluate_category(client, "bird", [photos[0]], photos[1], boxes=tmp_path / "boxes.csv")
    piped = json.loads(done.stdout)
    assert piped["images"] == by_name["images"] == 30
    assert piped["scores"]["headline"] == pytest.approx(by_name["scores"]["headline"])


def test_labels_of_a_picture_with_two_boxes_are_refused(api: Seer, photos: tuple[Path, Path], tmp_path: Path) -> None:
    names = sorted({row.partition(",")[0] for row in photos[1].read_text().splitlines()[1:]})
    rows = [f"{name},0,0,96,64" for name in names]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(["image,x,y,width,height", *rows, "000.png,5,5,60,50"]))
    with Client(api.url) as client:
        with pytest.raises(InputError, match=r"'000.png' has several boxes, and one labelled animal; leave the box of"):
            evaluate_category(client, "bird", [photos[0]], photos[1], boxes=boxes)
        boxes.write_text("\n".join(["image,x,y,width,height", *rows]))
        assert evaluate_category(client, "bird", [photos[0]], photos[1], boxes=boxes)["images"] == 30


def test_pictures_whose_box_lies_outside_are_left_out_and_named(photos: tuple[Path, Path], tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,width,height\n000.png,300,5,40,40\n002.png,1,1,9000,50\n004.png,5,5,40,40\n")
    found = read_squares([photos[0]], SIDE, boxes=boxes)
    assert found.names == ["004.png"]
    reasons = {item["name"]: item["reason"] for item in found.skipped}
    assert reasons["000.png"].startswith("the box [300.0, 5.0, 40.0, 40.0] lies outside of the picture")
    assert "is larger than 8 times the longer side of the picture" in reasons["002.png"]
    assert reasons["006.png"] == "no box of it came"


def test_boxes_of_some_frames_correct_motion_as_in_training(tmp_path: Path) -> None:
    for number, (x, y) in enumerate(walk(12)):
        arena_frame((x, y), number).save(tmp_path / f"{number:02}.png")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,width,height\n03.png,7,9,50,50\n05.png,,,,\n")
    found = read_squares([tmp_path], SIDE, locate="auto")
    filled = read_squares([tmp_path], SIDE, boxes=boxes, locate="auto")
    assert filled.names == [name for name in found.names if name != "05.png"]
    frames = dict(zip(found.names, found.frames, strict=True)) | {"03.png": Frame(7, 9, 50)}
    assert filled.frames == [frames[name] for name in filled.names]
    assert read_squares([tmp_path], SIDE, boxes=boxes).names == ["03.png"]
    boxes.write_text("image,x,y,width,height,animal\n03.png,7,9,50,50,0\n")
    assert read_squares([tmp_path], SIDE, boxes=boxes, locate="auto").names == ["03.png"]
    with pytest.raises(InputError, match="the boxes number animals"):
        read_squares([tmp_path], SIDE, boxes=boxes, locate="motion")


def test_turned_boxes_are_scored_in_their_squares(api: Seer, photos: tuple[Path, Path], tmp_path: Path) -> None:
    """And the squares, which are turned already, are estimated as they are, also of versions that say nothing of it."""
    names = sorted({row.partition(",")[0] for row in photos[1].read_text().splitlines()[1:]})
    rows = [f"{name},0,-16,96,96,{7 * number if number else ''}" for number, name in enumerate(names)]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(["image,x,y,width,height,angle", *rows]))
    with Client(api.url) as client:
        found = evaluate_category(client, "bird", [photos[0]], photos[1], boxes=boxes, align="heading")
    (skipped,) = found["skipped_files"]
    assert skipped["name"].endswith(names[0])
    assert "the heading of the thing in it is not known" in skipped["reason"]
    assert found["images"] == 29
    assert found["scores"]["headline"]["error_percent"] < 1.5
    assert not any("align" in form for form in api.forms)
    api.settings["align"] = "heading"
    with Client(api.url) as client:
        assert evaluate_category(client, "bird", [photos[0]], photos[1], boxes=boxes)["scores"] == found["scores"]
    assert api.forms[-1]["align"] == ["off"]


def test_labels_of_smaller_pictures_are_scaled_on_request(api: Seer, photos: tuple[Path, Path], tmp_path: Path) -> None:
    header, *rows = photos[1].read_text().splitlines()
    smaller = [f"{header},width,height"]
    for row in rows:
        name, light, x, y, split = row.split(",")
        half = [(float(value) + 0.5) / 2 - 0.5 for value in (x, y)]
        smaller.append(f"{name},{light},{half[0]},{half[1]},{split},48,32")
    (tmp_path / "small.csv").write_text("\n".join(smaller))
    with Client(api.url) as client:
        exact = evaluate_category(client, "bird", [photos[0]], photos[1])["scores"]
        with pytest.raises(InputError, match=r"48 x 32 pixels, .* came has 96 x 64; .* labels_fit=scale"):
            evaluate_category(client, "bird", [photos[0]], tmp_path / "small.csv")
        scaled = evaluate_category(client, "bird", [photos[0]], tmp_path / "small.csv", labels_fit="scale")["scores"]
    assert scaled["headline"]["error_percent"] == pytest.approx(exact["headline"]["error_percent"], abs=1e-6)


def test_occlusion_hides_parts_of_the_scored_pictures(api: Seer, photos: tuple[Path, Path]) -> None:
    progress = []
    with Client(api.url) as client:
        found = evaluate_category(
            client,
            "bird",
            [photos[0]],
            photos[1],
            occlusion=True,
            refine_steps=2,
            on_done=lambda done, total: progress.append((done, total)),
        )
    rows = {(row["kind"], row["level"]): row["errors"] for row in found["occlusion"]["rows"]}
    assert all(len(errors) == 3 for errors in rows.values())
    clean = rows.pop(("clean", 0.0))
    assert clean[0] == pytest.approx(found["scores"]["headline"]["error_percent"], abs=1e-3)
    assert {kind for kind, _ in rows} == {"random", "centre"}
    assert rows["random", 0.4][0] > clean[0]
    assert rows["centre", 12.0][0] > 5 > clean[0]
    assert set(api.refine_steps) == {0, 2}
    assert progress[-1][0] == progress[-1][1] == 30 + 10 * (len(rows) + 1)


def test_unusable_labels_and_options_are_refused_before_any_estimate(
    api: Seer, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_text("image,keypoint,x,y\nelsewhere.png,nose,3,4\n")
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "other.csv", {}, "elsewhere.png"),
        (tmp_path / "absent.csv", {}, "absent.csv"),
        (photos[1], {"skeleton": True}, "the labels define no skeleton"),
        (photos[1], {"occlusion": True, "plot": tmp_path / "absent" / "o.png"}, "there is no folder"),
        (photos[1], {"plot": tmp_path / "o.png"}, "--occlusion"),
    ]
    with Client(api.url) as client:
        for labels, wanted, message in wrong:
            with pytest.raises(InputError, match=message):
                evaluate_category(client, "bird", [photos[0]], labels, **wanted)
    assert api.refine_steps == []


def test_version_without_memory_is_scored_unrefined(api: Seer, photos: tuple[Path, Path]) -> None:
    api.method = "autolink"
    with Client(api.url) as client:
        found = evaluate_category(client, "bird", [photos[0]], photos[1], occlusion=True)
        assert {len(row["errors"]) for row in found["occlusion"]["rows"]} == {1}
        assert set(api.refine_steps) == {0}
        with pytest.raises(InputError, match=r"refine_steps is 2, and version v1 of bird .* autolink.* no memory"):
            evaluate_category(client, "bird", [photos[0]], photos[1], occlusion=True, refine_steps=2)


def test_pictures_of_a_version_of_clips_are_held_out_by_folders(api: Seer, photos: tuple[Path, Path]) -> None:
    api.mode = "clips"
    rows = photos[1].read_text().splitlines()
    photos[1].write_text("\n".join(row.rpartition(",")[0] for row in rows))  # without the split
    with Client(api.url) as client:
        scores = evaluate_category(client, "bird", [photos[0]], photos[1])["scores"]
    assert (scores["split_from"], scores["train_images"], scores["heldout_images"]) == ("names", 15, 15)


def skeletal(csv: Path) -> dict[str, Any]:
    """Return the labels of :func:`photos` as COCO, with a limb between the spots."""
    rows = [line.split(",") for line in csv.read_text().splitlines()[1:]]
    places = {(name, light): [float(x), float(y), 2] for name, light, x, y, _ in rows}
    names = list(dict.fromkeys(name for name, _ in places))
    return {
        "images": [{"id": n, "file_name": name, "width": 96, "height": 64} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "keypoints": [*places[name, "red"], *places[name, "green"]]} for n, name in enumerate(names)
        ],
        "categories": [{"id": 1, "keypoints": ["red", "green"], "skeleton": [[1, 2]]}],
    }


def test_prior_is_compared_with_the_skeleton_of_the_labels(
    api: Seer, ppl: Any, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    api.links = [{"i": 0, "j": 3, "weight": 1.0}, {"i": 0, "j": 1, "weight": 0.1}]
    (tmp_path / "coco.json").write_text(json.dumps(skeletal(photos[1])))
    with Client(api.url) as client:
        found = evaluate_category(client, "bird", [photos[0]], tmp_path / "coco.json", skeleton=True)
    scores = found["skeleton"]
    assert [link[:3] for link in scores["strong_links"]] == [[0, 3, 1.0]]
    assert (scores["matched"]["precision"], scores["matched"]["recall"]) == (1, 1)
    assert scores["geometric"]["recall"] > 0.99
    done = ppl("bird", photos[0], "--labels", "coco.json", "--skeleton")
    assert done.returncode == 0, done.stderr
    assert "of 1 strong links" in done.stdout
    assert "Procrustes" in done.stdout


def test_pictures_may_be_in_an_archive_or_single_files(photos: tuple[Path, Path], tmp_path: Path) -> None:
    names = ["000.png", "sub/001.png"]
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name in names:
            archive.write(photos[0] / name, name)
        archive.writestr("broken.png", b"no picture")
    packed = read_squares([tmp_path / "some.zip"], SIDE)
    single = read_squares([photos[0] / name for name in names], SIDE)
    assert (packed.names, single.names) == (names, ["000.png", "001.png"])
    assert packed.sizes == [(96, 64)] * 2
    np.testing.assert_array_equal(packed.pixels, single.pixels)
    assert [item["name"] for item in packed.skipped] == ["broken.png"]


def test_videos_are_read_as_a_training_reads_them(video: Any, tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(video(6))
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(tmp_path / "walk.mp4", "in/walk.mp4")
        archive.writestr("broken.mp4", b"no video")
    alone = read_squares([tmp_path / "walk.mp4"], SIDE, frames=3)
    assert alone.names == ["walk.mp4#000001", "walk.mp4#000003", "walk.mp4#000005"]
    assert alone.videos == dict.fromkeys(alone.names, "walk.mp4")
    packed = read_squares([tmp_path / "some.zip"], SIDE, frames=3)
    assert packed.names == [f"in/{name}" for name in alone.names]
    np.testing.assert_array_equal(packed.pixels, alone.pixels)
    assert [item["name"] for item in packed.skipped] == ["broken.mp4"]


def test_boxes_and_labels_of_frames_that_are_not_evaluated_are_counted(
    api: Seer, ppl: Any, video: Any, tmp_path: Path
) -> None:
    api.settings["frames_per_clip"] = 4  # frames 1, 3, 5 and 7 of 8
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video(8))
    rows = [f"a.mp4#{n:06d},red,{3 * n + 2},{n + 5},{'test' if n > 4 else 'train'}" for n in range(8)]
    (tmp_path / "frames.csv").write_text("\n".join(["image,keypoint,x,y,split", *rows]))
    boxes = [f"a.mp4#{n:06d},0,0,30,30" for n in (0, 1, 2, 3, 5, 6)]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x,y,width,height", *boxes]))
    done = ppl("bird", "videos", "--labels", "frames.csv", "--boxes", "boxes.csv")
    assert done.returncode == 0, done.stderr
    assert "not used: boxes of 3 pictures or frames that were not evaluated" in done.stdout
    assert "not used: labels of 5 pictures or frames that were not evaluated" in done.stdout
    wrong = ppl("bird", "videos", "--labels", "frames.csv", "--locate", "here", "--json")
    assert "locate is 'here'; it must be auto or motion or off" in json.loads(wrong.stderr)["detail"]


def test_frames_of_a_video_are_held_out_together(api: Seer, video: Any, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    rows = ["image,keypoint,x,y"]
    for name in "abc":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(video(4))
        rows += [f"{name}.mp4#{frame:06d},red,{3 * frame + 2},{frame + 5}" for frame in range(4)]
    (tmp_path / "frames.csv").write_text("\n".join(rows))
    with Client(api.url) as client:
        scores = evaluate_category(client, "bird", [tmp_path / "videos"], tmp_path / "frames.csv")["scores"]
        assert (scores["train_images"], scores["heldout_images"]) == (8, 4)
        with pytest.raises(InputError, match="all are of one clip; give a split"):
            evaluate_category(client, "bird", [tmp_path / "videos" / "a.mp4"], tmp_path / "frames.csv")


@pytest.mark.parametrize("what", ["nothing there", "no picture", "a name twice"])
def test_unusable_pictures_are_refused(photos: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    one = photos[0] / "000.png"
    paths = {"nothing there": [tmp_path / "absent"], "no picture": [tmp_path / "junk.png"], "a name twice": [one, one]}
    with pytest.raises(InputError):
        read_squares(paths[what], SIDE)


@pytest.fixture
def ppl(api: Seer, tmp_path: Path, command_line: CommandLine) -> Any:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return command_line.run("evaluate", *arguments, cwd=tmp_path, PPL_URL=api.url)

    return run


def test_command_prints_a_table_or_json(ppl: Any, photos: tuple[Path, Path]) -> None:
    done = ppl("bird", photos[0], "--labels", photos[1], "--occlusion", "--refine-steps", 1)
    assert done.returncode == 0, done.stderr
    assert "headline" in done.stdout
    assert "these errors say little" in done.stdout
    assert "1 x refined" in done.stdout
    answer = ppl("bird", photos[0], "--labels", photos[1], "--json")
    assert answer.stderr == ""
    assert json.loads(answer.stdout)["scores"]["heldout_images"] == 10


def test_errors_in_labels_are_reported(ppl: Any, photos: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("image,keypoint,x,y\nelsewhere.png,nose,3,4\n")
    done = ppl("bird", photos[0], "--labels", "other.csv", "--json")
    assert done.returncode == 1
    assert "elsewhere.png" in json.loads(done.stderr)["detail"]
    plotted = ppl("bird", photos[0], "--labels", photos[1], "--plot", "o.png", "--json")
    assert "--occlusion" in json.loads(plotted.stderr)["detail"]


def test_deep_pictures_of_an_upload_are_scaled_alike_and_stacks_are_clips(tmp_path: Path) -> None:
    dim, bright = (np.full((32, 32), value, np.uint16) for value in (1000, 4000))
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        for name, page in (("dim.tif", dim), ("bright.tif", bright)):
            archive.writestr(name, tiff_of(page))
    (tmp_path / "stack.tif").write_bytes(tiff_of(dim, bright))
    found = read_squares([tmp_path / "deep.zip"], SIDE)
    assert [int(square.max()) for square in found.pixels] == [round(value * 255 / 4095) for value in (1000, 4000)]
    pages = read_squares([tmp_path / "stack.tif"], SIDE)
    assert pages.names == ["stack.tif#000000", "stack.tif#000001"]
    assert set(pages.videos.values()) == {"stack.tif"}
    assert np.array_equal(np.stack(pages.pixels), np.stack(found.pixels))

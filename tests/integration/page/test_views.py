"""The inspection page in a real browser against the real stack: each view, and what is done in it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from redis import Redis

from model.config import DEFAULT_PRESET, resolve
from service.contract.jobs.progress import Pace, PaceBook
from service.runtime.settings import Settings
from tests.support.arena import BODY, encode_film, walk, walk_angles, walker_frame
from tests.support.browser import NEEDS_BROWSER, drag
from tests.support.stack_process import TINY, archive, drawing, within

pytestmark = NEEDS_BROWSER


def test_start_shows_what_was_learned(visit):
    visitor = visit()
    page = visitor.open("")
    page.get_by_role("img", name="The skeleton of dog").wait_for()

    assert page.locator("svg.skeleton .dot").count() == 16
    visitor.check("start")


def test_start_is_readable_on_a_telephone_in_the_dark(visit):
    visitor = visit(width=390, theme="dark")
    page = visitor.open("#/start")
    page.get_by_role("img", name="The skeleton of dog").wait_for()

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 27)"
    visitor.check("start-390-dark")


def test_hidden_part_of_a_sample_is_estimated_and_refined(visit):
    visitor = visit()
    page = visitor.open("#/estimate?sample")
    page.get_by_text("dog: present").wait_for()
    assert page.locator(".stage .dot").count() == 16
    assert page.locator(".thumb svg .dot").count() == 12 * 16
    visitor.check("estimate")

    first = page.get_by_role("img", name="The reconstruction before refinement")
    first.wait_for()
    assert first.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    page.get_by_role("button", name="sample5.jpg").click()  # came with others, and without its reconstructions
    first.wait_for()
    page.get_by_role("button", name="sample0.jpg").click()

    page.get_by_role("button", name="Hide a part").click()
    drag(page, (0.55, 0.3), (0.85, 0.7))
    repaired = page.get_by_text("after 5 steps", exact=True)
    repaired.wait_for()
    last = page.get_by_role("img", name="The reconstruction after 5 steps")
    after = last.get_attribute("src")

    assert "From the pose without the box" in page.locator(".card p[aria-live]").last.inner_text()
    before = page.evaluate(
        "document.querySelectorAll('.stage svg > g:last-child > g:last-child circle')[3].cx.baseVal.value"
    )
    slider = page.get_by_role("slider", name="Refinement")
    slider.fill("0")
    assert first.get_attribute("src") != after
    moved = page.evaluate(
        "document.querySelectorAll('.stage svg > g:last-child > g:last-child circle')[3].cx.baseVal.value"
    )
    assert moved != before
    black = page.evaluate(
        "(() => { const c = document.querySelector('.stage > canvas'); return [...c.getContext('2d')"
        ".getImageData(c.width * 0.7, c.height * 0.5, 1, 1).data] })()"
    )
    assert black == [0, 0, 0, 255]
    visitor.check("estimate-hidden")


def test_poses_are_downloaded_as_shown(visit):
    visitor = visit()
    page = visitor.open("#/estimate")
    page.set_input_files(
        "input[accept]", [{"name": f"{n}.png", "mimeType": "image/png", "buffer": drawing(n)} for n in range(2)]
    )
    page.locator(".stage .dot").first.wait_for()
    page.locator(".thumb svg .dot").nth(31).wait_for()

    files = {}
    for name in ("JSON", "CSV", "COCO", "Picture"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()

    assert list(files) == ["poses.json", "poses.csv", "poses.coco.json", "0.pose.png"]
    assert [image["width"] for image in json.loads(files["poses.json"])["images"]] == [40, 40]
    assert b"0.png" in files["poses.csv"]
    assert len(json.loads(files["poses.coco.json"])["annotations"]) == 2
    with Image.open(io.BytesIO(files["0.pose.png"])) as picture:
        assert picture.size == (40, 32)
    visitor.check()


def test_file_that_is_no_picture_is_named_and_spoils_no_other(visit):
    visitor = visit(width=390)
    page = visitor.open("#/estimate")
    name = "<img src=x onerror=alert(1)>.png"
    page.set_input_files(
        "input[accept]",
        [
            {"name": name, "mimeType": "image/png", "buffer": b"no picture"},
            {"name": "right.png", "mimeType": "image/png", "buffer": drawing(1)},
        ],
    )
    page.get_by_text("No pose").wait_for()
    page.get_by_role("button", name="right.png").click()
    page.locator(".stage .dot").first.wait_for()

    assert page.locator("img[src=x]").count() == 0
    assert page.get_by_role("button", name=name).get_attribute("class") == "thumb failed"
    visitor.console = [
        text for text in visitor.console if "Failed to load resource" not in text
    ]  # the picture's refusal
    visitor.check("estimate-390")


PASTE = """() => {
  const clipboardData = new DataTransfer(), canvas = new OffscreenCanvas(40, 32);
  canvas.getContext("2d").fillRect(0, 0, 40, 32);
  return canvas.convertToBlob().then((blob) => {
    clipboardData.items.add(new File([blob], "pasted.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true }));
  });
}"""


def test_picture_is_pasted_once_and_links_that_lead_nowhere_show_a_view(visit):
    visitor = visit()
    page = visitor.open("#/estimate")
    page.set_input_files("input[accept]", {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    page.get_by_role("button", name="Close").click()  # the notice that says so
    assert page.get_by_text("Drop or paste pictures or a video").is_visible()
    page.evaluate(PASTE)
    page.locator(".stage .dot").first.wait_for()
    assert page.locator(".thumb").count() == 1

    for link, heading in (("constructor", "Learn a skeleton"), ("priors/%/%2e%2e%2fdatasets", "Priors")):
        page.goto("about:blank")
        visitor.open(f"#/{link}")
        assert heading in page.get_by_role("heading", level=1).inner_text()
    visitor.open("#/priors/dog/constructor")
    page.get_by_text("Agreement with a frozen network", exact=True).wait_for()
    visitor.console = [text for text in visitor.console if "Failed to load resource" not in text]  # the video's refusal
    visitor.check()


def test_pictures_of_a_telephone_go_in_requests_that_the_server_takes(visit):
    page = visit().open("")
    sizes = [4_000_000] * 40 + [30_000_000, 60_000_000, 1, 1]
    divide = """async (sizes) => {
      const { parts } = await import(document.querySelector('[href$="/api.js"]').href);
      return [...parts(sizes, (size) => size, 1)];
    }"""
    found = page.evaluate(divide, sizes)
    assert [len(part) for part in found] == [1, 8, 8, 8, 8, 7, 1, 1, 2]
    assert [size for part in found for size in part] == sizes
    assert max(map(sum, found)) < Settings.model_fields["max_body_bytes"].default
    assert [len(part) for part in page.evaluate(divide, [1] * 40)] == [1, 32, 7]


def test_video_plays_with_its_poses_and_their_curves(visit, video):
    visitor = visit()
    page = visitor.open("#/estimate")
    clip = {"name": "walk.webm", "mimeType": "video/webm", "buffer": video(frames=12, kind="webm", size=(64, 64))}
    page.set_input_files("input[accept]", clip)
    page.get_by_text("12 frames with a pose").wait_for()
    page.locator(".stage .dot").first.wait_for()

    assert page.locator(".stage video").evaluate("video => video.videoWidth") == 64
    assert page.locator(".stage .dot").count() == 16
    assert page.locator("svg.curve").count() == 16
    with page.expect_download() as download:
        page.get_by_role("button", name="Labelled video").click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
    visitor.check("video")


def test_training_is_watched_paused_and_cancelled(visit, stack, tmp_path):
    with stack.client() as client:
        pictures = archive(tmp_path / "a.zip")
        job = client.train("cross", pictures, "compact", {**TINY, "steps": 4000, "checkpoint_every": 1000})
    visitor = visit()
    page = visitor.open(f"#/jobs/{job.id}")
    page.get_by_role("img", name="Training pictures with the poses").wait_for()
    page.get_by_text("Loss (weighted sum)").wait_for()
    page.get_by_text("steps a second").wait_for()
    visitor.check("job")

    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    page.get_by_text("It is paused.").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("It was cancelled.").wait_for()
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Jobs").click()
    page.get_by_role("link", name="cross").first.wait_for()
    # a picture may be announced just before the job is cancelled, and asked for after its files are gone
    gone = f"/train-jobs/{job.id}/preview"
    visitor.console = [text for text in visitor.console if not ("404" in text and gone in text)]
    visitor.check("jobs")


def test_all_views_are_whole_in_the_dark_and_on_a_telephone(visit):
    for width, theme in ((1280, "dark"), (390, "light")):
        visitor = visit(width, theme)
        for view in ("jobs", "priors"):
            visitor.open(f"#/{view}")
            visitor.check(f"{view}-{width}-{theme}")


def test_prior_is_read_named_and_followed_through_its_history(visit):
    visitor = visit()
    page = visitor.open("#/priors/dog")
    skeleton = page.get_by_role("img", name="The skeleton of dog: 15 links")
    skeleton.wait_for()
    page.get_by_role("slider", name="Links from").fill("60")
    few = page.get_by_role("img", name="The skeleton of dog")
    assert 0 < few.locator(".link").count() < 120
    page.get_by_role("slider", name="Links from").fill("0")
    assert few.locator(".link").count() > 100
    few.locator(".dot").first.hover()
    assert "of the strongest link" in page.locator("p.number[aria-live]").inner_text()
    last = few.locator(".dot circle").first.get_attribute("cx")
    page.get_by_role("slider", name="Training").fill("0")
    page.get_by_text("step 0", exact=True).wait_for()
    assert few.locator(".dot circle").first.get_attribute("cx") != last

    field = page.get_by_label("Name of keypoint 3", exact=True)
    field.fill("<b>left paw</b>")
    field.press("Tab")
    page.get_by_text("Keypoint 3 is now called <b>left paw</b>.").wait_for()
    assert few.locator("text").nth(3).inner_html() == "&lt;b&gt;left paw&lt;/b&gt;"
    ends = [text.evaluate("text => text.getBBox().x + text.getBBox().width") for text in few.locator("text").all()]
    assert max(ends) <= 540, "the view box ends there"
    visitor.check("prior")


def test_versions_are_compared_and_an_alias_is_moved_and_rolled_back(visit, stack, tmp_path):
    with stack.client() as client:
        exported = client.versions.export("dog", "active", tmp_path / "dog.zip")
        client.versions.import_file("hound", exported)
        job = client.wait(client.train("hound", archive(tmp_path / "b.zip"), "compact", TINY, activate=False).id)
        old = client.aliases.get("hound", "active").version
    visitor = visit()
    page = visitor.open(f"#/priors/hound?version={job.version}")
    page.get_by_label("The other version").select_option(old)
    page.get_by_text("Keypoints moved by").wait_for()
    page.get_by_role("button", name="Move here").click()
    page.get_by_role("button", name="Undo").wait_for()
    with stack.client() as client:
        assert client.aliases.get("hound", "active").version == job.version
    visitor.check("versions")

    page.get_by_role("button", name="Undo").click()
    page.get_by_text("“active” now points to").wait_for()
    page.get_by_role("button", name="Move here").wait_for()
    with stack.client() as client:
        assert client.aliases.get("hound", "active").version == old


def test_newest_version_is_shown_where_none_is_active(visit, stack, tmp_path):
    with stack.client() as client:
        exported = client.versions.export("dog", "active", tmp_path / "dog.zip")
        client.versions.import_file("resting", exported, activate=False)
    visitor = visit()
    page = visitor.open("#/priors")
    page.get_by_role("link", name="resting").get_by_text("1 version, none active").click()
    page.get_by_role("heading", name="resting").wait_for()
    page.get_by_role("img", name="skeleton").first.wait_for()
    page = visitor.open("#/estimate?category=resting")
    assert page.get_by_label("Category").input_value() == "resting"
    visitor.check()


def test_memory_is_a_wall_of_poses_and_a_bank_shows_what_it_varies(visit, stack):
    visitor = visit()
    page = visitor.open("#/priors/dog/memory")
    assert page.locator(".wall svg").count() == 12
    assert page.locator(".wall p").first.inner_text().startswith("611 pictures")
    page.get_by_role("slider", name="Bank").fill("5")
    page.get_by_role("img", name="How often each of the 16 vectors of bank 5 is used").wait_for()
    page.get_by_role("img", name="The pose with vector 0 of bank 5").wait_for()
    page.get_by_role("slider", name="Vector").fill("3")
    shown = page.get_by_role("img", name="The pose with vector 3 of bank 5").locator(".dot circle")
    with stack.client() as client:
        typical, second = (client.memory("dog", bank=5, prototype=prototype).variation for prototype in (None, 1))
    for variation, choice in ((typical, "The typical pose"), (second, "Prototype 2 (220 pictures)")):
        page.get_by_label("In which pose").select_option(choice)
        x = 500 * variation.keypoints[3][7][0]
        page.get_by_text("This bank moves keypoint").wait_for()
        assert within(20, lambda x=x: abs(float(shown.nth(7).get_attribute("cx")) - x) < 0.1)
    visitor.check("memory")


def test_landmarks_are_clicked_fitted_and_judged(visit):
    visitor = visit()
    page = visitor.open("#/priors/dog/landmarks")
    page.get_by_role("button", name="Use sample pictures").click()
    for name in ("nose", "<i>tail</i>"):
        page.get_by_label("Name of a new point").fill(name)
        page.get_by_role("button", name="Add").click()
    for number in range(6):
        page.get_by_role("button", name=f"sample{number}.jpg").click()
        page.locator(".stage").scroll_into_view_if_needed()
        box = page.locator(".stage").bounding_box()
        for x, y in ((0.85, 0.3), (0.15, 0.4)):
            page.mouse.click(box["x"] + x * box["width"] + number, box["y"] + y * box["height"])
    page.get_by_text("6 pictures with points").wait_for()
    assert page.locator(".stage text").last.inner_html() == "&lt;i&gt;tail&lt;/i&gt;"
    page.get_by_role("button", name="Fit the landmarks").click()

    page.get_by_text("Cross-validated error").wait_for()
    page.locator(".wall .stage").first.wait_for()
    assert page.get_by_role("cell", name="anatomy").is_visible()
    visitor.check("landmarks")


def test_landmarks_are_placed_on_frames_of_a_video_in_their_boxes(visit, stack, tmp_path):
    places, angles = walk(40), walk_angles(40)
    frames = [walker_frame(place, angle, n) for n, (place, angle) in enumerate(zip(places, angles, strict=True))]
    (tmp_path / "arena.mkv").write_bytes(encode_film(frames))
    with stack.client() as client:
        dataset = client.datasets.create(tmp_path / "arena.mkv")
        settings = {**TINY, "align": "heading"}
        job = client.wait(client.train("seen", dataset=dataset.id, preset="compact", settings=settings).id)
        rows = csv.DictReader(io.StringIO(client.boxes(job.id)))
        boxes = {row["image"]: [float(row[name]) for name in ("x", "y", "width", "height", "angle")] for row in rows}
    points = {"nose": 0.5, "rump": -0.5}

    def place_of(number: int, way: float) -> np.ndarray:
        ahead = np.array([np.sin(np.radians(angles[number])), -np.cos(np.radians(angles[number]))])
        return places[number] + way * BODY * ahead

    visitor = visit()
    page = visitor.open(f"#/priors/seen/landmarks?version={job.version}")
    page.get_by_text("Choose pictures or frames of a dataset").click()
    page.get_by_text("40 pictures, each with its box").wait_for()
    page.get_by_role("slider", name="Picture of the dataset").fill("10")
    page.get_by_text("arena.mkv#000010", exact=True).wait_for()
    page.get_by_role("button", name="Use this picture").click()
    page.get_by_role("button", name="arena.mkv#000010").wait_for()
    page.get_by_role("button", name="Use 10 spread over it").click()
    thumbs = page.locator(".thumb")
    assert within(60, lambda: thumbs.count() == 10), "the one that was taken is among them"
    for name in points:
        page.get_by_label("Name of a new point").fill(name)
        page.get_by_role("button", name="Add").click()
    for thumb in thumbs.all():
        thumb.click()
        number = int(thumb.get_attribute("aria-label").rpartition("#")[2])
        view = [float(value) for value in thumb.locator("svg").get_attribute("viewBox").split()]
        x, _, side, *_ = boxes[f"arena.mkv#{number:06d}"]
        assert view[0] < x + side / 2 < view[0] + view[2] <= 320, "the part of the frame around its box is shown"
        assert max(view[2:]) < 2 * side
        page.locator(".two .stage").scroll_into_view_if_needed()
        stage = page.locator(".two .stage").bounding_box()
        for way in points.values():
            left, top = (place_of(number, way) - view[:2]) / view[2:]
            page.mouse.click(stage["x"] + left * stage["width"], stage["y"] + top * stage["height"])
    page.get_by_text("10 pictures with points").wait_for()
    visitor.check("landmarks-frames")
    page.get_by_role("button", name="Fit the landmarks").click()
    page.get_by_text("Cross-validated error").wait_for()
    page.locator(".wall .stage").first.wait_for()
    visitor.check("landmarks-frames-fitted")

    # turned to head up, these points are in one place: any keypoints find them, in pixels of the whole frame
    with stack.client() as client:
        (fitted,) = client.landmarks.list("seen", job.version)
        assert (fitted.images, fitted.error_percent < 6) == (10, True)
        frames[23].save(tmp_path / "23.png")
        box = tuple(boxes["arena.mkv#000023"])
        (pose,) = client.estimate("seen", [tmp_path / "23.png"], job.version, boxes=[box], landmarks="anatomy").images
    for mark in pose.landmarks:
        assert np.hypot(*(place_of(23, points[mark.name]) - (mark.x, mark.y))) < 0.15 * BODY


def test_length_of_a_training_is_shown_before_it_is_started(visit, stack, tmp_path):
    with stack.client() as client:
        dataset = client.datasets.wait(client.datasets.create(archive(tmp_path / "a.zip", 12)).id)
        assert dataset.step_s is None
    visitor = visit(width=390)
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("it is not known until the training has begun").wait_for()
    with Redis.from_url(stack.redis_url) as redis:
        PaceBook(redis).note({"preset": DEFAULT_PRESET, **resolve().to_dict()}, Pace(0.4, 1.0))
    page = visitor.open("#/start")
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("About 10 min, as the last training here went").wait_for()
    page.get_by_label("How long?").select_option("6000")
    page.get_by_text("About 40 min, as the last training here went").scroll_into_view_if_needed()
    visitor.check("length-390")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Number of keypoints").fill("12")
    page.get_by_text("it is not known until the training has begun").wait_for()
    visitor.check()


def test_prior_memory_and_landmarks_fit_a_narrow_window(visit, stack, tmp_path):
    """Nothing has to be scrolled sideways, and what is pressed can be reached."""
    with stack.client() as client:
        client.datasets.wait(client.datasets.create(archive(tmp_path / "narrow.zip", 12)).id)
    visitor = visit(width=390)

    def reach(*controls) -> None:
        for control in controls:
            control.scroll_into_view_if_needed()
            box = control.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= 390, control
            assert box["height"] >= 24, "a finger hits it"

    page = visitor.open("#/priors/dog")
    page.get_by_role("img", name="The skeleton of dog: 15 links").wait_for()
    page.get_by_text("The verdict judges").wait_for()
    reach(
        page.get_by_role("slider", name="Links from"),
        page.get_by_role("slider", name="Training"),
        page.get_by_label("Name of keypoint 3", exact=True),
        page.get_by_label("Name of keypoint 15", exact=True),
        page.get_by_role("link", name="Landmarks"),
        page.get_by_role("link", name="Find poses with it"),
    )
    page.get_by_role("slider", name="Links from").fill("60")
    visitor.check("prior-390")
    page.get_by_role("link", name="Memory").click()
    page.get_by_role("img", name="The pose with vector 0 of bank 0").wait_for()
    reach(
        page.get_by_role("slider", name="Bank"),
        page.get_by_role("slider", name="Vector"),
        page.get_by_label("In which pose"),
    )
    page.get_by_role("slider", name="Bank").fill("5")
    page.get_by_role("img", name="The pose with vector 0 of bank 5").wait_for()
    visitor.check("memory-390")
    page.get_by_role("link", name="Landmarks").click()
    page.get_by_role("button", name="Use sample pictures").click()
    for name in ("nose", "a point with a name as long as a sentence is"):
        page.get_by_label("Name of a new point").fill(name)
        page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="sample3.jpg").click()
    stage = page.locator(".two .stage")
    reach(stage, page.get_by_role("button", name="sample11.jpg"), page.get_by_role("button", name="nose"))
    stage.scroll_into_view_if_needed()
    stage.click(position={"x": 300, "y": 100})
    page.get_by_text("1 picture with points").wait_for()
    reach(page.get_by_role("button", name="Not visible"), page.get_by_role("button", name="Fit the landmarks"))
    page.get_by_text("Choose pictures or frames of a dataset").click()
    page.get_by_role("slider", name="Picture of the dataset").wait_for()
    reach(page.get_by_role("combobox", name="Dataset"), page.get_by_role("button", name="Use this picture"))
    visitor.check("landmarks-390")

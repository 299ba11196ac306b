"""What is sent to be learned, on the page in a real browser: files, folders and videos, and boxes in them."""

from __future__ import annotations

import os
import signal
import zipfile

from PIL import Image

from tests.support.arena import BODY, arena_frame, encode_film, walk, walk_angles, walker_frame
from tests.support.browser import NEEDS_BROWSER, corners, drag
from tests.support.stack_process import TINY, archive, drawing, within

pytestmark = NEEDS_BROWSER


def walking(count: int) -> list[Image.Image]:
    """Return the frames of a thing that walks, seen from above."""
    path = zip(walk(count), walk_angles(count), strict=True)
    return [walker_frame(place, angle, number) for number, (place, angle) in enumerate(path)]


def test_boxes_of_an_earlier_job_keep_their_angles(visit, stack, tmp_path):
    turned = "image,x,y,width,height,angle\n" + "".join(f"{n:03}.png,4,6,20,10,{n}\n" for n in range(1, 13))
    (tmp_path / "boxes.csv").write_text(turned)
    with stack.client() as client:
        dataset = client.datasets.create(archive(tmp_path / "turned.zip", 13))
        settings = {**TINY, "align": "heading", "locate": "off"}  # motion would find it in the last one, too
        job = client.train(
            "cross", dataset=dataset.id, boxes=tmp_path / "boxes.csv", preset="compact", settings=settings
        )
    visitor = visit()
    page = visitor.open(f"#/jobs/{job.id}")
    page.get_by_role("link", name="Correct its boxes").click()
    page.get_by_text("12 pictures of 13 with a box").wait_for()
    page.get_by_role("slider", name="Picture").fill("9")
    shape = page.locator(".stage svg > g:last-child > g")
    shape.wait_for()
    assert shape.get_attribute("transform") == "rotate(9 13.5 10.5)"
    page.get_by_label("What do the pictures show?").fill("again")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of again").wait_for()
    page.get_by_role("link", name="Correct its boxes").wait_for()
    with stack.client() as client:
        again = next(client.jobs(category="again"))
        assert "009.png,4.0,6.0,20.0,10.0,,9.0," in client.boxes(again.id)
        client.cancel(again.id)
    visitor.check()


def test_pictures_become_a_dataset_with_boxes_and_a_training(visit, stack, tmp_path):
    visitor = visit()
    page = visitor.open("#/start")
    page.set_input_files(
        "input[accept]",
        {
            "name": "Crosses <b>1</b>.zip",
            "mimeType": "application/zip",
            "buffer": archive(tmp_path / "a.zip", 60, cameras=2).read_bytes(),
        },
    )
    page.get_by_role("img", name="Pictures spread over the dataset").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "Crosses <b>1</b>.zip"
    assert page.get_by_text("60 pictures can be read").is_visible()
    assert page.get_by_label("What do the pictures show?").input_value() == "crosses-b-1-b"
    visitor.check("dataset")

    page.get_by_text("Where is the thing? Draw boxes").click()
    page.get_by_text("Without boxes, training crops to the object itself").wait_for()
    page.locator(".stage img").wait_for()
    for number in (1, 2, 3):
        page.get_by_text(f"{number} of 60", exact=True).wait_for()
        drag(page, (0.25, 0.25), (0.75, 0.75))
        page.get_by_text(f"{number} picture").first.wait_for()
        page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Box of the picture before").click()
    page.get_by_text("4 pictures of 60 with a box").wait_for()
    page.get_by_role("button", name="Start the training").click()
    page.get_by_text("a training needs 8: draw more").wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="This box for all pictures").click()
    page.get_by_text("60 pictures of 60 with a box").wait_for()
    visitor.check("boxes")
    page.get_by_label("What do the pictures show?").fill("cross")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of cross").wait_for()
    with stack.client() as client:
        assert within(60, lambda: "located" in next(client.jobs(category="cross")).metrics)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("It was cancelled.").wait_for()
    with stack.client() as client:
        job = next(client.jobs(category="cross"))
        assert (job.settings["steps"], job.dataset.name) == (1500, "Crosses <b>1</b>.zip")
        assert job.metrics["located"]["by"] == "boxes"
    visitor.check()


def test_view_from_above_is_ticked_once_it_is_found(visit, stack, tmp_path):
    frames = walking(40)
    (tmp_path / "seen.mkv").write_bytes(encode_film(frames))
    visitor = visit()
    page = visitor.open("#/start")
    worker = stack.child_pid("worker-training")
    os.kill(worker, signal.SIGSTOP)  # the form is there before the inspection ends
    try:
        page.set_input_files("input[accept]", tmp_path / "seen.mkv")
        page.get_by_text("A training may be started before that.").wait_for()
        assert not page.get_by_label("Seen from above").is_checked()
    finally:
        os.kill(worker, signal.SIGCONT)
    page.get_by_role("img", name="Pictures spread over the dataset").wait_for()
    assert page.get_by_label("Seen from above").is_checked()
    page.get_by_label("Seen from above").uncheck()
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of seen").wait_for()
    with stack.client() as client:
        job = next(client.jobs(category="seen"))
        client.cancel(job.id)
    assert job.settings["align"] == "off", "the user chose it"
    visitor.check()


def test_boxes_that_motion_found_in_a_video_are_moved_on_its_frames(visit, stack, tmp_path):
    frames = walking(40)
    (tmp_path / "arena.mkv").write_bytes(encode_film(frames))
    with stack.client() as client:
        dataset = client.datasets.create(tmp_path / "arena.mkv")
        job = client.train("walker", dataset=dataset.id, preset="compact", settings={**TINY, "align": "heading"})
        assert within(60, lambda: client.job(job.id).status != "validating")
        found = {line.split(",")[0]: line.split(",")[1:] for line in client.boxes(job.id).splitlines()[1:]}
    visitor = visit()
    page = visitor.open(f"#/jobs/{job.id}")
    page.get_by_text("what moves before the camera: found in 40 pictures").wait_for()
    page.get_by_role("link", name="Correct its boxes").click()
    page.get_by_text("40 pictures of 40 with a box").wait_for()
    assert page.get_by_label("Seen from above").is_checked()
    page.get_by_role("slider", name="Picture").fill("10")
    page.get_by_text("arena.mkv#000010").wait_for()
    page.locator(".stage svg > g:last-child > g").wait_for()
    x, y, width, height = map(float, found["arena.mkv#000010"][:4])
    assert abs(x + width / 2 - walk(40)[10][0]) < BODY / 4  # the frame that is shown is the one of these boxes
    middle = (x + width / 2) / 320, (y + height / 2) / 240
    drag(page, middle, (middle[0] - 16 / 320, middle[1] + 12 / 240))
    page.get_by_role("slider", name="Heading").fill("45")
    visitor.check("frames")

    page.get_by_label("What do the pictures show?").fill("walker-again")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of walker-again").wait_for()
    with stack.client() as client:
        again = next(client.jobs(category="walker-again"))
        assert within(60, lambda: client.job(again.id).status != "validating")
        sent = {line.split(",")[0]: line.split(",")[1:] for line in client.boxes(again.id).splitlines()[1:]}
        assert again.settings["align"] == "heading"
        client.cancel(again.id)
    moved = sent.pop("arena.mkv#000010")
    assert abs(float(moved[0]) - x + 16) <= 2
    assert abs(float(moved[1]) - y - 12) <= 2
    assert float(moved[5]) == 45
    assert sent.keys() == found.keys() - {"arena.mkv#000010"}
    assert all(values[:4] == found[name][:4] for name, values in sent.items())
    visitor.check()


def test_boxes_on_a_few_frames_of_a_new_video_give_each_of_its_frames_one(visit, stack, tmp_path):
    frames = [arena_frame((x, y), n, shift=7 * n) for n, (x, y) in enumerate(walk(33))]
    (tmp_path / "hand held.mkv").write_bytes(encode_film(frames))
    with stack.client() as client:
        dataset = client.datasets.create(tmp_path / "hand held.mkv")
    visitor = visit()
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("Nothing was found by movement (hand held.mkv: ").wait_for()
    page.get_by_text("Where is the thing? Draw boxes").click()
    page.get_by_text("If the camera moves, draw boxes here").wait_for()
    for number, corner in ((1, 0.25), (7, 0.5)):
        page.get_by_role("slider", name="Picture").fill(str(number - 1))
        page.get_by_text(f"{number} of 8", exact=True).wait_for()
        page.locator(".stage img").wait_for()
        page.get_by_text(f"hand held.mkv#{(2 * number - 1) * 33 // 16:06d}").wait_for()
        drag(page, (corner, corner), (corner + 0.25, corner + 0.25))
    page.get_by_text("2 pictures of 8 with a box; frames between get one in between").wait_for()
    visitor.check("new-video")
    page.get_by_label("What do the pictures show?").fill("held")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of held").wait_for()
    with stack.client() as client:
        job = next(client.jobs(category="held"))
        assert within(60, lambda: client.job(job.id).status != "validating")
        sent = {line.split(",")[0]: line.split(",")[1:5] for line in client.boxes(job.id).splitlines()[1:]}
        client.cancel(job.id)
    assert sorted(sent) == [f"hand held.mkv#{number:06d}" for number in range(33)]
    lefts = [float(sent[f"hand held.mkv#{number:06d}"][0]) for number in range(33)]
    first, last = 2, 26  # the frames with a box, at a quarter and a half of 320 pixels
    assert lefts[0] == lefts[first]
    assert lefts[last] == lefts[32]
    assert abs(lefts[first] - 80) <= 2
    assert abs(lefts[last] - 160) <= 2
    assert abs(lefts[14] - 120) <= 2
    visitor.check()


def rows_of(text: str) -> dict[str, list[float]]:
    """Return x, y, width and height of each picture of a CSV of boxes; pictures without a box are left out."""
    rows = {line.split(",")[0].strip('"'): line.split(",")[1:5] for line in text.splitlines()[1:]}
    return {name: [float(value) for value in values] for name, values in rows.items() if values[0]}


def test_boxes_found_by_motion_are_seen_before_the_training_corrected_and_sent(visit, stack, tmp_path):
    places = walk(66)
    frames = [walker_frame(tuple(places[n]), walk_angles(66)[n], n) for n in range(57)]
    frames += [arena_frame(None, n) for n in range(57, 66)]
    (tmp_path / "found.mkv").write_bytes(encode_film(frames))
    with stack.client() as client:
        dataset = client.datasets.wait(client.datasets.create(tmp_path / "found.mkv").id)
    shown = [(2 * n + 1) * 66 // 16 for n in range(8)]  # the last one, 61, is empty
    found = {box.image: [box.x, box.y, box.width, box.height] for box in dataset.found.motion.boxes}
    assert list(found) == [f"found.mkv#{n:06d}" for n in shown[:7]]
    visitor = visit()
    page = visitor.open(f"#/datasets/{dataset.id}")
    whole = f"Found by its movement in {dataset.found.motion.found} of 40 frames."
    assert 32 <= dataset.found.motion.found <= 36
    page.get_by_text(whole).wait_for()
    page.get_by_text("What moves is in a box, as it was found by itself.").wait_for()
    visitor.check("found")

    # nothing is sent of what she does not change
    def start(category: str) -> dict[str, list[float]]:
        page.get_by_label("What do the pictures show?").fill(category)
        page.get_by_role("button", name="Start the training").click()
        page.get_by_role("heading", name=f"Training of {category}").wait_for()
        with stack.client() as client:
            job = next(client.jobs(category=category))
            assert within(60, lambda: client.job(job.id).status != "validating")
            located = client.job(job.id).metrics["located"]
            assert located["by"] == ("motion" if category == "unchanged" else "boxes and motion")
            rows = rows_of(client.boxes(job.id))
            client.cancel(job.id)
        return rows

    trained = start("unchanged")
    assert sorted(trained) == [f"found.mkv#{n:06d}" for n in range(57)]
    for name, (x, y, width, height) in found.items():  # those seen are those of the training
        left, top, wide, high = trained[name]
        assert abs(left + wide / 2 - x - width / 2) < 0.1 * width
        assert abs(top + high / 2 - y - height / 2) < 0.1 * width

    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("Where is the thing? See and correct its boxes").click()
    page.get_by_text("Dashed boxes were found by movement").wait_for()
    picture, box = page.get_by_role("slider", name="Picture"), page.locator(".stage svg > g:last-child rect")

    def turn_to(number: int) -> None:
        picture.fill(str(number))
        page.get_by_text(f"found.mkv#{shown[number]:06d}").wait_for()
        page.wait_for_function("n => document.querySelector('.stage img')?.dataset.name === n", arg=str(number))

    turn_to(2)
    box.wait_for()
    assert box.get_attribute("stroke-dasharray")
    x, y, width, height = found["found.mkv#000020"]
    assert abs(float(box.get_attribute("x")) + 0.5 - x) < 0.01
    assert abs(x + width / 2 - places[20][0]) < 0.1 * BODY
    middle = (x + width / 2) / 320, (y + height / 2) / 240
    moved = middle[0] - 16 / 320, middle[1] + 12 / 240
    page.locator(".stage").scroll_into_view_if_needed()
    visitor.check("found-boxes")
    drag(page, middle, moved)
    page.get_by_text("Boxes of 1 picture changed by you").wait_for()
    assert not box.get_attribute("stroke-dasharray")
    page.get_by_text("000020. Your box.").scroll_into_view_if_needed()
    assert page.get_by_text("It moves further than its own size").is_hidden(), "nothing is guessed in between"
    visitor.check("found-corrected")

    # a corner changes the size, also of a box that is turned; the opposite corner stays
    for is_turned in (False, True):
        page.get_by_label("Seen from above").set_checked(is_turned)
        before = corners(page)
        goal = before[3][0] - 12 / 320, before[3][1] - 8 / 240
        drag(page, before[3], goal)
        after = corners(page)
        for (x1, y1), (x2, y2) in ((after[0], before[0]), (after[3], goal)):
            assert abs(x1 - x2) * 320 < 1.5
            assert abs(y1 - y2) * 240 < 1.5
    page.get_by_label("Seen from above").uncheck()
    page.get_by_role("button", name="Back to the boxes found").click()
    page.get_by_text(whole).wait_for()
    assert box.get_attribute("stroke-dasharray")

    drag(page, middle, moved)
    turn_to(4)
    page.get_by_text("37. Found by its movement.").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("Boxes of 2 pictures changed by you").wait_for()
    page.get_by_text("37. You removed its box: it is left out.").wait_for()
    turn_to(7)
    page.get_by_text("61. No box was found here.").wait_for()
    turn_to(0)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.get_by_text("Boxes of 3 pictures changed by you").wait_for()

    sent = start("corrected")
    x0, y0, *size = found["found.mkv#000004"]
    assert sent["found.mkv#000004"] == [x0 + 3, y0 + 1, *size]  # a hundredth of 320, and a pixel
    changed = sent["found.mkv#000020"]
    assert abs(changed[0] - x + 16) <= 2
    assert abs(changed[1] - y - 12) <= 2
    # all others are those of motion: it moves on from frame to frame, so that no correction spreads
    own = {"found.mkv#000004", "found.mkv#000020", "found.mkv#000037"}
    assert {name: box for name, box in sent.items() if name not in own} == {
        name: box for name, box in trained.items() if name not in own
    }
    assert "found.mkv#000037" not in sent
    visitor.check()


def test_boxes_found_by_motion_fit_a_narrow_window(visit, stack, tmp_path):
    frames = {f"cam/{n:02}.png": walker_frame(tuple(walk(20)[n]), walk_angles(20)[n], n) for n in range(20)}
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as packed:
        for name, image in frames.items():
            image.save(tmp_path / "one.png")
            packed.write(tmp_path / "one.png", name)
    with stack.client() as client:
        dataset = client.datasets.wait(client.datasets.create(tmp_path / "folder.zip").id)
    visitor = visit(width=390, theme="dark")
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("Found by its movement in 20 of 20 pictures.").click()
    page.locator(".stage rect[stroke-dasharray]").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("00.png. You removed its box: it is left out.").wait_for()
    page.get_by_role("button", name="Back to the boxes found").scroll_into_view_if_needed()
    visitor.check("found-390")
    page.get_by_label("What do the pictures show?").fill("folder")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of folder").wait_for()
    with stack.client() as client:
        job = next(client.jobs(category="folder"))
        assert within(60, lambda: client.job(job.id).status != "validating")
        sent = rows_of(client.boxes(job.id))
        client.cancel(job.id)
    assert sorted(sent) == sorted(frames)[1:]
    visitor.check()


def test_boxes_of_things_seen_from_above_get_a_heading(visit, stack, tmp_path):
    with stack.client() as client:
        dataset = client.datasets.create(archive(tmp_path / "above.zip", 9, cameras=2))
    visitor = visit(width=390)
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_label("Seen from above").check()
    page.get_by_label("What do the pictures show?").fill("above")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_text("Why it failed").wait_for()
    page.get_by_text("leave “Seen from above” off, or draw boxes").wait_for()
    page.get_by_role("link", name="Train on its dataset again").click()

    page.get_by_text("Where is the thing? Draw boxes").click()
    page.locator(".stage img").wait_for()
    drag(page, (0.2, 0.2), (0.7, 0.7))
    assert page.get_by_role("slider", name="Heading").is_hidden()
    page.get_by_label("Seen from above").check()
    page.get_by_role("slider", name="Heading").fill("30")
    page.get_by_role("button", name="This box for all pictures").click()
    visitor.check("headings-390")
    page.get_by_label("What do the pictures show?").fill("above")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("link", name="Correct its boxes").wait_for()
    with stack.client() as client:
        job = next(client.jobs(category="above"))
        rows = client.boxes(job.id).splitlines()[1:]
        client.cancel(job.id)
    assert [row.split(",")[6] for row in rows] == ["30.0"] * 9
    visitor.check()


def drawn_box(page) -> list[int]:
    """Return the box that was drawn around the thing, in pixels."""
    box = page.locator(".stage rect").evaluate("rect => ['x', 'y', 'width', 'height'].map(n => +rect.getAttribute(n))")
    return [round(value + 0.5) for value in box[:2]] + [round(value) for value in box[2:]]


def test_picture_for_a_prior_that_was_turned_to_face_up_needs_a_box(visit, stack, tmp_path):
    frames = walking(24)
    (tmp_path / "yard.mkv").write_bytes(encode_film(frames))
    frames[5].save(tmp_path / "still.png")
    with stack.client() as client:
        dataset = client.datasets.create(tmp_path / "yard.mkv")
        job = client.train("strider", dataset=dataset.id, preset="compact", settings=TINY)
        version = client.wait(job.id).version
        assert client.prior("strider", version).settings["align"] == "heading"  # by align=auto
    visitor = visit()
    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_label("What do the pictures show?").fill("strider-again")
    assert page.get_by_label("Seen from above").is_checked()
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of strider-again").wait_for()
    with stack.client() as client:
        again = next(client.jobs(category="strider-again"))
        client.cancel(again.id)
    assert again.settings["align"] == "auto", "the user did not choose it, and motion may be less sure of all frames"
    page = visitor.open(f"#/estimate?category=strider&version={version}")
    page.set_input_files("input[accept]", tmp_path / "still.png")
    page.get_by_text("No pose").wait_for()
    page.get_by_role("button", name="Draw a box around it").click()
    x, y = walk(24)[5] / (320, 240)
    drag(page, (max(0.0, x - 0.12), y - 0.16), (min(1.0, x + 0.12), y + 0.16))
    page.locator(".stage .dot").first.wait_for()
    with stack.client() as client:
        tried = client.estimate("strider", [tmp_path / "still.png"], version, boxes=[drawn_box(page)]).images[0].region
    slider = page.get_by_role("slider", name="Heading")
    assert within(20, lambda: slider.input_value() == str(round(tried.angle)))
    page.get_by_role("slider", name="Heading").fill("90")
    page.get_by_role("slider", name="Heading").dispatch_event("change")
    box = drawn_box(page)
    with stack.client() as client:
        turned, upright = (
            client.estimate("strider", [tmp_path / "still.png"], version, boxes=[(*box, angle)]).images[0].keypoints
            for angle in (90, 0)
        )
    dot = page.locator(".stage .dot circle").first
    assert abs(turned[0].x - upright[0].x) + abs(turned[0].y - upright[0].y) > 0.5
    assert within(20, lambda: abs(float(dot.get_attribute("cx")) - turned[0].x) < 0.01)
    assert abs(float(dot.get_attribute("cy")) - turned[0].y) < 0.01
    visitor.check("still-in-a-box")


def test_folder_that_is_dropped_or_chosen_keeps_its_subfolders(visit, stack, tmp_path):
    names = ("day 1/0.png", "day 1/1.png", "day 2/0.png", "day 2/deep/0.png")
    for number, name in enumerate(names):
        path = tmp_path / "garden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing(number + 40))
    (tmp_path / "garden" / ".hidden").write_bytes(b"x")
    visitor = visit()
    page = visitor.open("#/start")
    box = page.locator(".drop").bounding_box()
    data = {"items": [], "files": [str(tmp_path / "garden")], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"x": box["x"] + 50, "y": box["y"] + 50}
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    page.get_by_role("heading", name="garden").wait_for()
    page.get_by_text("4 pictures can be read").wait_for()
    with stack.client() as client:
        dataset = next(client.datasets.list())
        assert (dataset.name, dataset.files) == ("garden", 4)
        listed = client.send("GET", f"/datasets/{dataset.id}/pictures").json()["items"]
    assert sorted(item["name"] for item in listed) == [f"garden/{name}" for name in names]
    visitor.check()

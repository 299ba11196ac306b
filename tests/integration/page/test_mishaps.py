"""What visitors do in a hurry, in two tabs, without a server or with odd files: nothing they see is wrong or lost."""

from __future__ import annotations

from tests.support.browser import NEEDS_BROWSER, drag
from tests.support.stack_process import TINY, archive, drawing, within

pytestmark = NEEDS_BROWSER


def without_refusals(visitor) -> None:
    """Forget refusals that were expected: browsers report each."""
    visitor.console = [text for text in visitor.console if "Failed to load resource" not in text]


def place_of_dots(page) -> list[tuple[str | None, str | None]]:
    dots = page.locator(".stage svg > g:last-child > g:last-child .dot circle").all()
    return [(dot.get_attribute("cx"), dot.get_attribute("cy")) for dot in dots]


# hold back the next request, and keep what is answered
HOLD = """() => {
  const { fetch } = window;
  window.fetch = async (...request) => {
    window.fetch = fetch;
    await new Promise((resolve) => { window.release = resolve; });
    const response = await fetch(...request);
    window.text = response.clone().text();
    return response;
  };
}"""


def test_boxes_removed_before_their_answer_leave_the_pose_of_the_whole_picture(visit):
    visitor = visit()
    page = visitor.open("#/estimate?sample")
    page.get_by_text("dog: present").wait_for()
    page.locator(".thumb svg .dot").nth(12 * 16 - 1).wait_for()
    whole = place_of_dots(page)
    assert len(whole) == 16
    page.evaluate(HOLD)
    page.get_by_role("button", name="Hide the right half").click()
    assert within(20, lambda: page.evaluate("() => Boolean(window.release)"))
    page.get_by_role("button", name="Remove the boxes").click()
    page.evaluate("() => window.release()")
    assert within(20, lambda: page.evaluate("() => Boolean(window.text)"))
    page.evaluate("() => window.text")  # all of the answer is there
    page.wait_for_timeout(300)  # nothing of it may be drawn
    assert place_of_dots(page) == whole
    page.get_by_role("button", name="sample1.jpg").click()
    page.get_by_role("button", name="sample0.jpg").click()
    assert within(10, lambda: place_of_dots(page) == whole)
    visitor.check()


def test_names_typed_in_a_hurry_and_in_two_tabs_are_all_kept(visit, stack):
    visitor, other = visit(), visit()
    page, second = visitor.open("#/priors/dog"), other.open("#/priors/dog")
    page.get_by_label("Name of keypoint 0", exact=True).click()
    for name in ("nose", "neck", "left hip"):
        page.keyboard.type(name)
        page.keyboard.press("Tab")
    page.get_by_text("Keypoint 2 is now called left hip.").wait_for()
    second.get_by_label("Name of keypoint 9", exact=True).fill("tail")
    second.keyboard.press("Tab")
    second.get_by_text("Keypoint 9 is now called tail.").wait_for()
    assert second.get_by_label("Name of keypoint 1", exact=True).input_value() == "neck"
    page.get_by_label("Name of keypoint 9", exact=True).fill("rump")
    page.keyboard.press("Tab")
    page.get_by_text("Keypoint 9 was named “tail” elsewhere meanwhile.").wait_for()
    assert page.get_by_label("Name of keypoint 9", exact=True).input_value() == "tail"
    with stack.client() as client:
        names = client.keypoint_names("dog").names
    assert [names[id] for id in (0, 1, 2, 3, 9)] == ["nose", "neck", "left hip", "keypoint_3", "tail"]
    for each in (visitor, other):
        without_refusals(each)
        each.check()


def test_deleted_version_is_not_shown_as_the_active_one(visit):
    visitor = visit()
    for view in ("priors/dog?", "estimate?category=dog&"):
        page = visitor.open(f"#/{view}version=20200101T000000-abcdef")
        assert "20200101T000000-abcdef" in page.get_by_role("alert").inner_text()
        assert page.locator(".skeleton").count() == 0
    without_refusals(visitor)
    visitor.check()


def test_version_that_is_shown_is_deleted_and_another_one_is_made_active(visit, stack, tmp_path):
    with stack.client() as client:
        exported = client.versions.export("dog", "active", tmp_path / "dog.zip")
        older = client.versions.import_file("idle", exported, activate=False).version
        pictures = archive(tmp_path / "a.zip", 12)
        newer = client.wait(client.train("idle", pictures, "compact", TINY, activate=False).id).version
    visitor = visit()
    page = visitor.open("#/priors/idle")
    page.locator(".card").get_by_text(newer, exact=True).wait_for()
    page.get_by_text("Delete", exact=True).click()
    page.get_by_role("button", name="Delete this version").click()
    page.locator(".card").get_by_text(older, exact=True).wait_for()
    assert page.get_by_label("Version").locator("option").count() == 1
    assert page.get_by_role("row", name="active").get_by_text("none").is_visible()
    page.get_by_role("button", name="Move here").click()
    page.get_by_role("row", name="active").get_by_text("this version").wait_for()
    with stack.client() as client:
        assert client.aliases.get("idle", "active").version == older
    visitor.check()


def test_archive_beside_other_files_is_refused_rather_than_left_out(visit, tmp_path):
    visitor = visit()
    page = visitor.open("#/start")
    (tmp_path / "one.png").write_bytes(drawing(1))
    files = [archive(tmp_path / "a.zip", 8), archive(tmp_path / "b.zip", 8), tmp_path / "one.png"]
    for chosen in (files[:2], files[1:]):
        page.set_input_files("input[accept]", chosen)
        page.get_by_text("An archive is sent by itself.").wait_for()
        page.get_by_role("button", name="Close").click()
    assert page.url.endswith("#/start")
    visitor.check()


def test_points_and_boxes_are_not_left_without_a_question(visit, stack, tmp_path):
    with stack.client() as client:
        dataset = client.datasets.wait(client.datasets.create(archive(tmp_path / "left.zip", 12, cameras=2)).id)
    visitor = visit()
    questions = []

    def answer(dialog) -> None:
        questions.append(dialog.message)
        dialog.accept() if len(questions) % 2 == 0 else dialog.dismiss()

    page = visitor.open("#/priors")
    page.on("dialog", answer)
    page = visitor.open("#/priors/dog/landmarks")
    page.get_by_role("button", name="Use sample pictures of a dog").click()
    page.get_by_label("Name of a new point").fill("nose")
    page.get_by_label("Name of a new point").press("Enter")
    page.locator(".stage").click(position={"x": 60, "y": 60})
    page.get_by_text("1 picture with points").wait_for()
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_text("1 picture with points").wait_for()
    assert page.url.endswith("#/priors/dog/landmarks")
    page.go_back()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert questions == ["The points that you placed are not fitted yet, and would be lost. Leave this page?"] * 2

    page = visitor.open(f"#/datasets/{dataset.id}")
    page.get_by_text("Where is the thing? Draw boxes").click()
    page.locator(".stage img").wait_for()
    drag(page, (0.25, 0.25), (0.75, 0.75))
    page.get_by_text("of 12 with a box").wait_for()
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_text("of 12 with a box").wait_for()
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert len(questions) == 4
    page.get_by_role("link", name="Priors", exact=True).click()
    page.get_by_role("heading", name="Priors", exact=True).wait_for()
    assert len(questions) == 4, "nothing is lost any more"
    visitor.check()


def test_landmark_pictures_are_added_later_and_may_have_quotes_in_their_names(visit, stack):
    def picture(number: int) -> dict:
        return {"name": f'the "{number}".png', "mimeType": "image/png", "buffer": drawing(number, 64, 64)}

    visitor = visit()
    page = visitor.open("#/priors/dog/landmarks")
    page.set_input_files("input[accept]", [picture(n) for n in range(2)])
    page.get_by_label("Name of a new point").fill('a "point", two')
    page.get_by_role("button", name="Add", exact=True).click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    chooser.value.set_files([picture(n) for n in range(2, 6)])
    thumbs = page.locator(".thumb")
    assert within(20, lambda: thumbs.count() == 6)
    for number, thumb in enumerate(thumbs.all()):
        thumb.click()
        stage = page.locator(".two .stage")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        page.mouse.click(box["x"] + box["width"] * (0.3 + 0.05 * number), box["y"] + box["height"] * 0.4)
    page.get_by_text("6 pictures with points").wait_for()
    page.get_by_label("Name of the set").fill("quoted")
    page.get_by_role("button", name="Fit the landmarks").click()
    page.get_by_text("Cross-validated error").wait_for()
    with stack.client() as client:
        fitted = next(found for found in client.landmarks.list("dog") if found.name == "quoted")
    assert (fitted.images, list(fitted.landmarks)) == (6, ['a "point", two'])
    visitor.check()


def test_view_that_could_not_be_loaded_is_loaded_once_the_server_answers(visit):
    visitor = visit()
    page = visitor.open("#/start")
    page.context.set_offline(True)
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Priors").click()
    page.get_by_text("A part of this page did not arrive").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("img", name="The skeleton of dog").wait_for()
    without_refusals(visitor)
    visitor.check()

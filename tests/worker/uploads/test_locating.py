"""What training sees of a picture: the part in its box, sent or found by motion."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from model.training.trainer import Trainer
from service.contract.jobs.files import BOXES
from service.contract.jobs.store import Job, JobStatus
from service.contract.media.boxes import FoundBox, parse_box_file
from service.contract.media.corrections import correct_track, take_heading
from service.contract.media.fitting import fit_square
from service.contract.media.pictures import open_picture
from tests.support.arena import BODY, arena_frame, encode_film, walk, walk_angles, walker_frame
from worker.caretaker import Caretaker
from worker.uploads.preparer import match_job_labels, prepared_config

PLACES = walk(12)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture(scope="module")
def arena() -> dict[str, bytes]:
    """Twelve frames of one camera, the last without the thing."""
    places = [(x, y) for x, y in PLACES[:-1]] + [None]
    return {f"cam/{n:02}.png": png(arena_frame(place, n)) for n, place in enumerate(places)}


def prepared(desk: SimpleNamespace, job: Job) -> tuple[Job, dict, np.ndarray]:
    desk.caretaker.prepare(job.id)
    queued = desk.jobs.get(job.id)
    assert queued.status is JobStatus.QUEUED, queued.error
    info = json.loads(desk.files.pictures_info(job.id).read_text())
    return queued, info, np.load(desk.files.pictures(job.id), allow_pickle=False)


@pytest.mark.parametrize("locate", ["auto", "motion"])
def test_what_moves_is_cut_out_and_a_frame_without_it_is_named(desk, arena, locate) -> None:
    job, info, squares = prepared(desk, desk.upload(arena, desk.tiny(locate=locate)))
    assert (job.metrics["images"], job.metrics["skipped"]) == (11, 1)
    assert job.metrics["skipped_files"] == [{"name": "cam/11.png", "reason": "nothing of the usual size moves in it"}]
    located = job.metrics["located"]
    assert located["by"] == "motion"
    assert BODY <= located["side_px"] <= 1.7 * BODY
    for place, (x0, y0, side), square, data in zip(PLACES, info["frames"], squares, arena.values(), strict=False):
        assert np.hypot(x0 + side / 2 - place[0], y0 + side / 2 - place[1]) < 0.1 * BODY
        np.testing.assert_array_equal(square, fit_square(open_picture(data), 32, (x0, y0, side, side))[0])


def test_the_boxes_of_a_job_are_those_of_the_next_one(desk, arena) -> None:
    first, info, _ = prepared(desk, desk.upload(arena, desk.tiny()))
    text = desk.files.found_boxes(first.id).read_text()
    header, *rows = text.splitlines()
    assert header == "image,x,y,width,height,confidence"
    assert [row.split(",")[0] for row in rows] == list(arena)
    assert rows[-1] == "cam/11.png,,,,,", "nothing was found in it"
    assert all(0.5 < float(row.split(",")[-1]) <= 1 for row in rows[:-1])
    edited = text.replace(rows[3], "cam/03.png,7,9,50,50,1")
    again = desk.upload(arena, desk.tiny())
    desk.files.boxes(again.id).write_text(edited)
    _, sent, _ = prepared(desk, again)
    assert sent["frames"][3] == [7, 9, 50]
    np.testing.assert_allclose(np.delete(sent["frames"], 3, 0), np.delete(info["frames"], 3, 0))
    assert desk.files.found_boxes(again.id).read_text().splitlines()[4] == "cam/03.png,7.0,9.0,50.0,50.0,1.0"


def test_the_boxes_of_a_video_name_its_frames(desk, video) -> None:
    job = desk.upload({"walk.mp4": video(12)}, desk.tiny(frames_per_clip=8))
    rows = ["image,x,y,width,height", *(f"walk.mp4#{n:06},{n},2,20,20" for n in range(12))]
    desk.files.boxes(job.id).write_text("\n".join(rows))
    prepared(desk, job)
    found = parse_box_file(desk.files.found_boxes(job.id).read_bytes())
    boxes = {number: found.boxes[name][0].box for number, name in found.by_frame().items()}
    assert len(boxes) == 8
    assert boxes == {number: (number, 2, 20, 20) for number in boxes}


def test_the_version_keeps_the_boxes_and_whole_pictures_have_none(desk, arena, monkeypatch) -> None:
    given = []

    class Recorded(Trainer):
        def __init__(self, *arguments, **named) -> None:
            given.append(named["cropped"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr("worker.training.runner.Trainer", Recorded)
    located, _, _ = prepared(desk, desk.upload(arena, desk.tiny()))
    text = desk.files.found_boxes(located.id).read_text()
    desk.runner.run(located.id)
    done = desk.jobs.get(located.id)
    assert (desk.store.path("dog", done.version) / BOXES).read_text() == text
    whole, _, _ = prepared(desk, desk.upload(arena, desk.tiny(locate="off")))
    assert not desk.files.found_boxes(whole.id).exists()
    desk.runner.run(whole.id)
    assert given == [True, False]  # what is cropped around boxes is neither cropped nor rotated again


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_thing_that_sleeps_at_first_is_found(desk, kind) -> None:
    places = [tuple(PLACES[0])] * 40 + [tuple(place) for place in walk(40)]
    frames = [arena_frame(place, number) for number, place in enumerate(places)]
    if kind == "folder":
        files = {f"cam/{number:02}.png": png(frame) for number, frame in enumerate(frames)}
    else:
        files = {"cam.mkv": encode_film(frames, 1)}
    job, info, squares = prepared(desk, desk.upload(files, desk.tiny(frames_per_clip=80)))
    assert (job.metrics["located"]["by"], job.metrics["located"]["found"], len(squares)) == ("motion", 80, 80)
    for place, (x0, y0, side) in zip(places, info["frames"], strict=True):
        assert np.hypot(x0 + side / 2 - place[0], y0 + side / 2 - place[1]) < 0.15 * BODY


def test_whole_pictures_are_taken_on_request_and_where_nothing_moves(desk, arena) -> None:
    for job in (
        desk.upload(arena, desk.tiny(locate="off")),
        desk.upload({f"{n}.png": desk.picture(n, kind="PNG") for n in range(12)}),
    ):
        done, info, squares = prepared(desk, job)
        assert "located" not in done.metrics
        assert "frames" not in info
        assert len(squares) == 12


def test_motion_that_was_asked_for_and_finds_nothing_fails_the_job(desk) -> None:
    same = {f"{n}.png": png(arena_frame(None, n)) for n in range(10)}
    job = desk.upload(same, desk.tiny(locate="motion"))
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "too_few_pictures"
    assert "send boxes, or set locate to off" in failed.error.detail


def test_boxes_that_were_sent_are_cut_out(desk, arena) -> None:
    job = desk.upload(arena)
    rows = [f"{n:02}.png,{10 * n},20,64,32" for n in range(9)] + ["09.png,5,5,40,40,0.2", "09.png,9,9,40,40,0.7"]
    text = "\n".join(["image,x,y,width,height,confidence", *rows, "10.png,,,,"])
    desk.files.boxes(job.id).write_text(text)
    done, info, squares = prepared(desk, job)
    assert (done.metrics["images"], done.metrics["skipped"]) == (11, 2)
    assert {item["name"] for item in done.metrics["skipped_files"]} == {"cam/10.png", "cam/11.png"}
    assert done.metrics["located"]["by"] == "boxes"
    assert info["frames"][3] == [30, 20 + 16 - 32, 64]
    assert info["frames"][9:] == [[9, 9, 40], [5, 5, 40]], "each of several, the most confident first"
    assert info["names"][9:] == ["cam/09.png"] * 2
    np.testing.assert_array_equal(squares[10], fit_square(open_picture(arena["cam/09.png"]), 32, (5, 5, 40, 40))[0])
    assert done.metrics["located"]["note"] == "of 1 pictures with several boxes, each is a picture to train on"
    expected = fit_square(open_picture(arena["cam/03.png"]), 32, (30, 20, 64, 32))[0]
    np.testing.assert_array_equal(squares[3], expected)


def test_pictures_whose_box_lies_outside_are_left_out_and_named(desk, arena) -> None:
    """As an estimate refuses them: what is cut out there would be grey."""
    for outside, status in ((2, JobStatus.QUEUED), (12, JobStatus.FAILED)):
        job = desk.upload(arena, desk.tiny(locate="off"))
        rows = [f"{n:02}.png,{400 if n < outside else 10},20,64,32" for n in range(12)]
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *rows]))
        desk.caretaker.prepare(job.id)
        done = desk.jobs.get(job.id)
        assert (done.status, done.metrics["images"], done.metrics["skipped"]) == (status, 12 - outside, outside)
        reason = "the box [400.0, 20.0, 64.0, 32.0] lies outside of the picture, which is 320 x 240 pixels"
        for number, item in enumerate(done.metrics["skipped_files"]):
            assert (item["name"], item["reason"].startswith(reason)) == (f"cam/{number:02}.png", True)
        assert done.error is None or reason in done.error.detail


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_boxes_of_some_frames_hold_there_and_motion_for_the_others(desk, kind) -> None:
    """The thing sleeps in frames 8 to 13: a correction of one of these holds for all of them."""
    walked = [tuple(place) for place in walk(24)]
    places = walked[:8] + [walked[8]] * 6 + walked[9:]
    frames = [arena_frame(place, number) for number, place in enumerate(places)]
    if kind == "folder":
        names, files = [f"cam/{n:02}.png" for n in range(len(frames))], {}
        files = {name: png(frame) for name, frame in zip(names, frames, strict=True)}
    else:
        names, files = [f"cam.mkv#{n:06}" for n in range(len(frames))], {"cam.mkv": encode_film(frames)}
    _, found, _ = prepared(desk, desk.upload(files, desk.tiny()))
    assert found["names"] == names
    x, y, side = found["frames"][10]
    rows = [f"{names[10]},{x + 6},{y - 9},{side + 4},{side + 4}", f"{names[3]},7,9,50,50", f"{names[20]},,,,"]
    expected = {name: frame for name, frame in zip(names, found["frames"], strict=True) if name != names[20]}
    expected |= {names[n]: [a + 6, b - 9, c + 4] for n, (a, b, c) in enumerate(found["frames"]) if 8 <= n < 14}
    expected[names[3]] = [7, 9, 50]
    for locate in ("auto", "motion"):
        job = desk.upload(files, desk.tiny(locate=locate))
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *rows]))
        done, info, _ = prepared(desk, job)
        assert info["names"] == list(expected)
        np.testing.assert_allclose(info["frames"], list(expected.values()), atol=0.02)
        located = done.metrics["located"]
        assert (located["by"], located["sent"], located["found"]) == ("boxes and motion", 3, len(names) - 3)
        assert located["corrected"] == 5
        assert done.metrics["skipped_files"] == [
            {"name": names[20], "reason": "no box of it came, and nothing of the usual size moves in it"}
        ]
    alone = desk.upload(files, desk.tiny(locate="off"))
    desk.files.boxes(alone.id).write_text("\n".join(["image,x,y,width,height", *rows]))
    desk.caretaker.prepare(alone.id)
    assert "at least" in desk.jobs.get(alone.id).error.detail, "two pictures are too few"


def test_a_file_that_only_says_where_nothing_is_leaves_these_frames_out(desk, arena) -> None:
    rows = "image,x,y,width,height\n03.png,,,,\n05.png,,,,\n"
    job = desk.upload(arena, desk.tiny())
    desk.files.boxes(job.id).write_text(rows)
    done, info, _ = prepared(desk, job)
    assert info["names"] == [f"cam/{n:02}.png" for n in range(12) if n not in (3, 5, 11)]
    assert (done.metrics["located"]["by"], done.metrics["located"]["found"]) == ("boxes and motion", 9)
    stills = {f"{n:02}.png": desk.picture(n, kind="PNG") for n in range(12)}
    for files, locate, message in (
        (arena, "off", "name 2 pictures or frames in which nothing is, and have no box; send boxes of the others, or"),
        (stills, "auto", "there is no box in the boxes, and motion does not show surely where the thing is (.: not"),
    ):
        job = desk.upload(files, desk.tiny(locate=locate))
        desk.files.boxes(job.id).write_text(rows)
        desk.caretaker.prepare(job.id)
        failed = desk.jobs.get(job.id)
        assert failed.error is not None
        assert failed.error.code == "bad_boxes"
        assert message in failed.error.detail


def test_where_motion_is_not_sure_pictures_without_a_box_are_left_out_and_that_is_said(desk) -> None:
    job = desk.upload({f"{n}.png": desk.picture(n, kind="PNG") for n in range(12)})
    desk.files.boxes(job.id).write_text(
        "\n".join(["image,x,y,width,height", *(f"{n}.png,1,2,20,20" for n in range(9))])
    )
    done, info, _ = prepared(desk, job)
    assert info["names"] == [f"{n}.png" for n in range(9)]
    located = done.metrics["located"]
    assert located["by"] == "boxes"
    assert located["note"].startswith("pictures without a box are left out, as motion is not sure (")


def test_corrections_end_where_the_thing_moves_on_and_at_the_next_box() -> None:
    found = [FoundBox((x, 10.0, 40.0, 40.0), 0.9, angle) for x, angle in ((0, 5.0), (1, 6.0), (2, 7.0), (3, 8.0))]
    found += [None, FoundBox((3.0, 10.0, 40.0, 40.0)), FoundBox((60.0, 10.0, 40.0, 40.0))]
    turned = FoundBox((10.0, 12.0, 20.0, 20.0), None, 185.0)
    corrected = correct_track(found, {0: [turned], 3: [], 6: []})
    assert corrected[0] == found[0], "that of the frame is the caller's"
    assert corrected[1] == FoundBox((11.0, 12.0, 20.0, 20.0), 0.9, 186.0)
    assert corrected[2] is None, "nearer to the frame in which nothing is"
    assert corrected[3:] == found[3:], "a frame without a box ends a correction"
    assert correct_track(found, {0: [turned, turned]}) == found, "of several boxes it is not known which is meant"


def test_sent_boxes_take_their_heading_from_motion_in_the_same_place() -> None:
    found = FoundBox((0.0, 0.0, 40.0, 40.0), 0.9, 33.0, 0.8)
    near, far, own = (FoundBox((x, 0.0, 40.0, 40.0), None, angle) for x, angle in ((15, None), (25, None), (0, 7.0)))
    headed = take_heading([near, far, own], found)
    assert [(box.angle, box.angle_confidence) for box in headed] == [(33.0, 0.8), (None, None), (7.0, None)]


def test_more_boxes_than_pictures_are_allowed_fail_the_job(desk, arena) -> None:
    limits = desk.settings.model_copy(update={"archive_max_files": 14})
    caretaker = Caretaker(replace(desk.caretaker._preparer, settings=limits), desk.store, desk.sent.append)
    rows = [f"{n:02}.png,{x},20,64,32" for n in range(12) for x in (10, 30)]
    for count, message in ((14, ""), (16, "give more than 14 pictures to train on")):
        job = desk.upload(arena, desk.tiny())
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *rows[:count]]))
        caretaker.prepare(job.id)
        found = desk.jobs.get(job.id)
        assert (found.error.code, message in found.error.detail) == ("bad_boxes", True) if message else not found.error


def test_of_several_boxes_of_a_frame_the_most_confident_is_taken_and_that_is_said(desk, arena) -> None:
    job = desk.upload(arena, desk.tiny(mode="clips"))
    rows = [f"{n:02}.png,{10 * n},20,64,32,{0.5 + 0.1 * (n % 2)}" for n in range(12)]
    rows += [f"{n:02}.png,90,90,30,30,0.55" for n in range(12)]
    desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height,confidence", *rows]))
    done, info, _ = prepared(desk, job)
    assert done.metrics["located"]["note"] == "of 12 pictures with several boxes, the most confident is taken"
    assert [side for *_, side in info["frames"]] == [30, 64] * 6


@pytest.mark.parametrize("mode", ["stills", "clips"])
def test_labels_of_a_picture_with_several_boxes_fail_the_job(desk, arena, mode) -> None:
    """Which box is that of the labelled animal is not known."""
    boxes = [f"{n:02}.png,100,40,50,50" for n in range(12)]
    labels = [f"{n:02}.png,nose,100,60,{'test' if n > 9 else 'train'}" for n in range(12)]
    for extra, error in (("03.png,10,40,50,50", "'cam/03.png' has several boxes, and one labelled animal"), ("", "")):
        job = desk.upload(arena, desk.tiny(mode=mode))
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *boxes, extra]))
        desk.files.labels(job.id).write_text("\n".join(["image,keypoint,x,y,split", *labels]))
        desk.caretaker.prepare(job.id)
        found = desk.jobs.get(job.id)
        assert error in found.error.detail if error else found.error is None


def test_labels_are_measured_in_the_box(desk, arena) -> None:
    job = desk.upload(arena)
    desk.files.boxes(job.id).write_text(
        "\n".join(["image,x,y,width,height", *(f"{n:02}.png,100,40,50,50" for n in range(12))])
    )
    labels = ["image,keypoint,x,y,split"]
    labels += [f"{n:02}.png,nose,{99.5 + 5 * n},64.5,{'test' if n > 9 else 'train'}" for n in range(12)]
    desk.files.labels(job.id).write_text("\n".join(labels))
    prepared(desk, job)
    matched = match_job_labels(desk.files, job.id)
    assert matched is not None
    np.testing.assert_allclose(matched.keypoints[:, 0], [(5 * n / 50, 0.5) for n in range(12)])


def test_labels_of_stored_and_of_smaller_pictures_are_fitted_on_request(desk) -> None:
    files = {}
    for number in range(12):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6 if number % 2 == 0 else 1  # shown as 40 x 80
        image = Image.new("RGB", (80, 40) if number % 2 == 0 else (40, 80), (20 * number, 90, 90))
        image.save(file, "JPEG", exif=exif)
        files[f"{number}.jpg"] = file.getvalue()
    rows = ["image,keypoint,x,y,width,height,split"]
    for number in range(12):  # at (29, 20) of each as it is shown
        place = "20,10,80,40" if number % 2 == 0 else "14.25,9.75,20,40"
        rows.append(f"{number}.jpg,nose,{place},{'test' if number % 4 == 3 else 'train'}")
    for how in ("scale", "exact"):
        job = desk.upload(files, desk.tiny(labels_fit=how))
        desk.files.labels(job.id).write_text("\n".join(rows))
        if how == "exact":
            desk.caretaker.prepare(job.id)
            failed = desk.jobs.get(job.id)
            assert "'0.jpg' has 80 x 40 pixels, and the picture that came has 40 x 80" in failed.error.detail
            continue
        prepared(desk, job)
        matched = match_job_labels(desk.files, job.id)
        assert matched is not None
        np.testing.assert_allclose(matched.keypoints[:, 0], [((29.5 + 20) / 80, 20.5 / 80)] * 12)


def test_boxes_of_other_pictures_fail_the_job(desk, arena) -> None:
    job = desk.upload(arena)
    desk.files.boxes(job.id).write_text("image,x,y,width,height\nother.png,1,2,3,4\n")
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "bad_boxes"


def walker(count: int = 12) -> dict[str, bytes]:
    """Frames of a thing with a tail that turns as it walks."""
    return {
        f"cam/{n:02}.png": png(walker_frame((x, y), angle, n))
        for n, ((x, y), angle) in enumerate(zip(walk(count), walk_angles(count), strict=True))
    }


def test_crops_are_turned_so_that_it_looks_up_and_labels_turn_with_them(desk) -> None:
    frames, angles = walker(), walk_angles(12)
    job = desk.upload(frames, desk.tiny(align="heading"))
    rows = ["image,keypoint,x,y,split"]
    for number, ((x, y), angle) in enumerate(zip(walk(12), angles, strict=True)):
        ahead = np.array([np.sin(np.radians(angle)), -np.cos(np.radians(angle))])
        for name, way in (("nose", 0.5), ("rump", -0.5)):
            place = (x, y) + way * BODY * ahead
            rows.append(f"{number:02}.png,{name},{place[0]},{place[1]},{'test' if number > 9 else 'train'}")
    desk.files.labels(job.id).write_text("\n".join(rows))
    done, info, squares = prepared(desk, job)
    assert done.metrics["located"]["headings"] == 12
    found = np.array([frame[3] for frame in info["frames"]])
    assert np.abs((found - angles + 180) % 360 - 180).max() < 6
    side = info["frames"][0][2]
    labelled = match_job_labels(desk.files, job.id)
    assert labelled is not None
    for way, places in zip((-0.5, 0.5), labelled.keypoints.transpose(1, 0, 2), strict=True):
        np.testing.assert_allclose(places, np.tile((0.5, 0.5 + way * BODY / side), (12, 1)), atol=0.06)
    # dark at the head, light beside it, and the tail behind
    middle = squares[:, :, 14:18].min(axis=(2, 3))
    assert (middle[:, 8] < 90).all()
    assert (middle[:, 28:31].min(1) < middle[:, 0]).all()
    text = desk.files.found_boxes(job.id).read_text()
    assert text.splitlines()[0] == "image,x,y,width,height,confidence,angle,angle_confidence"
    again = desk.upload(frames, desk.tiny(align="heading"))
    desk.files.boxes(again.id).write_text(text.replace(text.splitlines()[3], "cam/02.png,7,9,50,50,1,12.5,"))
    _, sent, _ = prepared(desk, again)
    assert sent["frames"][2] == [7, 9, 50, 12.5]
    assert [*sent["frames"][:2], *sent["frames"][3:]] == [*info["frames"][:2], *info["frames"][3:]]


def test_pictures_of_which_the_heading_is_not_known_are_skipped_and_named(desk, arena) -> None:
    job = desk.upload(arena, desk.tiny(align="heading"))
    rows = [f"{n:02}.png,{10 * n},20,64,32,{'' if n == 3 else 30 * n}" for n in range(12)]
    desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height,angle", *rows]))
    done, info, squares = prepared(desk, job)
    assert (done.metrics["images"], done.metrics["skipped"]) == (11, 1)
    (skipped,) = done.metrics["skipped_files"]
    assert skipped["name"] == "cam/03.png"
    assert "the heading of the thing in it is not known" in skipped["reason"]
    assert info["frames"][:2] == [[0, 4, 64], [10, 4, 64, 30]]
    expected = fit_square(open_picture(arena["cam/01.png"]), 32, (10, 20, 64, 32), 30)[0]
    np.testing.assert_array_equal(squares[1], expected)


def test_angles_are_not_used_unless_they_are_asked_for(desk, arena) -> None:
    job = desk.upload(arena, desk.tiny())
    rows = [f"{n:02}.png,{10 * n},20,64,32,{30 * n}" for n in range(12)]
    desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height,angle", *rows]))
    _, info, _ = prepared(desk, job)
    assert info["frames"][1] == [10, 4, 64]
    assert desk.files.found_boxes(job.id).read_text().splitlines()[2] == "cam/01.png,10.0,20.0,64.0,32.0,,30.0,"


def test_pictures_that_do_not_come_from_one_camera_cannot_be_aligned(desk) -> None:
    job = desk.upload({f"{n}.png": desk.picture(n, kind="PNG") for n in range(12)}, desk.tiny(align="heading"))
    desk.caretaker.prepare(job.id)
    failed = desk.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "too_few_pictures"
    assert "send boxes with angles, set locate to motion to use it all the same" in failed.error.detail


def test_a_view_from_above_is_rotated_without_being_asked(desk) -> None:
    frames = walker(24)
    job, upright = (desk.upload(frames, desk.tiny(**changes)) for changes in ({}, {"align": "off"}))
    (done, info, _), (other, other_info, _) = prepared(desk, job), prepared(desk, upright)
    found = np.array([frame[3] for frame in info["frames"]])
    assert np.abs((found - walk_angles(24) + 180) % 360 - 180).max() < 6
    assert (done.metrics["located"]["headings"], info["align"]) == (24, "heading")
    assert "headings" not in other.metrics["located"]
    assert (other_info["align"], [len(frame) for frame in other_info["frames"]]) == ("off", [3] * 24)
    assert [frame[:3] for frame in info["frames"]] == [frame[:3] for frame in other_info["frames"]]
    # boxes that are sent back are rotated alike; without a rotation there are no angles to send
    again = desk.upload(frames, desk.tiny())
    desk.files.boxes(again.id).write_text(desk.files.found_boxes(job.id).read_text())
    assert prepared(desk, again)[1]["frames"] == info["frames"]
    assert desk.files.found_boxes(upright.id).read_text().splitlines()[0] == "image,x,y,width,height,confidence"
    # what training takes, and the version will have
    assert [prepared_config(desk.files, job).align for job in (done, other)] == ["heading", "off"]


def test_corrections_without_an_angle_do_not_stop_the_rotation(desk) -> None:
    """They get the heading that motion found in their place; one elsewhere has none, and is left out."""
    frames = walker(24)
    job = desk.upload(frames, desk.tiny())
    _, info, _ = prepared(desk, job)
    x, y, side, _ = info["frames"][12]
    rows = [f"{name},{a + 2},{b + 1},{c},{c}" for name, (a, b, c, _) in zip(frames, info["frames"][:4], strict=False)]
    rows.append(f"cam/12.png,{x + side},{y},{side},{side}")
    for relative in (False, True):
        again = desk.upload(frames, desk.tiny())
        text = "\n".join(["image,x,y,width,height", *rows])
        if relative:  # as MegaDetector states boxes; they get a margin
            boxes = {row.split(",")[0]: [float(value) for value in row.split(",")[1:]] for row in rows}
            shares = {
                name: [(a + c / 12) / 320, (b + c / 12) / 240, c / 1.2 / 320, c / 1.2 / 240]
                for name, (a, b, c, _) in boxes.items()
            }
            images = [{"file": name, "detections": [{"bbox": box, "conf": 0.9}]} for name, box in shares.items()]
            text = json.dumps({"images": images})
        desk.files.boxes(again.id).write_text(text)
        done, corrected, _ = prepared(desk, again)
        expected = [[a + 2, b + 1, c, angle] for a, b, c, angle in info["frames"][:4]]
        expected += info["frames"][4:12] + info["frames"][13:]
        assert corrected["align"] == "heading"
        np.testing.assert_allclose(corrected["frames"], expected, atol=0.02)
        assert done.metrics["located"]["headings"] == 23
        (skipped,) = done.metrics["skipped_files"]
        assert (skipped["name"], "the heading of the thing in it is not known" in skipped["reason"]) == (
            "cam/12.png",
            True,
        )


@pytest.mark.parametrize("count", [1, 20, 24])
def test_boxes_without_angles_get_the_headings_of_motion_with_either_setting(desk, count) -> None:
    frames = walker(24)
    for align in ("auto", "heading"):
        alone = prepared(desk, desk.upload(frames, desk.tiny(align=align)))[1]["frames"]
        rows = [f"{name},{a},{b},{c},{c}" for name, (a, b, c, _) in zip(frames, alone[:count], strict=False)]
        job = desk.upload(frames, desk.tiny(align=align))
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *rows]))
        done, info, _ = prepared(desk, job)
        assert (info["align"], done.metrics["located"]["headings"]) == ("heading", 24)
        assert done.metrics["located"]["by"] == ("boxes" if count == 24 else "boxes and motion")
        np.testing.assert_allclose(info["frames"], alone, atol=0.02)
    upright = desk.upload(frames, desk.tiny(align="off"))
    desk.files.boxes(upright.id).write_text("\n".join(["image,x,y,width,height", *rows]))
    done, info, _ = prepared(desk, upright)
    assert (info["align"], "headings" in done.metrics["located"]) == ("off", False)


def test_boxes_without_angles_where_motion_shows_none_cannot_be_aligned(desk, arena) -> None:
    stills = {f"{n}.png": desk.picture(n, kind="PNG") for n in range(12)}
    still_arena = {f"cam/{n:02}.png": png(arena_frame((40, 40), n)) for n in range(12)}
    for files, why in ((stills, "not one camera"), (still_arena, "nothing moves")):
        job = desk.upload(files, desk.tiny(align="heading"))
        rows = [f"{name},1,2,20,20" for name in files]
        desk.files.boxes(job.id).write_text("\n".join(["image,x,y,width,height", *rows]))
        desk.caretaker.prepare(job.id)
        failed = desk.jobs.get(job.id)
        assert failed.error is not None, why
        assert failed.error.code == "bad_boxes"
        assert "no box has an angle, and motion shows no heading" in failed.error.detail
        assert "send boxes with angles" in failed.error.detail
        again = desk.upload(files, desk.tiny())
        desk.files.boxes(again.id).write_text("\n".join(["image,x,y,width,height", *rows]))
        done, info, _ = prepared(desk, again)
        assert (info["align"], done.metrics["located"]) == ("off", {"by": "boxes", "note": None})


def test_files_that_name_all_frames_with_a_thing_are_filled_on_request_alone(desk) -> None:
    film = {"cam.mkv": encode_film(arena_frame((x, y), n) for n, (x, y) in enumerate(walk(24)))}
    detections = [{"category": "1", "conf": 0.9, "bbox": [0, 0, 0.5, 0.5], "frame_number": n} for n in range(10)]
    images = [{"file": "cam.mkv", "frame_rate": 25, "detections": detections}]
    for locate, count, by in (("auto", 10, "boxes"), ("motion", 24, "boxes and motion")):
        job = desk.upload(film, desk.tiny(locate=locate))
        desk.files.boxes(job.id).write_text(json.dumps({"images": images, "detection_categories": {"1": "animal"}}))
        done, info, _ = prepared(desk, job)
        assert (len(info["names"]), done.metrics["located"]["by"]) == (count, by)


@pytest.mark.parametrize("rears", [False, True])
def test_a_view_from_the_side_is_not_rotated(desk, rears) -> None:
    frames = {}
    for n in range(24):
        is_up = rears and n % 8 > 4
        place, angle = (40 + 10 * n, 120 - 12 * is_up), 90 - 75 * is_up + 10 * np.sin(n)
        frames[f"cam/{n:02}.png"] = png(walker_frame(place, angle, n))
    done, info, _ = prepared(desk, desk.upload(frames, desk.tiny()))
    assert (done.metrics["located"]["found"], info["align"]) == (24, "off")
    assert [len(frame) for frame in info["frames"]] == [3] * 24

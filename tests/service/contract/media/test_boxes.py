"""Files of boxes: ours, COCO's and MegaDetector's."""

from __future__ import annotations

import json
import time

import pytest

from service.contract.errors import BadBoxes
from service.contract.media.boxes import FoundBox, parse_box_file, write_csv

SIZE = (200, 100)


def test_csv_is_read_in_any_order_and_taken_as_it_is() -> None:
    text = "\ufeffheight,image,y,x,width,confidence\n30,a/one.png,2,1,20,0.4\n3,a/one.png,2,1,2,0.9\n,two.png,,,,\n\n"
    file = parse_box_file(text.encode())
    assert file.match(["one.png", "x/two.png", "three.png"]) == ["a/one.png", "two.png", None]
    # the most confident first
    assert file.of("a/one.png", SIZE) == [FoundBox((1, 2, 2, 3), 0.9), FoundBox((1, 2, 20, 30), 0.4)]
    assert file.of("two.png", SIZE) == []


TABLE = "image,x,y,width,height,confidence\none.png,1.5,2,20,30,0.5\ntwo.png,,,,,\n"


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace(",", ";").replace(".5", ",5"),
        "sep=;\r" + TABLE.replace(",", ";").replace("\n", "\r"),
        TABLE.replace(",", "\t").encode("utf-16"),
        TABLE.replace("\n", ",,\n") + ",,,\n",
        TABLE.replace(",,,,,", ",NaN,NaN,#N/A,NA,"),
    ],
)
def test_csv_that_a_spreadsheet_saved_again_reads_alike(text: str | bytes) -> None:
    file = parse_box_file(text)
    assert file.boxes == {"one.png": [FoundBox((1.5, 2, 20, 30), 0.5)], "two.png": []}


def test_boxes_of_pictures_with_garbled_names_say_what_may_be_wrong() -> None:
    file = parse_box_file(TABLE)
    with pytest.raises(BadBoxes, match=r"names beyond ASCII in a zip are read as UTF-8"):
        file.match(["â_one.png"])


def test_csv_that_was_written_is_read_back() -> None:
    rows = [("a, b.png", FoundBox((1.5, -2.0, 30.0, 40.0), 0.75)), ("film.mp4#000012", None)]
    text = write_csv(rows)
    assert text.splitlines()[0] == "image,x,y,width,height,confidence"
    file = parse_box_file(text)
    assert file.of("a, b.png", SIZE) == [FoundBox((1.5, -2.0, 30.0, 40.0), 0.75)]
    assert file.boxes["film.mp4#000012"] == []
    assert not file.has_angles


def test_angles_are_written_if_there_are_any_and_read_back() -> None:
    turned, upright = FoundBox((1, 2, 30, 40), 0.75, 350.5, 0.9), FoundBox((1, 2, 30, 40), None)
    text = write_csv([("a.png", turned), ("b.png", upright), ("c.png", None)])
    assert text.splitlines()[::3] == ["image,x,y,width,height,confidence,angle,angle_confidence", "c.png,,,,,,,"]
    file = parse_box_file(text)
    assert file.boxes == {"a.png": [turned], "b.png": [upright], "c.png": []}
    assert file.has_angles
    written_by_hand = parse_box_file("image;x;y;width;height;angle\na.png;1;2;30;40;-90,5\n")
    assert written_by_hand.of("a.png", SIZE) == [FoundBox((1, 2, 30, 40), angle=-90.5)]


def test_coco_boxes_get_a_margin() -> None:
    document = {
        "images": [{"id": 7, "file_name": "one.png"}, {"id": 8, "file_name": "none.png"}],
        "annotations": [{"image_id": 7, "bbox": [10, 20, 40, 20]}, {"image_id": 7, "bbox": []}, {"image_id": 7}],
    }
    file = parse_box_file(json.dumps(document))
    (found,) = file.of("one.png", SIZE)
    assert found.box == (6, 16, 48, 28)
    assert file.of("none.png", SIZE) == []


MEGADETECTOR = {
    "info": {"detector": "md_v5a.0.0.pt", "format_version": "1.4"},
    "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
    "images": [
        {
            "file": "cam/one.jpg",
            "detections": [
                {"category": "1", "conf": 0.1, "bbox": [0, 0, 1, 1]},
                {"category": "1", "conf": 0.6, "bbox": [0.1, 0.2, 0.2, 0.2]},
                {"category": "2", "conf": 0.99, "bbox": [0.5, 0.5, 0.2, 0.2]},
                {"category": "1", "conf": 0.8, "bbox": [0.5, 0.5, 0.1, 0.4]},
            ],
        },
        {"file": "cam/empty.jpg", "detections": []},
        {"file": "cam/broken.jpg", "failure": "image access", "detections": None},
    ],
}


def test_megadetectors_animals_are_in_shares_of_the_picture() -> None:
    file = parse_box_file(json.dumps(MEGADETECTOR))
    best, other = file.of("cam/one.jpg", SIZE)
    assert best.box == pytest.approx((100 - 4, 50 - 4, 20 + 8, 40 + 8))
    assert best.confidence == 0.8
    assert other.box == pytest.approx((20 - 4, 20 - 4, 40 + 8, 20 + 8))
    assert file.of("cam/empty.jpg", SIZE) == file.of("cam/broken.jpg", SIZE) == []
    capitals = {**MEGADETECTOR, "detection_categories": {"1": "Animal", "2": "Person"}}
    assert parse_box_file(json.dumps(capitals)) == file


def test_frames_are_known_by_their_number() -> None:
    film = {"file": "walk.mp4", "frame_rate": 25.0, "detections": []}
    film["detections"] = [{"category": "1", "conf": 0.9, "bbox": [0, 0, 0.5, 0.5], "frame_number": n} for n in (0, 12)]
    file = parse_box_file(json.dumps({**MEGADETECTOR, "images": [film]}))
    assert file.by_frame() == {0: "walk.mp4#000000", 12: "walk.mp4#000012"}
    frames = parse_box_file("image,x,y,width,height\nframe000003.jpg,1,1,2,2\n").by_frame()
    assert frames == {3: "frame000003.jpg"}
    with pytest.raises(BadBoxes, match="names end with the frame"):
        parse_box_file("image,x,y,width,height\nwalk,1,1,2,2\n").by_frame()


def test_long_runs_of_digits_are_no_frame_and_take_no_time() -> None:
    began = time.process_time()
    for name in ("1" * 100_000 + "/", "#" + "9" * 5000, "#" + "9" * 19):
        with pytest.raises(BadBoxes, match="names end with the frame"):
            parse_box_file(f"image,x,y,width,height\n{name},1,1,2,2\n").by_frame()
    assert time.process_time() - began < 2
    assert list(parse_box_file("image,x,y,width,height\na#000012,1,1,2,2\nframe 7.png,1,1,2,2\n").by_frame()) == [12, 7]


def test_a_file_may_only_say_in_which_pictures_nothing_is() -> None:
    file = parse_box_file("image,x,y,width,height\na,,,,\n,,,,\nb,NA,NA,NA,NA\n")
    assert (file.boxes, file.has_boxes) == ({"a": [], "b": []}, False)
    assert parse_box_file("image,x,y,width,height\na,,,,\nb,1,2,3,4\n").has_boxes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the boxes are empty; expected CSV"),
        (" \n", "the boxes are empty; expected CSV"),
        ("image,x\n", "lacks y, width, height"),
        ("image,x,y,width\na,1,2,3\n", "lacks height"),
        ("image,x,y,width,height\na,1,2,three,4\n", "row 2 of the boxes"),
        ("image,x,y,width,height,angle,angle_confidence\na,1,2,3,4,9,inf\n", "row 2 of the boxes: a confidence is not"),
        ("image,x,y,width,height,confidence\na,1,2,3,4,-inf\n", "row 2 of the boxes: a confidence is not finite"),
        ("image,x,y,width,height,angle\na,1,2,3,4,inf\n", "the angle is inf; it must be in degrees"),
        (
            json.dumps({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 10**400]}]}),
            "is not x, y, width and height as numbers",
        ),
        ("image,x,y,width,height,angle\na,1,2,3,4,361\n", "the angle is 361; it must be in degrees from -360 to 360"),
        ("image,x,y,width,height,angle\na,1,2,3,4,left\n", "row 2 of the boxes"),
        ("image,x,y,width,height\na,1,2,0,4\n", "has no area"),
        ("image,x,y,width,height\na,nan,2,3,4\n", "is not x, y, width and height as numbers"),
        ("image,x,y,width,height\na,inf,2,3,4\n", "not finite"),
        ("image,x,y,width,height\n,1,2,3,4\n", "row 2 of the boxes names no image"),
        ("image,x,y,width,height\n", "the boxes have a header and no row; expected CSV with the columns image,x,y"),
        ("image,x,y,width,height\n,,,,\n\n,,,,\n", "the boxes have a header and no row"),
        ("image;x;y;width;height;confidence\n;;;;;0,5\n", "the boxes have a header and no row"),
        ("image,x,y,width,height\n\n,,,,\na,1,2,three,4\n", "row 4 of the boxes"),
        ('{"images": [{"file": "a"}]}', "there is no box in the boxes, of 1 pictures or frames"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', "there is no box in the boxes"),
        ("{", "neither valid JSON"),
        ('{"images": 3}', "no list 'images'"),
        ('{"images": [{"file": 3}]}', "has no 'file'"),
        ('{"images": [{"file": "a", "detections": 3}]}', "the detections of 'a' are not a list of objects"),
        ('{"images": [{"file": "a", "detections": [1.5]}]}', "the detections of 'a' are not a list of objects"),
        ('{"images": [{"file": "a", "detections": [{"frame_number": null}]}]}', "frame_number is None"),
        ('{"images": [{"file": "a", "detections": [{"frame_number": 1e300}]}]}', "frame_number is 1e"),
        ('{"images": [], "detection_categories": [1]}', "detection_categories of the boxes is not an object"),
        ('{"images": [{"id": []}], "annotations": []}', r"id is \[\] in the boxes"),
        ('{"images": [], "annotations": [{"image_id": {}}]}', "image_id is {} in the boxes"),
        ('{"images": [{"file": "a", "detections": [{"bbox": "1234"}]}]}', "x, y, width and height"),
        ('{"images": [{"file": "a", "detections": [{"conf": 1, "bbox": [0, 0, 1]}]}]}', "x, y, width and height"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": "x"}]}', "annotations"),
    ],
)
def test_what_is_no_box_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(BadBoxes, match=message):
        parse_box_file(text)


def test_boxes_of_other_pictures_are_refused() -> None:
    with pytest.raises(
        BadBoxes, match=r"none of the 1 pictures with boxes \('a'\) is among the 1 pictures \('b.png'\)$"
    ):
        parse_box_file("image,x,y,width,height\na,1,2,3,4\n").match(["b.png"])

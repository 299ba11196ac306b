"""Labels as other programs write them: spreadsheets, DeepLabCut, Label Studio."""

import json
import time

import numpy as np
import pytest

from model.scoring.label_files import parse_labels
from model.scoring.label_matching import match_labels
from model.scoring.labels import LabelsError
from service.contract.media.videos import frame_name


def read(content):
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return parse_labels(text if isinstance(text, bytes) else text.encode())


PLAIN = """image,keypoint,x,y
a.jpg,nose,10.5,20
a.jpg,tail,30,40
b.jpg,nose,,
b.jpg,tail,5,6
"""


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", ",,\n"),  # Excel's empty columns
        "\n,,,\n" + PLAIN.replace("\n", "\n,,,\n") + ",,,\n\n",  # and rows
        PLAIN.replace("image,", ",image,").replace("\na", "\n,a").replace("\nb", "\n,b"),  # an empty first column
        PLAIN.replace(",,", ",NaN,nan"),
        PLAIN.replace(",,", ",NA,"),
        PLAIN.replace(",", ";").replace(".5", ",5"),  # Excel in most of Europe
        "sep=;\r\n" + PLAIN.replace(",", ";").replace(".5", ",5").replace("\n", "\r\n"),
        *(
            f"{line}{end}" + PLAIN.replace(",", ";").replace("\n", end)
            for line in ("sep=;", '"sep=;"')
            for end in "\r\n"
        ),
        "sep=\t\n" + PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r"),  # of an old Mac
        PLAIN.replace(",", "\t"),
        PLAIN.encode("utf-32"),
        *(PLAIN.replace(",,", f",{cell},{cell}") for cell in ("#N/A", "-nan", "<NA>", "null", "-1.#IND", "1.#QNAN")),
        PLAIN.replace("x,y", "x,y,visible").replace(",,", ",#N/A,#N/A,#N/A"),
        PLAIN.replace(",", "\t").replace(".5", ",5").encode("utf-16"),  # Excel's "Unicode text"
        PLAIN.replace("x,y", "x,y,visible").replace(",,", ",,,1"),
        PLAIN.replace("x,y", "x,y,visible").replace(",,", ",NaN,NaN,nan"),
        PLAIN.replace("x,y", "x,y,width,height").replace("30,40", "30,40,,").replace("5,6", "5,6,0,0"),
    ],
)
def test_tables_of_spreadsheets_read_alike(text):
    labels = read(text)
    assert labels.names == ("a.jpg", "b.jpg")
    assert labels.keypoint_names == ("nose", "tail")
    assert labels.keypoints.tolist() == [[[10.5, 20], [30, 40]], [[0, 0], [5, 6]]]
    assert labels.visibility.tolist() == [[1, 1], [0, 1]]
    assert labels.sizes is None


def test_sizes_of_some_pictures_are_taken_and_others_unknown():
    text = "image,keypoint,x,y,width,height\na.jpg,nose,1,2,30,40\nb.jpg,nose,1,2,,\n"
    assert read(text).sizes.tolist() == [[30, 40], [0, 0]]


def test_a_row_with_more_than_the_header_is_refused():
    with pytest.raises(LabelsError, match="line 2: has more or fewer fields than the header's 4"):
        read("image,keypoint,x,y\na.jpg,nose,1,2,,7\n")


DEEPLABCUT = """scorer,Anna,Anna,Anna,Anna
bodyparts,nose,nose,tail,tail
coords,x,y,x,y
labeled-data/walk/img01.png,10.5,20,30,40
labeled-data/walk/img02.png,,,5,6
labeled-data/walk/img03.png,,,,
"""
IN_COLUMNS = DEEPLABCUT.replace("scorer,", "scorer,,,").replace("parts,", "parts,,,").replace("coords,", "coords,,,")
IN_COLUMNS = IN_COLUMNS.replace("labeled-data/walk/", "labeled-data,walk,")
ONE_ANIMAL = DEEPLABCUT.replace("bodyparts", "individuals,mouse,mouse,mouse,mouse\nbodyparts")


@pytest.mark.parametrize(
    "text",
    [
        DEEPLABCUT,
        DEEPLABCUT.replace("/", "\\"),
        DEEPLABCUT.replace("\n", "\r\n"),
        DEEPLABCUT.replace("\n", ",,\n"),
        DEEPLABCUT.replace(",,", ",NaN,NaN").replace("NaN,NaN,", "NaN,NaN,"),
        DEEPLABCUT.replace(",", ";").replace("10.5", "10,5"),
        IN_COLUMNS,
        ONE_ANIMAL,
    ],
)
def test_deeplabcuts_table(text):
    labels = read(text)
    assert [name.replace("\\", "/") for name in labels.names] == [f"labeled-data/walk/img0{n}.png" for n in (1, 2)]
    assert labels.keypoint_names == ("nose", "tail")
    assert labels.keypoints.tolist() == [[[10.5, 20], [30, 40]], [[0, 0], [5, 6]]]
    assert labels.visibility.tolist() == [[1, 1], [0, 1]]
    assert labels.match(["walk/img02.png", "other.png"]).tolist() == [1, -1]


SEVERAL = """scorer,A,A,A,A,A,A,A,A
individuals,m1,m1,m1,m1,m2,m2,single,single
bodyparts,nose,nose,tail,tail,nose,nose,corner,corner
coords,x,y,x,y,x,y,x,y
labeled-data,w,1.png,1,2,3,4,,,7,8
labeled-data,w,2.png,,,,,5,6,7,8
"""


def test_deeplabcuts_individuals_take_turns_and_unique_body_parts_belong_to_each():
    labels = read(
        SEVERAL.replace("scorer", "scorer,,")
        .replace("individuals", "individuals,,")
        .replace("bodyparts", "bodyparts,,")
        .replace("coords", "coords,,")
    )
    assert labels.keypoint_names == ("nose", "tail", "corner")
    assert labels.keypoints.tolist() == [[[1, 2], [3, 4], [7, 8]], [[5, 6], [0, 0], [7, 8]]]
    assert labels.visibility.tolist() == [[1, 1, 1], [1, 0, 1]]


def test_a_body_part_of_two_pairs_of_columns_is_refused():
    with pytest.raises(LabelsError, match="the body part 'nose' has two columns x; expected one of each"):
        read(DEEPLABCUT.replace("tail", "nose"))


def test_two_animals_of_one_picture_are_refused():
    text = DEEPLABCUT.replace("bodyparts", "individuals,m1,m1,m2,m2\nbodyparts").replace("tail", "nose")
    with pytest.raises(LabelsError, match=r"img01.png' has labels of two animals, m1 and m2; .* cut the animals out"):
        read(text)


def test_two_animals_are_refused_where_their_labels_would_fill_one_pose():
    """The nose of one and the tail of another one."""
    two = DEEPLABCUT.replace("bodyparts", "individuals,m1,m1,m2,m2\nbodyparts")
    with pytest.raises(LabelsError, match=r"img01.png' has labels of two animals, m1 and m2; expected one"):
        read(two)
    plain = "image,keypoint,x,y,individual\na.jpg,nose,1,2,m1\nb.jpg,nose,3,4,m2\nb.jpg,tail,5,6,m2\na.jpg,tail,{},m2\n"
    assert read(plain.format(",")).visibility.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(LabelsError, match=r"line 5: 'a.jpg' has labels of two animals, m1 and m2; expected one"):
        read(plain.format("7,8"))
    both = "image,keypoint,x,y,animal,instance\na.jpg,nose,1,2,dog,0\na.jpg,tail,3,4,dog,{}\n"
    assert read(both.format(0)).visibility.tolist() == [[1, 1]]
    with pytest.raises(LabelsError, match=r"'a.jpg' has labels of two animals, dog 0 and dog 1; expected one"):
        read(both.format(1))
    for missing in ("", "NaN"):
        with pytest.raises(LabelsError, match=r"two animals, one without a name and m2; expected one"):
            read(f"image,keypoint,x,y,individual\na.jpg,nose,1,2,{missing}\na.jpg,tail,3,4,m2\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("coords,", "axes,", "no header row 'coords'"),
        ("20,30", "20,x", "line 4: x of tail is 'x'; expected a finite number"),
        ("20,30", ",30", "'nose' of 'labeled-data/walk/img01.png' has only one of x and y"),
        ("img02", "img01", "'labeled-data/walk/img01.png' is there twice"),
        ("y,x,y", "y,x,likelihood", "'tail' has a column x and no y"),
        ("40", "40,9", "line 4: has more fields than the header's 5"),
        ("10.5,20,30,40", ",,0.5,0.5", None),
    ],
)
def test_damaged_tables_of_deeplabcut_are_refused(old, new, message):
    if message is None:
        assert read(DEEPLABCUT.replace(old, new)).visibility[0].tolist() == [0, 1]
        return
    with pytest.raises(LabelsError, match=message):
        read(DEEPLABCUT.replace(old, new))


def test_empty_cells_behind_a_table_of_deeplabcut_are_ignored():
    assert read(DEEPLABCUT.replace("20,30,40", "20,30,40,,")).names == read(DEEPLABCUT).names


def test_the_last_of_many_pictures_that_is_there_twice_is_found_soon():
    head = "".join(DEEPLABCUT.splitlines(keepends=True)[:3])
    rows = "".join(f"{number}.png,1,2,3,4\n" for number in range(60_000))
    began = time.process_time()
    with pytest.raises(LabelsError, match=r"the picture '59999.png' is there twice"):
        read(head + rows + "59999.png,1,2,3,4\n")
    assert time.process_time() - began < 10  # half a minute when each picture was counted by itself


def test_short_rows_of_a_wide_table_take_no_longer_than_they_are():
    head = "\n".join(
        ",".join([level, *cells])
        for level, cells in (
            ("scorer", ["me"] * 1000),
            ("bodyparts", [f"part {number // 2}" for number in range(1000)]),
            ("coords", ["x", "y"] * 500),
        )
    )
    took = []
    for _ in range(2):  # the first touches memory that the process has not used before
        began = time.process_time()
        labels = read(head + "\n" + "".join(f"{number}.png,7,9\n" for number in range(20_000)))
        took.append(time.process_time() - began)
    assert min(took) < 2  # 3 s when each was made as long as the header
    assert labels.visibility.sum() == 20_000
    with pytest.raises(LabelsError, match="41000 pictures of 500 keypoints; at most"):
        read(head + "\n" + "".join(f"{number}.png\n" for number in range(41_000)))


def test_long_run_of_accents_in_a_name_is_refused_at_once():
    """Normalising it would take hours, and hold up every other thread."""
    long = "a" + "\u0301\u0327" * 500_000
    began = time.process_time()
    labels = read([{"data": {"image": long + ".png"}, "annotations": [{"result": [point("nose", 1, 2)]}]}])
    with pytest.raises(LabelsError, match="has 1000005 characters; at most 4096"):
        labels.match(["a.png"])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("annotations", [3, "x", {"result": 1}])
def test_label_studios_annotations_must_be_a_list(annotations):
    with pytest.raises(LabelsError, match="the annotations of a task are not a list"):
        read([{"data": {"image": "a.jpg"}, "annotations": annotations}])


def test_a_message_repeats_little_of_a_long_name():
    with pytest.raises(LabelsError, match="is there twice") as refused:
        read(f"image,keypoint,x,y\n{'a' * 900},nose,1,2\n{'a' * 900},nose,1,2\n")
    assert len(str(refused.value)) < 1000
    with pytest.raises(LabelsError, match="…") as refused:
        read(f"image,keypoint,x,y\na,{'b' * 10**5},1,2\na,{'b' * 10**5},1,2\n")
    assert len(str(refused.value)) == 1000


def test_a_table_without_any_label_is_refused():
    head = "".join(DEEPLABCUT.splitlines(keepends=True)[:3])
    for rows in ("", "labeled-data/walk/img03.png,,,,\n"):
        with pytest.raises(LabelsError, match="no picture of the table has a labelled keypoint"):
            read(head + rows)


def point(label, x, y, **more):
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [label]}
    return {"original_width": 200, "original_height": 100, "image_rotation": 0, "type": "keypointlabels"} | {
        "value": value,
        **more,
    }


def task(address, *points, **more):
    return {"id": 1, "data": {"image": address}, "annotations": [{"id": 2, "result": list(points)}], **more}


def test_label_studios_tasks():
    box = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 9, "height": 9, "rectanglelabels": ["dog"]}}
    labels = read(
        [
            task("/data/upload/3/0123abcd-a%20dog.jpg", point("nose", 50, 25), box, point("tail", 10.5, 80)),
            task("/data/local-files/?d=walk%2Fb.jpg", point("tail", 1, 2)),
            task("https://example.org/pictures/c.jpg?key=1"),  # without a label
        ]
    )
    assert labels.names == ("a dog.jpg", "walk/b.jpg")
    assert labels.keypoint_names == ("nose", "tail")
    assert labels.keypoints.tolist() == [[[100, 25], [21, 80]], [[0, 0], [2, 2]]]
    assert labels.visibility.tolist() == [[1, 1], [0, 1]]
    assert labels.sizes.tolist() == [[200, 100], [200, 100]]


def test_label_studios_points_that_are_labelled_apart():
    """The tags KeyPoint and Labels instead of KeyPointLabels; a rectangle that is labelled so has a height."""

    def apart(label, **size):
        drawn = {**point(label, 50, 25), "type": "labels"}
        return {**drawn, "value": {"x": 50, "y": 25, "width": 0.3, "labels": [label], **size}}

    labels = read([task("a.jpg", {**apart("nose"), "type": "keypoint"}, apart("nose"), apart("dog", height=9))])
    assert (labels.keypoint_names, labels.keypoints.tolist()) == (("nose",), [[[100, 25]]])


def test_label_studios_picture_is_known_by_its_suffix():
    data = {"note": "dog no. 3", "photo": "https://example.org/b.JPG?key=1.5"}
    labels = read([{**task("", point("nose", 50, 25)), "data": data}])
    assert labels.names == ("/b.JPG",)


def test_label_studios_short_form_and_sleap_ios():
    flat = [
        {
            "image": "s3://bucket/a.jpg",
            "kp": [point("nose", 50, 25)["value"] | {"original_width": 200, "original_height": 100}],
        }
    ]
    assert read(flat).names == ("/a.jpg",)
    assert read(flat).keypoints.tolist() == [[[100, 25]]]
    video = {
        "data": {},
        "meta": {"video": {"filename": "C:\\films\\walk.mp4", "frame_idx": 12, "shape": [99, 100, 200, 3]}},
    }
    assert read([task("", point("nose", 50, 25)) | video]).names == (frame_name("walk.mp4", 12),)
    pictures = {"data": {}, "meta": {"video": {"filename": ["x/a.jpg", "x/b.jpg"], "frame_idx": 1}}}
    assert read([task("", point("nose", 50, 25)) | pictures]).names == ("x/b.jpg",)


@pytest.mark.parametrize("name", ["mouse #3.jpg", "why?.jpg", "50%20.jpg", "walk/a.jpg"])
def test_label_studios_plain_names_are_taken_as_they_are(name):
    assert read([task(name, point("nose", 1, 1))]).names == (name,)


def test_a_single_task_and_an_annotator_who_labelled_nothing():
    single = task("a.jpg", point("nose", 50, 25))
    labels = read(single)
    assert read([single | {"annotations": [{"result": []}, *single["annotations"]]}]).keypoints.tolist() == (
        labels.keypoints.tolist()
    )
    assert labels.names == ("a.jpg",)


def test_label_studios_annotators_are_not_mixed():
    first, second, third = (
        {"result": [point("nose", x, 25)], **more}
        for x, more in ((10, {"was_cancelled": True}), (20, {}), (30, {"ground_truth": True}))
    )

    def x_of(*annotations):
        return read([task("a.jpg") | {"annotations": list(annotations)}]).keypoints[0, 0, 0]

    assert x_of(first, second) == 40
    assert x_of(first, second, third) == 60


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("a.jpg")], "no task has a labelled keypoint"),
        ([task("a.jpg", point("nose", 1, 1), point("nose", 2, 2))], "'a.jpg' has two labels 'nose'; expected one"),
        ([task("a.jpg", point("nose", 1, 1, image_rotation=90))], "was turned by 90 degrees"),
        ([task("a.jpg", point("nose", 1, 1, original_width=None))], "'a.jpg' has no 'original_width' that is a number"),
        ([task("a.jpg", point("nose", "1", 1))], "a label of 'a.jpg' has no 'x'"),
        ([task("", point("nose", 1, 1))], "names no picture"),
        ([1], "a JSON list of something else"),
    ],
)
def test_unusable_tasks_are_refused(tasks, message):
    with pytest.raises(LabelsError, match=message):
        read(tasks)


def test_rows_without_content_are_ignored_and_labels_need_a_keypoint():
    """An index or a remark beside them is no content."""
    indexed = "".join(f"{number},{line}\n" for number, line in enumerate(PLAIN.splitlines()))
    indexed = indexed.replace("0,image", ",image", 1) + "7,,,,\n8,NA,NA,NaN,NaN\n"
    np.testing.assert_array_equal(read(indexed).keypoints, read(PLAIN).keypoints)
    assert read(indexed).names == read(PLAIN).names
    for text in ("image,keypoint,x,y\n", "image,keypoint,x,y,\n,,,,1\n,,,,2\n"):
        with pytest.raises(LabelsError, match="a header and no row"):
            read(text)
    for text in ("image,keypoint,x,y\na,nose,,\nb,nose,NaN,NaN\n", "image,keypoint,x,y,visible\na,n,1,2,0\nb,n,3,4,0"):
        with pytest.raises(LabelsError, match="no keypoint is labelled in 2 pictures"):
            match_labels(read(text), ["a", "b"], [(9, 9)] * 2)


def test_what_is_no_label_file_is_refused_in_words():
    with pytest.raises(LabelsError, match="neither text nor HDF5; expected CSV, DeepLabCut's"):
        read(b"\0\1\2\3")
    with pytest.raises(LabelsError, match="an Excel workbook or a zip; save it as 'CSV UTF-8'"):
        read(b"PK\x03\x04\0\0")
    with pytest.raises(LabelsError, match=r"not UTF-8 text \(byte 20\); .* save as 'CSV UTF-8'"):
        read("image,keypoint,x,y\nH\xfcndin.jpg,nose,1,2\n".encode("cp1252"))
    with pytest.raises(LabelsError, match="is empty"):
        read(b"")
    assert np.array(read(PLAIN).keypoints).shape == (2, 2, 2)

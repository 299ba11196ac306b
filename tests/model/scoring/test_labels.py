import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.data import fit_picture
from model.scoring.label_files import read_labels
from model.scoring.labels import MAX_PICTURES, Labels, LabelsError, check_extent, from_square, hashed_split, to_square
from service.contract.media.fitting import fit_square


@pytest.fixture
def read(tmp_path):
    """A labels file of some text or JSON, read."""

    def _read(content):
        path = tmp_path / "labels"
        path.write_bytes(content if isinstance(content, bytes) else _text(content).encode())
        return read_labels(path)

    return _read


def _text(content):
    return content if isinstance(content, str) else json.dumps(content)


CSV = """image,keypoint,x,y,visible,split,width,height
a.jpg,nose,10,20,1,train,100,50
a.jpg,tail,30.5,40,1,train,100,50
b.jpg,tail,1,2,0,heldout,60,60
b.jpg,nose,5,6,1,heldout,60,60
"""


def coco(**changes):
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50, "split": "train"},
            {"id": 8, "file_name": "b.jpg", "width": 60, "height": 60, "split": "test"},
            {"id": 9, "file_name": "unlabelled.jpg", "width": 60, "height": 60},
        ],
        "annotations": [
            {"image_id": 7, "keypoints": [10, 20, 2, 30.5, 40, 1]},
            {"image_id": 7, "iscrowd": 1, "keypoints": [1, 1, 2, 1, 1, 2]},
            {"image_id": 8, "keypoints": [5, 6, 2, 0, 0, 0]},
            {"image_id": 8, "keypoints": [0, 0, 0, 0, 0, 0]},
        ],
        "categories": [{"id": 1, "name": "dog", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}],
    }
    return content | changes


def test_csv_and_coco_of_the_same_labels_read_alike(read):
    from_csv, from_coco = read(CSV), read(coco())
    assert from_coco.edges == ((0, 1),)
    assert from_csv.edges == ()
    for labels in (from_csv, from_coco):
        assert labels.names == ("a.jpg", "b.jpg")
        assert labels.keypoint_names == ("nose", "tail")
        assert labels.split == ("train", "test")
        assert labels.keypoints.tolist() == [[[10, 20], [30.5, 40]], [[5, 6], [0, 0]]]
        assert labels.visibility.tolist() == [[1, 1], [1, 0]]
        assert labels.sizes.tolist() == [[100, 50], [60, 60]]
        assert not labels.in_square


def test_samples_form_holds_both_splits_in_the_square(read):
    labels = read(
        {
            "keypoint_names": ["nose", "tail"],
            "edges": [[1, 0]],
            "train": {"0.jpg": {"keypoints": [[0.1, 0.2], [9, 9]], "visibility": [1, 0]}},
            "heldout": {"0.jpg": {"keypoints": [[0.3, 0.4], [0.5, 0.6]], "visibility": [1, 1]}},
        }
    )
    assert labels.split == ("train", "test")
    assert labels.keypoints.tolist() == [[[0.1, 0.2], [0, 0]], [[0.3, 0.4], [0.5, 0.6]]]
    assert labels.edges == ((1, 0),)
    assert labels.to_square() is labels
    assert labels.rows([1]).match(["dog/0.jpg"]).tolist() == [0]
    with pytest.raises(LabelsError, match=r"fits 2 labels: '0.jpg \(train\)', '0.jpg \(test\)'"):
        labels.match(["dog/0.jpg"])


def test_keypoint_without_a_row_and_empty_invisible_coordinates_count_as_not_visible(read):
    labels = read(
        "\ufeffIMAGE, Keypoint ,x,y,visible\r\na.jpg,nose,10,20,1\r\n\r\nb.jpg,tail,,,0\r\nb.jpg,ear,7,8,\r\n"
    )
    assert labels.keypoint_names == ("nose", "tail", "ear")
    assert labels.visibility.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert labels.split is None
    assert labels.sizes is None


@pytest.mark.parametrize(("said", "seen"), [("1.0", 1), ("2.0", 1), ("0.0", 0), ("True", 1), ("False", 0), ("2", 1)])
def test_visibility_may_be_written_as_tables_do(read, said, seen):
    assert read(f"image,keypoint,x,y,visible\na.jpg,nose,10,20,{said}\n").visibility.tolist() == [[seen]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (b"image,keypoint,x,y\n\xff\xfe", "not UTF-8"),
        ("image,keypoint,x,y\n", "a header and no row"),
        ("image|keypoint|x|y\na|b|1|2\n", "without image, keypoint, x, y; expected the columns"),
        ("image,keypoint,x\na,b,1\n", "without y;"),
        ("image,keypoint,x,y,x\na,b,1,2,3\n", "a column twice"),
        ("image,keypoint,x,y\na,nose,1\n", "line 2: has more or fewer fields"),
        ("image,keypoint,x,y\na,nose,1,2,3\n", "line 2: has more or fewer fields"),
        ("image,keypoint,x,y\na,nose,1,2\na,nose,1,2\n", "line 3: 'nose' of 'a' is there twice"),
        ("image,keypoint,x,y\na,nose,nan,2\n", "line 2: x is 'nan' and y is '2'; expected two finite numbers, or none"),
        ("image,keypoint,x,y\na,nose,1;5,2\n", "line 2: x is '1;5'; expected a finite number"),
        ("image,keypoint,x,y\na,nose,1,inf\n", "y is 'inf'"),
        ("image,keypoint,x,y\na,nose,,2\n", "x is ''"),
        ("image,keypoint,x,y\n,nose,1,2\n", "image or keypoint is empty"),
        ("image,keypoint,x,y,visible\na,nose,1,2,maybe\n", "visible is 'maybe'"),
        ("image,keypoint,x,y,split\na,nose,1,2,val\n", "split is 'val'; expected train or test"),
        ("image,keypoint,x,y,split\na,nose,1,2,train\na,tail,1,2,test\n", "of split test here and of train above"),
        ("image,keypoint,x,y,split\na,nose,1,2,train\nb,nose,1,2,\n", "1 of 2 pictures have no split"),
        ("image,keypoint,x,y,width,height\na,nose,1,2,1.5,5\n", "1.5 x 5 pixels"),
        ("image,keypoint,x,y,width,height\na,nose,1,2,9,5\na,tail,1,2,5,9\n", "here and"),
        ("image,keypoint,x,y\na,nose,0.5,0.2\nb,nose,0.4,0.3\n", "expected pixels of the picture"),
        ('image,keypoint,x,y\na,"nose,1,2\n', "is not CSV"),
        ("image,keypoint,x,y\n" + "".join(f"a,k{i},5,5\n" for i in range(513)), "more than 512"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a JSON list"),
        ({"keys": 1}, "JSON with the keys keys"),
        ('{"annotations": Infinity}', "hold Infinity"),
    ],
)
def test_unusable_text_is_refused_with_what_is_wrong(read, content, message):
    with pytest.raises(LabelsError, match=message):
        read(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "no annotation has a labelled keypoint"),
        (
            {"annotations": [{"image_id": 1, "keypoints": [5, 5, 2, 5, 5, 2]}]},
            "image 1, which is not among the 3 images",
        ),
        ({"annotations": [{"image_id": 7, "keypoints": [5, 5, 2]}]}, "has 3 numbers; expected x, y, v of 2 keypoints"),
        ({"annotations": 2 * [{"image_id": 7, "keypoints": [5, 5, 2, 5, 5, 2]}]}, "two annotations"),
        ({"annotations": [{"image_id": 7, "keypoints": [5, "five", 2, 5, 5, 2]}]}, "'a.jpg' holds 'five'"),
        ({"annotations": [{"image_id": 7, "keypoints": [5, 10**400, 2, 5, 5, 2]}]}, "expected finite numbers"),
        ({"annotations": [{"image_id": 7, "keypoints": 5}]}, "an annotation has no 'keypoints' that is a list"),
        ({"annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}, "no annotation has a labelled keypoint"),
        ({"annotations": [{"image_id": [7], "keypoints": [5, 5, 2]}]}, "no 'image_id'"),
        (
            {
                "annotations": [{"image_id": 7, "category_id": [1], "keypoints": [5, 5, 2, 5, 5, 2]}],
                "categories": [{"id": 1, "keypoints": ["nose", "tail"]}],
            },
            "no annotation has a labelled keypoint",
        ),
        ({"annotations": ["a"]}, "something else than objects"),
        ({"images": 2 * [{"id": 7, "file_name": "a.jpg"}]}, "two images have the id 7"),
        ({"images": [{"id": 7}]}, "no 'file_name'"),
        ({"categories": []}, "0 categories name keypoints; expected one"),
        ({"categories": [{"keypoints": ["nose", "nose"]}]}, "expected unique names"),
        ({"categories": [{"keypoints": ["nose", "tail"], "skeleton": [[0, 2]]}]}, r"skeleton holds \[0, 2\]"),
        ({"categories": [{"keypoints": ["nose", "tail"], "skeleton": [[1, 3]]}]}, "expected pairs from 1 to 2"),
    ],
)
def test_unusable_coco_is_refused_with_what_is_wrong(read, changes, message):
    with pytest.raises(LabelsError, match=message):
        read(coco(**changes))


@pytest.mark.parametrize("size", [{"width": "100"}, {"width": 10**400}, {"height": 1.5}, {"height": -50}])
def test_coco_image_with_an_impossible_size_is_refused(read, size):
    content = coco()
    content["images"][0] |= size
    with pytest.raises(LabelsError, match=r"a\.jpg"):
        read(content)


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"height": None}, {"width": 0}, None])
def test_coco_size_that_is_missing_or_0_is_that_of_the_picture(read, size):
    content = coco()
    content["images"][0] |= size or {}
    if size is None:
        del content["images"][0]["width"], content["images"][0]["height"]
    labels = read(content)
    assert labels.sizes.tolist() == [[0, 0], [60, 60]]
    with pytest.raises(LabelsError, match=r"size of 1 labelled pictures is unknown \('a.jpg'\)"):
        labels.to_square()
    assert labels.to_square({"a.jpg": (100, 50)}).keypoints.tolist() == read(coco()).to_square().keypoints.tolist()


@pytest.mark.parametrize(("skeleton", "edges"), [([[0, 1]], ((0, 1),)), ([[2, 1]], ((1, 0),)), ([[1, 2]], ((0, 1),))])
def test_coco_skeleton_counts_from_0_if_it_has_a_0(read, skeleton, edges):
    assert read(coco(categories=[{"keypoints": ["nose", "tail"], "skeleton": skeleton}])).edges == edges


@pytest.mark.parametrize("place", ["null, null", "NaN, NaN", "NaN, 40"])
def test_coco_keypoint_without_a_place_is_not_visible(read, place):
    labels = read(json.dumps(coco()).replace("30.5, 40", place))
    assert labels.visibility.tolist() == [[1, 0], [1, 0]]


def test_coco_boxes_of_another_category_are_passed_over(read):
    content = coco()
    content["categories"].append({"id": 2, "name": "collar"})
    content["annotations"][0]["category_id"] = 1
    content["annotations"].append({"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]})
    assert read(content).keypoints.tolist() == read(coco()).keypoints.tolist()


def test_coco_categories_with_the_same_keypoints_are_read_as_one(read):
    """As in AP-10K, where each species is a category."""
    content = coco()
    content["categories"].append({**content["categories"][0], "id": 2, "name": "cat"})
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + number % 2
    assert read(content).keypoints.tolist() == read(coco()).keypoints.tolist()
    content["categories"][1]["keypoints"] = ["tail", "nose"]
    with pytest.raises(LabelsError, match="2 categories name keypoints; expected one, or several with the same"):
        read(content)


def test_coco_with_two_images_of_one_name_is_refused(read):
    content = coco()
    content["images"][1]["file_name"] = "a.jpg"
    with pytest.raises(LabelsError, match="two annotations"):
        read(content)


def test_labels_too_large_are_refused_unread(tmp_path):
    path = tmp_path / "labels.csv"
    path.touch()
    os.truncate(path, 10**12)  # sparse
    with pytest.raises(LabelsError, match="1000000000000 bytes; at most"):
        read_labels(path)


def labelled(names, **more):
    return Labels(tuple(names), ("nose",), np.ones((len(names), 1, 2)), np.ones((len(names), 1), np.uint8), **more)


def test_pictures_match_labels_by_the_end_of_their_path():
    labels = labelled(["0001.jpg", "b/0002.jpg", "x\\0003.jpg", "deep/er/0004.jpg"])
    pictures = ["other.jpg", "dog/b/0002.jpg", "0001.jpg", "./x/0003.jpg", "er/0004.jpg"]
    assert labels.match(pictures).tolist() == [-1, 1, 0, 2, 3]
    assert labelled(["a/1.jpg", "1.jpg"]).match(["1.jpg", "a/1.jpg"]).tolist() == [1, 0]  # equal names go first
    with pytest.raises(LabelsError, match=r"fits two pictures, 'a/0001.jpg' and 'c/0001.jpg'"):
        labels.match(["a/0001.jpg", "c/0001.jpg"])
    with pytest.raises(LabelsError, match="fits 2 labels"):
        labelled(["a/1.jpg", "b/1.jpg"]).match(["1.jpg"])
    with pytest.raises(LabelsError, match=r"none of the 4 .*'0001.jpg', .*…\) is among the 2 .*\('1.png', '11.jpg'\)"):
        labels.match(["1.png", "11.jpg"])


def test_accents_are_the_same_letters_in_both_spellings():
    composed, apart = "caf\u00e9/n\u00famero.jpg", "cafe\u0301/nu\u0301mero.jpg"
    assert labelled([composed]).match([apart]).tolist() == [0]
    assert labelled([apart]).match(["set/" + composed]).tolist() == [0]


def test_many_labels_of_one_file_name_match_in_a_moment():
    names = [f"clip{clip}/{frame:03}.jpg" for clip in range(400) for frame in range(50)]
    assert labelled(names).match([f"set/{name}" for name in names]).tolist() == list(range(len(names)))


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(-1, 2), st.floats(-1, 2))
def test_square_and_pixels_are_inverse_and_agree_with_the_frame_of_the_pictures(width, height, x, y):
    _, frame = fit_square(Image.new("RGB", (min(width, 40), min(height, 40))), 8)
    small = (min(width, 40), min(height, 40))
    assert to_square(frame.to_picture([2 * x - 1, 2 * y - 1]), *small) == pytest.approx([x, y], abs=1e-9)
    assert to_square(from_square([x, y], width, height), width, height) == pytest.approx([x, y], abs=1e-9)


@pytest.mark.parametrize(("width", "height"), [(64, 32), (33, 64)])
def test_a_dot_drawn_in_a_picture_is_where_to_square_says(tmp_path, width, height):
    picture = np.zeros((height, width, 3), np.uint8)
    fitted = []
    for brightness in (0, 255):
        picture[20, 12] = brightness
        Image.fromarray(picture).save(tmp_path / "dot.png")
        fitted.append(fit_picture(tmp_path / "dot.png", 64)[..., 0].astype(float))
    weight = fitted[1] - fitted[0]
    weight /= weight.sum()
    row, column = np.mgrid[:64, :64]
    x, y = to_square([12, 20], width, height)
    assert ((column * weight).sum() + 0.5) / 64 == pytest.approx(x, abs=0.01)
    assert ((row * weight).sum() + 0.5) / 64 == pytest.approx(y, abs=0.01)


def test_labels_go_to_the_square_by_sizes_given_or_of_the_file(read):
    labels = read(CSV)
    square = labels.to_square()
    assert square.keypoints[0, 0].tolist() == pytest.approx([0.105, 0.455])
    assert square.keypoints[1].tolist() == [pytest.approx([5.5 / 60, 6.5 / 60]), [0, 0]]
    bare = read("image,keypoint,x,y\na.jpg,nose,10,20\nb.jpg,nose,300,20\n")
    with pytest.raises(LabelsError, match=r"size of 1 labelled pictures is unknown \('b.jpg'\)"):
        bare.to_square({"a.jpg": (100, 50)})
    with pytest.raises(LabelsError, match=r"'nose' of 'b.jpg' is at \(300, 20\), far outside"):
        bare.to_square({"a.jpg": (100, 50), "b.jpg": (100, 50)})


def test_labels_of_a_picture_of_another_size_are_refused_with_both(read):
    with pytest.raises(LabelsError, match=r"'a.jpg' has 100 x 50 pixels, .* came has 200 x 200; send the pictures"):
        read(CSV).to_square({"a.jpg": (200, 200), "b.jpg": (60, 60)})
    with pytest.raises(LabelsError, match=r"100 x 50 pixels, .* came has 50 x 100 as it is shown: .*EXIF orientation"):
        read(CSV).to_square({"a.jpg": (50, 100)})


def test_labels_without_sizes_are_refused_if_many_lie_outside(read):
    rows = [f"{name}.jpg,{joint},{x},{x}\n" for name in "abcdef" for joint, x in (("nose", 20), ("tail", 70))]
    labels = read("image,keypoint,x,y\n" + "".join(rows))
    sizes = dict.fromkeys(labels.names, (80, 80))
    assert labels.to_square(sizes).keypoints.max() == pytest.approx(70.5 / 80)
    message = r"6 of 12 labels lie outside .* 'tail' of 'a.jpg' is at \(70, 70\), .* 40 x 40 pixels"
    with pytest.raises(LabelsError, match=message):
        labels.to_square(dict.fromkeys(labels.names, (40, 40)))
    labels.to_square({**sizes, "a.jpg": (60, 80)})  # one label of 12


def test_split_by_name_is_the_same_in_any_order_and_never_empty():
    names = [f"{i}.jpg" for i in range(101)]
    split = dict(zip(names, hashed_split(names), strict=True))
    assert sum(part == "test" for part in split.values()) == 20
    assert dict(zip(names[::-1], hashed_split(names[::-1]), strict=True)) == split
    assert sorted(hashed_split(["a", "b"])) == ["test", "train"]
    assert hashed_split([]) == ()
    assert sorted(hashed_split(["\udcff.jpg", "b.jpg"])) == ["test", "train"]  # a file name that is no UTF-8


def test_split_of_clips_takes_them_whole_and_in_any_order():
    names = [f"{clip}/{frame}.jpg" for clip in range(10) for frame in range(4)]
    clips = [name.split("/")[0] for name in names]
    split = dict(zip(names, hashed_split(names, clips=clips), strict=True))
    assert sum(part == "test" for part in split.values()) == 8
    assert len({(clip, split[name]) for clip, name in zip(clips, names, strict=True)}) == 10
    assert dict(zip(names[::-1], hashed_split(names[::-1], clips=clips[::-1]), strict=True)) == split


def test_more_labelled_pictures_than_fit_into_memory_are_refused():
    check_extent(MAX_PICTURES, 20)
    with pytest.raises(LabelsError, match="more than 1000000 labelled pictures"):
        check_extent(MAX_PICTURES + 1, 1)

"""Labels that state another size of their pictures are scaled and turned to the pictures that came."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.scoring.label_files import parse_labels
from model.scoring.label_fitting import CameSize, fit_labels, turn
from model.scoring.labels import LabelsError
from service.contract.media.pictures import open_reduced, read_size


def sized(width: int, height: int, extra: str = ""):
    """Return the labels of a picture of this size: the nose at (10, 20), and a hidden tail."""
    rows = f"a.jpg,nose,10,20,{width},{height}\na.jpg,tail,,,{width},{height}\n{extra}"
    return parse_labels(f"image,keypoint,x,y,width,height\n{rows}".encode())


@pytest.mark.parametrize(
    ("stated", "came", "nose"),
    [
        ((100, 50), CameSize(200, 100), (20.5, 40.5)),
        ((100, 50), CameSize(50, 25), (4.75, 9.75)),
        ((100, 50), CameSize(33, 17), (10.5 * 0.33 - 0.5, 20.5 * 0.34 - 0.5)),  # sides are whole pixels
        ((100, 50), CameSize(200, 100, 6), (20.5, 40.5)),  # of the shown picture
        ((100, 50), CameSize(50, 100, 5), (20, 10)),
        ((100, 50), CameSize(50, 100, 6), (29, 10)),
        ((100, 50), CameSize(50, 100, 7), (29, 89)),
        ((100, 50), CameSize(50, 100, 8), (20, 89)),
        ((100, 50), CameSize(100, 200, 6), (58.5, 20.5)),  # turned and twice as large
        ((100, 50), CameSize(100, 50, 3), (10, 20)),  # a size does not show a half turn
    ],
)
def test_labels_are_fitted_to_the_picture_that_came(stated, came, nose):
    fitted = fit_labels(sized(*stated), {"a.jpg": came})
    assert fitted.keypoints[0].tolist() == [pytest.approx(nose), [0, 0]]
    size = {"a.jpg": (came.width, came.height)}
    expected = (np.array(nose) + 0.5 + (max(came[:2]) - np.array(came[:2])) / 2) / max(came[:2])
    assert fitted.to_square(size).keypoints[0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_turned_labels_are_where_the_picture_shows_them(orientation):
    stored = Image.new("L", (24, 16))
    stored.putpixel((5, 3), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    shown = open_reduced(file.getvalue(), lambda *_: 1)
    assert (*shown.size, shown.orientation) == read_size(file.getvalue()) == (16, 24, orientation)
    row, column = np.unravel_index(np.asarray(shown.image)[..., 0].argmax(), (24, 16))
    assert turn((5, 3), (24, 16), orientation).tolist() == [column, row]


@pytest.mark.parametrize(
    ("stated", "came"),
    [
        ((100, 50), CameSize(100, 60)),  # cut off
        ((100, 50), CameSize(50, 100)),  # EXIF says nothing of a turn
        ((100, 50), CameSize(50, 120, 6)),
        ((100, 50), CameSize(200, 90, 8)),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_both_sizes(stated, came):
    fitted = fit_labels(sized(*stated), {"a.jpg": came})
    with pytest.raises(LabelsError, match=rf"has 100 x 50 pixels, .* has {came.width} x {came.height}"):
        fitted.to_square({"a.jpg": (came.width, came.height)})


def test_labels_that_state_no_size_are_not_scaled():
    bare = parse_labels(b"image,keypoint,x,y\na.jpg,nose,10,20\n")
    with pytest.raises(LabelsError, match=r"state no size .* labels_fit is scale; add columns width and height"):
        fit_labels(bare, {"a.jpg": CameSize(200, 100)})


def test_pictures_that_did_not_come_and_labels_in_the_square_stay():
    labels = sized(100, 50, "b.jpg,nose,1,2,10,10\n")
    fitted = fit_labels(labels, {"a.jpg": CameSize(200, 100)})
    assert fitted.keypoints[1].tolist() == [[1, 2], [0, 0]]
    assert labels.keypoints[0, 0].tolist() == [10, 20], "the given ones are not changed"
    square = labels.to_square()
    assert fit_labels(square, {"a.jpg": CameSize(7, 9)}) is square


def test_refusal_names_the_option():
    with pytest.raises(LabelsError, match="labels_fit=scale of a training job, an evaluation and landmarks scales"):
        sized(100, 50).to_square({"a.jpg": (200, 100)})

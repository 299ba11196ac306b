"""Pictures to the model's square and back, and pictures that were decoded smaller for it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.contract.errors import TruncatedImage
from service.contract.media.fitting import Frame, box_corners, fit_square, reduction_for_boxes, turn, unfit_square
from service.contract.media.pictures import MID_GREY, open_picture, open_reduced


def noise(width, height):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 100), (100, 200), (8, 300), (4000, 3000), (9, 8)])
def test_whole_picture_is_centred_on_grey(width, height):
    square, frame = fit_square(Image.new("RGB", (width, height), (255, 0, 0)), 64)
    assert square.shape == (64, 64, 3)
    assert frame.size == max(width, height)
    assert frame.x0 + frame.size / 2 == width / 2
    assert frame.y0 + frame.size / 2 == height / 2
    centre = square[31:33, 31:33] if min(width, height) * 64 > 4 * max(width, height) else None
    assert centre is None or (centre == [255, 0, 0]).all()
    if width > 1.5 * height:
        assert (square[0] == MID_GREY).all()
        assert (square[-1] == MID_GREY).all()
    if height > 1.5 * width:
        assert (square[:, 0] == MID_GREY).all()
        assert (square[:, -1] == MID_GREY).all()


def test_picture_of_the_squares_size_is_unchanged():
    array = noise(64, 64)
    square, frame = fit_square(Image.fromarray(array), 64)
    assert np.array_equal(square, array)
    assert frame == Frame(0, 0, 64)


def test_box_is_cut_out():
    array = noise(300, 200)
    square, frame = fit_square(Image.fromarray(array), 64, (40, 50, 64, 64))
    assert np.array_equal(square, array[50:114, 40:104])
    assert frame == Frame(40, 50, 64)


def test_square_is_centred_on_the_box_and_as_wide_as_its_longer_side():
    _, frame = fit_square(Image.new("RGB", (300, 200)), 64, (10, 20, 100, 40))
    assert frame == Frame(10, -10, 100)


def test_box_beyond_the_picture_is_grey_there():
    square, _ = fit_square(Image.new("RGB", (100, 100), (255, 255, 255)), 50, (50, 0, 100, 100))
    assert (square[:, :24] == 255).all()
    assert (square[:, 26:] == MID_GREY).all()


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, -1, -1), (0, 0, float("nan"), 1), (float("inf"), 0, 1, 1)])
def test_box_without_area_is_refused(box):
    with pytest.raises(ValueError, match="expected a finite one with an area"):
        fit_square(Image.new("RGB", (10, 10)), 8, box)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(40, 1200),
    height=st.integers(40, 1200),
    side=st.sampled_from([32, 64, 128]),
    where=st.tuples(st.floats(0.15, 0.85), st.floats(0.15, 0.85)),
    box=st.none() | st.tuples(st.floats(-0.2, 0.1), st.floats(-0.2, 0.1), st.floats(0.9, 1.2), st.floats(0.9, 1.2)),
    angle=st.just(0.0) | st.floats(-360, 360),
)
def test_a_spot_is_found_where_the_frame_says(width, height, side, where, box, angle):
    """The centre of gravity of a bright disc in the square, sent back, is the disc's own within a square's pixel."""
    if box:
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    centre = np.array([where[0] * width, where[1] * height])
    radius = max(width, height) * 0.06
    ys, xs = np.mgrid[:height, :width]
    disc = (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= radius**2
    if not disc.any():
        return
    truth = np.array([xs[disc].mean(), ys[disc].mean()])
    array = np.full((height, width, 3), MID_GREY, np.uint8)
    array[disc] = 255
    left, top, right, bottom = box_edges(box or (0, 0, width, height))
    middle = np.array([left + right, top + bottom]) / 2
    across, down = turn(centre, middle, -angle)
    if not (left + radius < across < right - radius and top + radius < down < bottom - radius):
        return
    if disc[0].any() or disc[-1].any() or disc[:, 0].any() or disc[:, -1].any():
        return
    square, frame = fit_square(Image.fromarray(array), side, box, angle)
    mass = square[..., 0].astype(float) - MID_GREY
    grid = (2 * np.arange(side) + 1) / side - 1
    found = np.array([(mass.sum(0) * grid).sum(), (mass.sum(1) * grid).sum()]) / mass.sum()
    assert np.abs(frame.to_picture(found) - truth).max() < 0.5 * frame.size / side + 0.5


def box_edges(box):
    """Left, top, right, bottom of the square on a box."""
    size = max(box[2:])
    left, top = box[0] + box[2] / 2 - size / 2, box[1] + box[3] / 2 - size / 2
    return left, top, left + size, top + size


@settings(deadline=None)
@given(
    x0=st.floats(-1e4, 1e4),
    y0=st.floats(-1e4, 1e4),
    size=st.floats(8, 1e4),
    angle=st.floats(-360, 360),
    points=st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=8),
)
def test_frame_round_trip(x0, y0, size, angle, points):
    frame = Frame(x0, y0, size, angle)
    assert np.allclose(frame.from_picture(frame.to_picture(points)), points, atol=1e-6)


def test_frame_counts_pixel_centres():
    frame = Frame(0, 0, 64)
    assert frame.to_picture([[-1 + 1 / 64, 1 - 1 / 64]]).tolist() == [[0.0, 63.0]]
    assert frame.to_picture([-1.0, 1.0]).tolist() == [-0.5, 63.5]
    assert Frame(10, 20, 100).to_picture([0, 0]).tolist() == [59.5, 69.5]


def test_what_looks_to_an_angle_looks_up_in_the_square_turned_by_it():
    frame = Frame(10, 20, 100, 90)
    ahead, right = frame.from_picture([[99.5, 69.5], [59.5, 109.5]])  # right of the centre and below it
    np.testing.assert_allclose(ahead, (0, -0.8), atol=1e-12)
    np.testing.assert_allclose(right, (0.8, 0), atol=1e-12)
    np.testing.assert_allclose(frame.to_picture([[0, -0.8], [0.8, 0]]), [[99.5, 69.5], [59.5, 109.5]])
    corners = box_corners((10, 20, 100, 50), 90)
    np.testing.assert_allclose(corners, [(85, -5), (85, 95), (35, 95), (35, -5)])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_square_turned_by_right_angles_has_the_same_pixels(quarters):
    array = noise(90, 70)
    upright, _ = fit_square(Image.fromarray(array), 32, (20, 10, 32, 32))
    turned, _ = fit_square(Image.fromarray(array), 32, (20, 10, 32, 32), 90 * quarters)
    np.testing.assert_allclose(turned, np.rot90(upright, quarters), atol=1)


def test_turned_square_is_grey_beyond_the_picture_and_nowhere_else():
    square, _ = fit_square(Image.new("RGB", (200, 200), (255, 255, 255)), 64, (60, 60, 80, 80), 45)
    assert (square == 255).all()
    square, _ = fit_square(Image.new("RGB", (200, 200), (255, 255, 255)), 64, (-40, 60, 80, 80), 90)
    assert (square[33:] == MID_GREY).all()  # ahead is right, so what is left of the picture lies behind
    assert (square[:31] == 255).all()


def test_unfit_turns_the_square_back():
    square = np.zeros((64, 64), np.uint8)
    square[:32] = 255  # ahead
    frame = fit_square(Image.new("RGB", (200, 100)), 64, (60, 10, 80, 80), 90)[1]
    back = np.asarray(unfit_square(square, frame, 200, 100))
    assert (back[12:88, 102:138] == 255).all()
    assert (back[:, :98] == 0).all()
    assert (back[:, 142:] == 0).all()


def test_unfit_lays_the_square_back_on_the_picture():
    square = np.zeros((64, 64), np.uint8)
    square[16:48, 16:48] = 255
    frame = fit_square(Image.new("RGB", (256, 128)), 64)[1]
    back = np.asarray(unfit_square(square, frame, 256, 128))
    assert back.shape == (128, 256)
    # the square's inner half is the picture's x from 64 to 192 and all of its rows
    assert (back[3:-3, 66:190] == 255).all()
    assert (back[:, :60] == 0).all()
    assert (back[:, 196:] == 0).all()


def test_unfit_is_black_outside_of_a_box():
    frame = fit_square(Image.new("RGB", (100, 100)), 32, (20, 20, 40, 40))[1]
    back = np.asarray(unfit_square(np.full((32, 32), 255, np.uint8), frame, 100, 100))
    assert (back[20:60, 20:60] == 255).all()
    assert back.sum() == 255 * 40 * 40


# pictures decoded smaller


def photograph(width, height, orientation=1, **options):
    """A JPEG of soft spots, which has no detail that a smaller one would lose."""
    coarse = np.random.default_rng(3).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()


def apart(data, side, box=None):
    """Return the differences between the squares of a reduced and a whole JPEG, inside the picture."""
    whole, reduced = open_picture(data), open_reduced(data, reduction_for_boxes(side, [box]))
    assert reduced.size == whole.size
    square, frame = fit_square(reduced, side, box)
    expected, expected_frame = fit_square(whole, side, box)
    assert frame == expected_frame
    found = np.abs(square.astype(int) - expected)
    # at its edges the picture ends within a block, of which all is shown
    assert found.max() < 40
    corners = frame.from_picture([[-0.5, -0.5], [whole.width - 0.5, whole.height - 0.5]])
    (left, top), (right, bottom) = np.floor((corners + 1) / 2 * side).astype(int)
    return found[max(0, top + 1) : bottom - 1, max(0, left + 1) : right - 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("size", "scale"), [((1605, 1203), 8), ((843, 1001), 4), ((451, 449), 2), ((190, 150), 1)])
def test_reduced_jpeg_gives_the_square_of_the_whole_one(orientation, size, scale):
    data = photograph(*size, orientation)
    assert open_reduced(data, reduction_for_boxes(64)).scale == scale
    found = apart(data, 64)
    assert found.size > 5_000
    assert found.mean() < 0.8
    assert found.max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [(100.5, 80.25, 700.0, 640.0), (-60.0, -30.0, 900.0, 850.0), (400.0, 300.0, 500, 300)])
def test_boxes_are_cut_out_of_a_reduced_jpeg(orientation, box):
    data = photograph(1203, 1105, orientation)
    assert open_reduced(data, reduction_for_boxes(32, [box])).scale > 1
    found = apart(data, 32, box)
    assert found.mean() < 0.8
    assert found.max() <= 20


@pytest.mark.parametrize(
    ("boxes", "scale"),
    [([None], 8), ([None, (0, 0, 400, 90)], 2), ([(0, 0, 400, 90), (5, 5, 100, 100)], 1), ([(0, 0, 0, 0)], 1)],
)
def test_smallest_box_says_how_much_smaller(boxes, scale):
    assert open_reduced(photograph(1600, 1200), reduction_for_boxes(64, boxes)).scale == scale


def test_only_jpegs_are_reduced():
    file = io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(file, "PNG")
    picture = open_reduced(file.getvalue(), reduction_for_boxes(64))
    assert (picture.scale, picture.image.size) == (1, (1600, 1200))


@pytest.mark.parametrize("mode", ["L", "CMYK", "progressive"])
def test_other_jpegs_are_reduced_too(mode):
    data = photograph(1600, 1200, progressive=mode == "progressive")
    if mode != "progressive":
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).convert(mode).save(file, "JPEG", quality=95)
        data = file.getvalue()
    picture = open_reduced(data, reduction_for_boxes(64))
    assert (picture.scale, picture.image.mode, picture.image.size) == (8, "RGB", (200, 150))
    assert apart(data, 64).mean() < 0.8


def test_reduced_jpeg_that_ends_early_is_refused():
    data = photograph(1600, 1200)
    with pytest.raises(TruncatedImage):
        open_reduced(data[: len(data) * 3 // 4], reduction_for_boxes(64))

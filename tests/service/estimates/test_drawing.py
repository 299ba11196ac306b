"""Poses drawn on pictures, and priors drawn by themselves."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.contract.media.fitting import Frame
from service.estimates import drawing
from service.estimates.drawing import (
    _strips,
    drawn_links,
    keypoint_colour,
    overlay,
    png,
    prior_picture,
    render_link_map,
)


def literal_link_map(keypoints, links, link_width, side):
    """PPL eq. 3, pixel by pixel and link by link."""
    result = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            x, y = (2 * column + 1) / side - 1, (2 * row + 1) / side - 1
            for link in links:
                (ax, ay), (bx, by) = keypoints[link["i"]], keypoints[link["j"]]
                length = (bx - ax) ** 2 + (by - ay) ** 2
                part = 0.0 if length == 0 else ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length
                part = min(1.0, max(0.0, part))
                squared = (x - ax - part * (bx - ax)) ** 2 + (y - ay - part * (by - ay)) ** 2
                result[row, column] = max(result[row, column], link["weight"] * math.exp(-squared / link_width))
    return result


def test_link_map_is_equation_3():
    keypoints = np.array([[-0.6, -0.5], [0.5, -0.2], [0.1, 0.7], [0.1, 0.7]], np.float32)
    links = [{"i": i, "j": j, "weight": 0.2 * (i + j)} for j in range(4) for i in range(j)]
    expected = literal_link_map(keypoints.tolist(), links, 0.02, 24)
    assert np.abs(render_link_map(keypoints, links, 0.02, 24) - expected).max() < 1e-5


def test_links_are_drawn_by_their_share_of_the_strongest_and_never_too_thin():
    links = [{"i": 0, "j": 1, "weight": 4.0}, {"i": 0, "j": 2, "weight": 2.0}, {"i": 1, "j": 2, "weight": 0.1}]
    assert drawn_links(links) == [(1, 2, 0.3), (0, 2, 0.5), (0, 1, 1.0)]
    assert drawn_links([]) == []
    assert drawn_links([{"i": 0, "j": 1, "weight": 0.0}]) == []


def test_colours_of_32_keypoints_differ():
    colours = np.array([keypoint_colour(index) for index in range(32)])
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2) + 1000 * np.eye(32)
    assert apart.min() > 12
    neighbours = np.abs(np.diff(colours, axis=0)).max(axis=1)
    assert neighbours.min() > 80


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (4000, 3000)])
def test_overlay_marks_keypoints_and_links(width, height):
    picture = Image.new("RGB", (width, height), (30, 30, 30))
    frame = Frame(0, (height - width) / 2, width)
    keypoints = np.array([[0.2 * width, 0.5 * height], [0.8 * width, 0.5 * height], [0.5 * width, 0.2 * height]])
    links = [{"i": 0, "j": 1, "weight": 1.0}]
    drawn = np.asarray(overlay(picture, frame, keypoints, links)).astype(np.int16)
    assert drawn.shape == (height, width, 3)
    for index, (x, y) in enumerate(keypoints.astype(int)):
        assert np.abs(drawn[y, x] - keypoint_colour(index)).max() < 40
    changed = np.abs(drawn - 30).max(axis=2) > 20
    assert changed[height // 2, width // 2]
    assert not changed[int(0.35 * height), int(0.35 * width)]  # no link
    assert not changed[-3:].any()
    thickness = changed[:, width // 2].sum() - (changed[: height // 3, width // 2].sum())
    assert max(1, 0.006 * width) < thickness < max(4, 0.04 * width)


def test_landmarks_are_drawn_white_with_their_names_beside_them_and_inside_the_picture():
    picture = Image.new("RGB", (320, 240), (90, 90, 90))
    marks = [{"name": name, "x": x, "y": y} for name, x, y in (("nose", 100, 100), ("tail tip", 317, 237))]
    drawn = np.asarray(overlay(picture, Frame(0, -40, 320), np.zeros((0, 2)), [], marks)).astype(int)
    assert drawn[100, 100].tolist() == [255] * 3
    assert drawn[237, 317].tolist() == [255] * 3
    white = (drawn > 170).all(axis=2)
    assert white[90:110, 108:150].sum() > 25  # "nose", right of its point
    assert not white[90:110, 50:92].any()
    assert white[220:240, 240:305].sum() > 40  # there is no room right of the other
    close = [{"name": name, "x": 100, "y": 100} for name in ("nose", "chin", "lip")]
    drawn = np.asarray(overlay(picture, Frame(0, -40, 320), np.zeros((0, 2)), [], close)).astype(int)
    white = (drawn > 170).all(axis=2)
    assert white[90:110, 108:150].sum() > 25 < white[90:110, 50:92].sum()  # on both sides


def test_overlay_leaves_its_input_alone():
    picture = Image.new("RGB", (64, 64))
    overlay(picture, Frame(0, 0, 64), np.array([[30.0, 30.0]]), [])
    assert picture.getextrema() == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("place", [-500.0, -1.0, 63.5, 10_000.0, float("nan"), float("inf")])
def test_keypoints_beyond_the_picture_do_no_harm(place):
    keypoints = np.array([[place, place], [30.0, 30.0]])
    drawn = overlay(Image.new("RGB", (64, 64)), Frame(0, 0, 64), keypoints, [{"i": 0, "j": 1, "weight": 1.0}])
    assert drawn.size == (64, 64)


@settings(max_examples=80, deadline=None)
@given(
    ends=st.tuples(*[st.floats(-60, 260)] * 4),
    reach=st.floats(1, 20),
)
def test_strips_are_disjoint_and_hold_all_pixels_near_a_segment(ends, reach):
    canvas = np.zeros((200, 150, 3), np.uint8)
    points = np.array(ends).reshape(2, 2)
    count = np.zeros((200, 150), int)
    for left, top, right, bottom in _strips(canvas, points, reach):
        count[top:bottom, left:right] += 1
    assert count.max() <= 1
    ys, xs = np.mgrid[:200, :150]
    direction = points[1] - points[0]
    part = ((xs - points[0][0]) * direction[0] + (ys - points[0][1]) * direction[1]) / max(direction @ direction, 1e-9)
    part = np.clip(part, 0, 1)
    distance = np.hypot(xs - points[0][0] - part * direction[0], ys - points[0][1] - part * direction[1])
    assert (count[distance < reach - 1] == 1).all()


def test_prior_picture_is_bright_on_links_and_dark_elsewhere():
    prior = {
        "keypoint_prior": [[-0.5, 0.0], [0.5, 0.0], [0.0, -0.8]],
        "links": [{"i": 0, "j": 1, "weight": 1.0}, {"i": 0, "j": 2, "weight": 0.0}],
        "link_width": 1e-3,
    }
    pixels = np.asarray(prior_picture(prior, 256)).astype(int)
    assert pixels.shape == (256, 256, 3)
    assert pixels[128, 128].min() > 200
    assert pixels[200, 128].max() < 60
    assert np.abs(pixels[25, 128] - keypoint_colour(2)).max() < 40


def test_large_prior_picture_is_that_of_each_pixel_drawn(monkeypatch):
    prior = {
        "keypoint_prior": [[-0.5, 0.1], [0.5, -0.3], [0.0, -0.8]],
        "links": [{"i": 0, "j": 1, "weight": 1.0}, {"i": 0, "j": 2, "weight": 0.3}],
        "link_width": 1e-3,
    }
    enlarged = np.asarray(prior_picture(prior, 1000)).astype(int)
    monkeypatch.setattr(drawing, "_MAX_RENDERED_PX", 1000)
    drawn = np.asarray(prior_picture(prior, 1000)).astype(int)
    assert np.abs(enlarged - drawn).mean() < 0.5
    assert np.abs(enlarged - drawn).max() < 24


def test_links_of_a_large_prior_picture_are_not_drawn_in_its_size(monkeypatch):
    sides = []

    def render(*arguments):
        sides.append(arguments[-1])
        return render_link_map(*arguments)

    monkeypatch.setattr(drawing, "render_link_map", render)
    prior = {"keypoint_prior": [[0.0, 0.0], [0.5, 0.5]], "links": [{"i": 0, "j": 1, "weight": 1.0}], "link_width": 1e-3}
    assert [prior_picture(prior, side).width for side in (64, 512, 2048)] == [64, 512, 2048]
    assert sides == [64, 512, 512]


def test_prior_without_strength_is_dark_and_no_error():
    prior = {"keypoint_prior": [[0.0, 0.0], [0.5, 0.5]], "links": [{"i": 0, "j": 1, "weight": 0.0}], "link_width": 1e-3}
    assert np.asarray(prior_picture(prior, 64)).std() < 30


@pytest.mark.parametrize("size", [(40, 30), (1300, 900)])
def test_png_holds_the_picture(size):
    image = Image.effect_noise(size, 50)
    assert list(Image.open(io.BytesIO(png(image))).tobytes()) == list(image.tobytes())

"""Pictures that are decoded at the same time are bounded in pixels."""

from __future__ import annotations

import gc
import io
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from PIL import Image

from service.contract.errors import BadPicture
from service.contract.media.pictures import PictureLimits, open_reduced
from service.estimates import pictures as images
from service.estimates.boxes import PictureBoxes, parse_boxes
from service.runtime.concurrency import DecodedPixelLimit


def upload(data: bytes) -> images.Upload:
    return images.Upload(0, "a.png", lambda: data, PictureBoxes())


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_no_more_than_the_limit_is_held_at_once():
    room, most = DecodedPixelLimit(), []

    def work(pixels: int) -> None:
        with room.hold(pixels, 100):
            most.append(room.held)
            time.sleep(0.002)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, [40, 30, 90, 10, 100, 5, 60, 1] * 5))
    assert 40 < max(most) <= 100
    assert room.held == 0


def test_more_than_the_limit_waits_until_nothing_is_held_and_is_not_passed():
    room, order, entered = DecodedPixelLimit(), [], threading.Event()
    leave = threading.Event()

    def first() -> None:
        with room.hold(10, 100):
            entered.set()
            leave.wait(5)

    def later(pixels: int) -> None:
        with room.hold(pixels, 100):
            order.append(pixels)

    with ThreadPoolExecutor(3) as threads:
        threads.submit(first)
        entered.wait(5)
        large = threads.submit(later, 500)
        time.sleep(0.05)
        small = threads.submit(later, 1)
        time.sleep(0.05)
        assert order == []
        leave.set()
        wait((large, small), 5)
    assert order == [500, 1]


def test_pictures_wait_for_room_to_be_decoded(monkeypatch):
    room = DecodedPixelLimit()
    monkeypatch.setattr(images, "_decoded_pixels", room)
    limits = PictureLimits(max_pixels=10_000)
    with ThreadPoolExecutor(1) as threads:
        with room.hold(15_000, 20_000):
            assert upload(png(50, 50)).fit(16, limits)[0].width == 50
            waiting = threads.submit(upload(png(100, 100)).fit, 16, limits)
            time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result(5)[0].width == 100
    assert room.held == 0


def test_room_is_given_back_after_a_bad_picture(monkeypatch):
    room = DecodedPixelLimit()
    monkeypatch.setattr(images, "_decoded_pixels", room)
    with pytest.raises(BadPicture):
        upload(png(200, 200)[:-30]).fit(16, PictureLimits())
    assert room.held == 0


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("boxes", ["", "[[1, 2, 9, 9]]", "[[1, 2, 9, 9, 30]]"])
def test_decoded_picture_is_freed_once_its_squares_are_cut_out(monkeypatch, make_picture, boxes, aligned):
    opened: list[weakref.ref[object]] = []

    def open_and_note(*more):
        picture = open_reduced(*more)
        opened.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(images, "open_reduced", open_and_note)
    data = make_picture()
    upload = images.Upload(0, "a.png", lambda: data, *parse_boxes(boxes, ["a.png"]))
    gc.collect()
    gc.disable()  # a circle of references would keep it until the next full collection, many requests later
    try:
        fitted = upload.fit(32, PictureLimits(), aligned)
        assert (len(opened), opened[0]()) == (1, None)
    finally:
        gc.enable()
    assert fitted[0].square.shape == (32, 32, 3)

"""Pictures as microscopes and phones write them: more than 8 bits, previews beside them, kinds that are not read."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from service.contract.errors import Animated, BadPicture, TruncatedImage, UnsupportedFormat
from service.contract.media import pictures
from service.contract.media.pictures import MID_GREY, is_picture_name, open_picture, open_reduced
from service.contract.media.video_request import VideoLimits
from service.contract.media.videos import BadVideo, iter_frames
from tests.service.contract.media.test_pictures import encoded, png_of
from tests.support.media import TURNED_HEIC
from tests.support.tiffs import MIN_IS_WHITE, PREVIEW, tiff_of


def ramp(highest: float, channels: int = 0) -> np.ndarray:
    """Values from 0 to the highest one, over 16 x 24 pixels, another ramp in each channel."""
    grey = np.linspace(0, highest, 16 * 24).reshape(16, 24)
    return np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2)[..., :channels] if channels else grey


def shown(data: bytes, white: float = 0.0) -> np.ndarray:
    return np.asarray(open_reduced(data, lambda *_: 1, white=white).image).astype(float)


def deep_png(values: np.ndarray) -> bytes:
    colour = 2 if values.ndim == 3 else 0
    rows = [row.tobytes() for row in values.astype(">u2")]
    return png_of(values.shape[1], values.shape[0], depth=16, colour=colour, rows=rows)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", "<>")
def test_grey_of_a_camera_in_16_bits_is_as_bright_as_in_8(bits, order):
    deep = np.rint(ramp(2**bits - 1)).astype(np.uint16)
    for data in (tiff_of(deep, order=order), deep_png(deep)):
        assert np.abs(shown(data)[..., 1] - ramp(255)).max() < 1


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_a_camera_in_16_bits_are_as_bright_as_in_8(bits):
    deep = np.rint(ramp(2**bits - 1, 3)).astype(np.uint16)
    for data in (tiff_of(deep), tiff_of(deep, order=">"), deep_png(deep), encoded_deflated(deep)):
        assert np.abs(shown(data) - ramp(255, 3)).max() < 1


def encoded_deflated(deep: np.ndarray) -> bytes:
    packed = np.frombuffer(zlib.compress(deep.astype("<u2").tobytes()), np.uint8)
    data = tiff_of((packed[None], {256: 24, 257: 16, 258: (16,) * 3, 259: 8, 262: 2, 277: 3, 278: 16, 339: (1,) * 3}))
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    return data


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "highest"),
    [
        *(("u2", 4095), ("u2", 65535), ("i2", 1023), ("i2", 32767)),
        *(("u4", 4095), ("u4", 2**32 - 1), ("i4", 2**31 - 1), ("f4", 1), ("f4", 255)),
    ],
)
def test_deep_grey_is_read_in_either_order_packed_or_not(kind, highest, order, is_packed):
    values = ramp(highest) if kind == "f4" else np.rint(ramp(highest))
    data = tiff_of(values.astype(kind), order=order)
    if is_packed:
        packed = np.frombuffer(zlib.compress(values.astype(order + kind).tobytes()), np.uint8)
        sign = {"u": 1, "i": 2, "f": 3}[kind[0]]
        data = tiff_of(
            (packed[None], {256: 24, 257: 16, 258: (8 * int(kind[1]),), 259: 8, 278: 16, 339: (sign,)}), order=order
        )
    assert np.abs(shown(data)[..., 0] - ramp(255)).max() < 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [12, 16])
def test_16_bits_of_which_the_lowest_is_white_are_turned_around(bits, order):
    deep = np.rint(2**bits - 1 - ramp(2**bits - 1)).astype(np.uint16)
    assert np.abs(shown(tiff_of((deep, {262: MIN_IS_WHITE}), order=order))[..., 0] - ramp(255)).max() < 1


@pytest.mark.parametrize(
    "tags",
    [{281: (4095,)}, {270: '<OME><Pixels SignificantBits="12"/></OME>'}, {270: "ImageJ=1.54\nmin=0.0\nmax=4095.0\n"}],
)
def test_the_range_that_a_file_states_is_used(tags):
    dim = np.rint(ramp(900)).astype(np.uint16)
    assert np.abs(shown(tiff_of((dim, tags)))[..., 0] - ramp(900 * 255 / 4095)).max() < 1


def test_a_dim_picture_is_as_dim_as_its_file_states():
    dim = np.rint(ramp(100)).astype(np.uint16)
    assert shown(tiff_of((dim, {281: (4095,)}))).max() == round(100 * 255 / 4095)
    assert shown(tiff_of((dim, {281: (1023,)}))).max() == round(100 * 255 / 1023)
    assert shown(tiff_of(dim)).max() == 100, "of 8 bits, as nothing else is stated"


def test_a_stated_range_that_the_values_exceed_or_that_makes_them_black_is_ignored():
    bright, dim = (np.rint(ramp(highest)).astype(np.uint16) for highest in (4095, 200))
    assert np.abs(shown(tiff_of((bright, {281: (255,)})))[..., 0] - ramp(255)).max() < 1
    assert shown(tiff_of((dim, {281: (16383,)}))).max() == 200


def test_the_range_of_a_whole_data_set_is_used_unless_the_picture_would_be_black():
    dim, colours = tiff_of(np.rint(ramp(900)).astype(np.uint16)), tiff_of(np.rint(ramp(900, 3)).astype(np.uint16))
    assert open_reduced(dim, lambda *_: 1).white == 1023
    for data in (dim, colours):
        assert abs(shown(data, 4095).max() - 900 * 255 / 4095) < 1
        assert shown(data, 65535).max() > 200
    assert open_reduced(encoded(Image.new("L", (9, 9))), lambda *_: 1).white == 0


@pytest.mark.parametrize("highest", [0.003, 0.4, 1, 5, 255, 1000, 4095, 100_000])
def test_floats_are_never_black(highest):
    data = tiff_of(ramp(highest).astype(np.float32))
    assert 100 <= shown(data).max() <= 255
    if highest in (1, 255, 4095):
        assert np.abs(shown(data)[..., 0] - ramp(255)).max() < 1


def test_a_black_picture_stays_black():
    assert shown(tiff_of(np.zeros((9, 9), np.uint16))).max() == 0


def test_transparent_grey_of_12_bits_becomes_mid_grey():
    deep = np.rint(ramp(4095)).astype(np.uint16)
    image = Image.fromarray(deep)
    assert (shown(encoded(image, transparency=int(deep[3, 3])))[3, 3] == MID_GREY).all()


@pytest.mark.parametrize("opaque", [4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_opacity_beside_12_bits_has_as_many_or_16(channels, opaque):
    colours = np.rint(ramp(4095, channels)).astype(np.uint16)
    opacity = np.rint(ramp(opaque)[::-1]).astype(np.uint16)
    share = ramp(1)[::-1, :, None]
    expected = ramp(255, channels) * share + MID_GREY * (1 - share)
    rows = [row.tobytes() for row in np.dstack([colours, opacity]).astype(">u2")]
    files = [png_of(24, 16, depth=16, colour=4 if channels == 1 else 6, rows=rows)]
    if channels == 3:
        files += [tiff_of((np.dstack([colours, opacity]), {262: 2, 338: (2,)}), order=order) for order in "<>"]
    for data in files:
        assert np.abs(shown(data) - expected).max() < 2


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_grey_of_few_bits_becomes_mid_grey(depth):
    values = np.tile(np.arange(16) % 2**depth, (9, 1))
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = [row.tobytes() for row in np.packbits(bits.reshape(9, -1).astype(np.uint8), axis=1)]
    data = png_of(16, 9, depth=depth, colour=0, rows=rows, transparency=struct.pack(">H", 1))
    expected = np.where(values == 1, MID_GREY, values * 255 // (2**depth - 1))
    assert np.array_equal(shown(data)[..., 2], expected)


@pytest.mark.parametrize("marks", [PREVIEW, {255: 2}, {254: 4}, {}])
@pytest.mark.parametrize("first", [False, True])
def test_the_preview_in_a_tiff_is_passed_over(marks, first):
    picture, preview = (np.full((size, size, 3), value, np.uint8) for size, value in ((40, 200), (10, 7)))
    pages = [picture, (preview, marks)]
    assert np.array_equal(shown(tiff_of(*(pages[::-1] if first else pages))), picture)


def test_a_pyramid_is_read_at_its_full_size():
    levels = [np.full((size, size), size, np.uint8) for size in (64, 32, 16, 8)]
    assert open_picture(tiff_of(levels[0], *((level, PREVIEW) for level in levels[1:]))).size == (64, 64)


@pytest.mark.parametrize(
    "data",
    [
        tiff_of((np.zeros((16, 24), np.uint16), {270: "ImageJ=1.54\nimages=3\nslices=3\n"})),
        tiff_of((np.zeros((16, 24), np.uint16), {270: '{"shape": [3, 16, 24]}'})),
    ],
)
def test_pictures_behind_a_single_page_are_not_dropped(data):
    with pytest.raises(UnsupportedFormat, match="3 pictures behind one page"):
        open_picture(data)


# stacks


def stack_of(*highest: float, **tags: str) -> bytes:
    """A stack of 12 bits, a page for each highest value, with a preview of the first."""
    pages = [np.rint(ramp(value)).astype(np.uint16) for value in highest]
    first = (pages[0], {270: tags["description"]}) if tags else pages[0]
    return tiff_of(first, *pages[1:], (np.zeros((4, 6), np.uint8), PREVIEW))


@pytest.fixture
def stack(tmp_path):
    def write(*highest, **tags):
        path = tmp_path / "stack.tif"
        path.write_bytes(stack_of(*highest, **tags))
        return path

    return write


def test_a_stack_is_no_single_picture():
    with pytest.raises(Animated, match=r"TIFF of several frames.*video"):
        open_picture(stack_of(9, 9))


def test_the_pages_of_a_stack_are_frames_of_one_brightness(stack):
    frames = list(iter_frames(stack(900, 4000, 1000), 99))
    assert [(frame.number, frame.time_s) for frame in frames] == [(0, 0), (1, 1), (2, 2)]
    for frame, highest in zip(frames, (900, 4000, 1000), strict=True):
        assert np.abs(np.asarray(frame.image)[..., 0] - ramp(highest * 255 / 4095)).max() < 1


def test_pages_are_chosen_as_frames_of_videos_are(stack):
    path = stack(*[4000] * 10, description="ImageJ=1.54\nimages=10\nfinterval=0.25\n")
    assert [frame.number for frame in iter_frames(path, 3)] == [1, 5, 8]
    assert [(frame.number, frame.time_s) for frame in iter_frames(path, 4, every=3)] == [
        (0, 0),
        (3, 0.75),
        (6, 1.5),
        (9, 2.25),
    ]
    with pytest.raises(BadVideo, match="10 of its 10 pages are asked for; at most 4"):
        list(iter_frames(path, 4, every=1))
    with pytest.raises(BadVideo, match="24 x 16"):
        list(iter_frames(path, 3, VideoLimits(max_pixels=300)))


def test_a_stack_cut_off_is_damaged(stack):
    path = stack(4000, 4000, 4000)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadVideo, match="page 4 of the TIFF is damaged"):
        list(iter_frames(path, 9))


@pytest.mark.parametrize(
    ("values", "tags", "kind"),
    [
        (ramp(1), {}, "64-bit floating-point numbers"),
        (ramp(1).astype(np.float16), {}, "16-bit floating-point numbers"),
        (ramp(1).astype(np.complex64), {}, "64-bit complex numbers"),
        (ramp(9).astype(np.int64), {}, "64-bit signed integers"),
        (ramp(9).astype(np.int8), {}, "8-bit signed integers"),
        (ramp(1, 3).astype(np.float32), {}, "32-bit floating-point numbers, 3 channels"),
        (np.zeros((16, 24, 5), np.uint16), {}, "16-bit integers, 5 channels"),
        (np.zeros((16, 24, 3), np.uint16), {284: 2}, "16-bit integers, 3 channels in separate planes"),
        (np.zeros((16, 24), np.uint8), {262: 32803}, "8-bit integers, a camera's raw data"),
        (np.zeros((16, 24), np.uint8), {259: 34887}, "compressed by LERC"),
        (np.zeros((16, 24), np.uint8), {259: 50001}, "compressed by WebP"),
        (np.zeros((16, 24), np.uint8), {259: 999}, "compressed by method 999"),
    ],
)
def test_kinds_of_tiff_that_are_not_read_are_named(values, tags, kind):
    data = tiff_of((values, tags))
    with pytest.raises(UnsupportedFormat) as caught:
        open_picture(data)
    assert f"this kind of TIFF is not read ({kind}); save it" in caught.value.detail
    with pytest.raises(TruncatedImage):
        open_picture(data[: len(data) // 3])


def test_the_preview_of_a_cameras_raw_data_is_not_taken_for_the_picture():
    data = tiff_of((np.zeros((16, 24, 3), np.uint8), PREVIEW | {330: 8}))
    with pytest.raises(UnsupportedFormat, match="a camera's raw data behind a preview"):
        open_picture(data)
    assert shown(tiff_of((np.full((16, 24, 3), 9, np.uint8), PREVIEW))).max() == 9


@pytest.mark.parametrize("start", [b"II\x00*", b"MM*\x00"])
def test_a_tiff_whose_version_is_in_the_other_order_is_read_as_pillow_does(start):
    order = "<" if start.startswith(b"I") else ">"
    data = start + tiff_of((np.full((16, 24, 3), 9, np.uint8), {}), order=order)[4:]
    assert shown(data).max() == 9


def test_a_stack_cut_off_after_its_first_page_is_damaged():
    data = tiff_of(*[np.zeros((16, 24), np.uint8)] * 2)
    with pytest.raises(BadPicture, match="page 2"):
        open_picture(data[:-20])


# phones and the web


def test_avif_is_read():
    image = Image.new("RGB", (24, 16), (250, 30, 30))
    assert np.abs(shown(encoded(image, "AVIF", quality=95)) - [250, 30, 30]).max() < 5
    with pytest.raises(Animated, match="AVIF"):
        open_picture(encoded(image, "AVIF", save_all=True, append_images=[Image.new("RGB", (24, 16))]))


def test_heic_is_read_upright():
    picture = shown(TURNED_HEIC)
    assert picture.shape == (64, 96, 3)
    assert np.abs(picture[5, 5] - [250, 30, 30]).max() < 5
    assert np.abs(picture[[5, -5, -5], [-5, 5, -5]] - [40, 120, 200]).max() < 5
    for length in (12, 60, 300):
        with pytest.raises(TruncatedImage):
            open_picture(TURNED_HEIC[:length])


def test_without_its_decoder_a_heic_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pictures, "_HEIF", ())
    monkeypatch.setattr(pictures, "FORMATS", ("JPEG", "PNG", "AVIF"))
    with pytest.raises(UnsupportedFormat, match=r"HEIC, and .* lacks the decoder .*\[heic\]"):
        open_picture(TURNED_HEIC)


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "a.heif", "DSC1.HIF", "b.avif"])
def test_phones_names_are_pictures(name):
    assert is_picture_name(name)


def test_the_decoder_of_heic_is_not_required():
    import subprocess

    code = "import sys; sys.modules['pi_heif'] = None\nfrom service.contract.media.pictures import FORMATS\n"
    subprocess.run([sys.executable, "-c", code + "assert 'HEIF' not in FORMATS"], check=True)

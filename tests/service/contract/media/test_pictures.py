"""Opening untrusted pictures and fitting them to the model's square."""

import contextlib
import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.contract.errors import (
    Animated,
    BadPicture,
    NotAnImage,
    TooManyPixels,
    TooSmall,
    TruncatedImage,
    UnsupportedFormat,
)
from service.contract.media.pictures import MID_GREY, PictureLimits, is_picture_name, open_picture


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    picture = open_picture(data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def noise(width: int = 24, height: int = 16, channels: int | None = 3) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


# conversions, to the exact pixel


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_rgb_comes_through_unchanged(kind):
    array = noise()
    assert np.array_equal(pixels(encoded(Image.fromarray(array), kind)), array)


def test_lossless_webp_comes_through_unchanged():
    array = noise()
    assert np.array_equal(pixels(encoded(Image.fromarray(array), "WEBP", lossless=True)), array)


def test_jpeg_is_what_pillow_decodes():
    data = encoded(Image.fromarray(noise()), "JPEG", quality=90)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_is_the_same_in_all_channels():
    array = noise(channels=None)
    assert np.array_equal(pixels(encoded(Image.fromarray(array))), np.repeat(array[..., None], 3, axis=2))


def test_one_bit_is_black_and_white():
    array = noise(channels=None) > 128
    result = pixels(encoded(Image.fromarray(array)))
    assert np.array_equal(result, np.repeat(array[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    array = np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170
    array[0, :3] = [0, 65535, 32896]
    result = pixels(encoded(Image.fromarray(array), kind))
    assert np.array_equal(result[..., 0], np.rint(array / 257).astype(np.uint8))
    assert result[0, :3, 1].tolist() == [0, 255, 128]


def test_16_bit_big_endian_tiff_is_scaled():
    array = (np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170).astype(">u2")
    image = Image.frombytes("I;16B", (24, 16), array.tobytes())
    assert np.array_equal(pixels(encoded(image, "TIFF"))[..., 2], np.rint(array.astype(float) / 257))


def test_16_bit_rgb_png_keeps_the_high_byte():
    deep = np.random.default_rng(1).integers(0, 65536, (16, 24, 3)).astype(">u2")
    result = pixels(png_of(24, 16, depth=16, colour=2, rows=[row.tobytes() for row in deep]))
    assert np.array_equal(result, (deep >> 8).astype(np.uint8))


def test_32_bit_integers_of_16_bits_range_are_scaled():
    array = np.arange(24 * 16, dtype=np.int32).reshape(16, 24) * 170
    result = pixels(encoded(Image.fromarray(array), "TIFF"))
    assert np.array_equal(result[..., 0], np.rint(array * (255 / 65535)))


def test_floats_from_0_to_1_are_scaled_and_nan_is_black():
    array = np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(16, 24)
    array[3, 3] = np.nan
    result = pixels(encoded(Image.fromarray(array), "TIFF"))
    assert np.array_equal(result[..., 0], np.rint(np.nan_to_num(array.astype(np.float64)) * 255))


def test_palette_becomes_its_colours():
    image = Image.fromarray(noise(channels=None)).convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    index = np.asarray(image).astype(int)
    expected = np.stack([index, 255 - index, index // 2], axis=2)
    assert np.array_equal(pixels(encoded(image)), expected)


def test_transparent_palette_colour_becomes_mid_grey():
    image = Image.fromarray((noise(channels=None) % 4).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    index = np.asarray(image)
    result = pixels(encoded(image, transparency=2))
    assert (result[index == 2] == MID_GREY).all()
    assert (result[index == 3] == [100, 110, 120]).all()


def test_cmyk_is_converted_as_pillow_does():
    image = Image.frombytes("CMYK", (24, 16), noise(channels=4))
    for kind in ("TIFF", "JPEG"):
        data = encoded(image, kind)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(pixels(data), expected)
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert (pixels(encoded(white, "JPEG")) == 255).all()


@pytest.mark.parametrize(("alpha", "expected"), [(255, 200), (0, MID_GREY), (128, 164)])
def test_transparency_is_laid_on_mid_grey(alpha, expected):
    image = Image.new("RGBA", (16, 16), (200, 200, 200, alpha))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert (pixels(encoded(image, kind, **options)) == expected).all()


def test_grey_with_alpha_is_laid_on_mid_grey():
    image = Image.new("LA", (16, 16), (10, 0))
    assert (pixels(encoded(image)) == MID_GREY).all()


def test_colour_key_of_an_rgb_png_is_transparent():
    array = noise()
    array[:4] = [1, 2, 3]
    result = pixels(encoded(Image.fromarray(array), transparency=(1, 2, 3)))
    assert (result[:4] == MID_GREY).all()
    assert np.array_equal(result[4:], array[4:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = noise(24, 16)
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
        assert np.array_equal(pixels(data), upright), kind


def test_phone_pictures_with_previews_in_them_are_read():
    first, second = Image.fromarray(noise()), Image.fromarray(noise()[::-1].copy())
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert open_picture(data).size == (24, 16)


# bad pictures


def test_refuses_bytes_that_are_no_picture():
    with pytest.raises(NotAnImage, match="expected a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF"):
        open_picture(b"hello, this is a text file")
    with pytest.raises(NotAnImage, match="empty"):
        open_picture(b"")


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"GIF89a" + bytes(40), "GIF"), (b"8BPS" + bytes(40), "Photoshop"), (b"%PDF-1.7", "PDF")],
)
def test_names_formats_that_are_not_supported(head, name):
    with pytest.raises(UnsupportedFormat, match=name):
        open_picture(head)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_refuses_truncated_pictures(kind):
    data = encoded(Image.fromarray(noise(200, 150)), kind)
    for length in (12, len(data) // 3, len(data) // 2):
        with pytest.raises(BadPicture) as caught:
            open_picture(data[:length])
        assert isinstance(caught.value, TruncatedImage) or length == 12, (kind, length)


def test_refuses_a_decompression_bomb_before_decoding():
    side = 50_000
    bomb = png_of(side, side, depth=1, colour=0, rows=[])
    assert len(bomb) < 1000
    with pytest.raises(TooManyPixels):
        open_picture(bomb)


def test_counts_pixels_below_pillows_own_limit():
    data = encoded(Image.new("RGB", (101, 100)))
    with pytest.raises(TooManyPixels, match="101 x 100"):
        open_picture(data, PictureLimits(max_pixels=10_000))
    assert open_picture(data, PictureLimits(max_pixels=10_100)).size == (101, 100)


def test_limit_above_pillows_own_is_refused():
    with pytest.raises(ValueError, match="at most"):
        PictureLimits(max_pixels=10**9)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_refuses_tiny_pictures(size):
    with pytest.raises(TooSmall, match="at least 8"):
        open_picture(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_refuses_animated_pictures(kind):
    frames = [Image.fromarray(noise()), Image.fromarray(noise()[::-1].copy())]
    with pytest.raises(Animated, match=f"{kind} of several frames"):
        open_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_a_tiff_of_very_many_frames_is_refused_at_once():
    page = encoded(Image.new("L", (8, 8)), "TIFF")
    directory = int.from_bytes(page[4:8], "little")
    entries = int.from_bytes(page[directory : directory + 2], "little")
    size = 2 + 12 * entries + 4
    data = bytearray(page)
    data += bytes(len(data) % 2)
    first = len(data)
    for index in range(30_000):
        data += page[directory : directory + size - 4] + struct.pack("<I", first + (index + 1) * size)
    data[directory + size - 4 : directory + size] = struct.pack("<I", first)
    began = time.thread_time()
    with pytest.raises(Animated):
        open_picture(bytes(data))
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("offset", [1, 9, 0x7FFFFFFF])
def test_a_tiff_with_a_damaged_next_frame_gives_a_typed_error(offset):
    data = bytearray(encoded(Image.fromarray(noise()), "TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    link = directory + 2 + 12 * int.from_bytes(data[directory : directory + 2], "little")
    data[link : link + 4] = struct.pack("<I", offset)
    with pytest.raises(BadPicture):
        open_picture(bytes(data))


def progressive(**options) -> bytes:
    return encoded(Image.fromarray(noise(64, 48, None)), "JPEG", progressive=True, **options)


def with_last_scan_repeated(data: bytes, times: int) -> bytes:
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * times + data[-2:]


@pytest.mark.parametrize("as_file", [False, True])
def test_refuses_a_jpeg_of_very_many_scans(as_file):
    data = with_last_scan_repeated(progressive(), 200)
    with pytest.raises(BadPicture, match="more than 100 scans"):
        open_picture(io.BytesIO(data) if as_file else data)


def test_refuses_a_jpeg_of_very_many_segments():
    data = progressive()
    with pytest.raises(BadPicture, match="segments"):
        open_picture(data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:])


def test_a_jpeg_of_fill_bytes_is_refused_at_once():
    """A search that begins again at each of them took the square of their number: hours."""
    began = time.process_time()
    with pytest.raises(BadPicture):
        open_picture(b"\xff\xd8\xff" + b"\xff" * 2_000_000 + bytes(10))
    assert time.process_time() - began < 5


def test_a_jpeg_of_many_scans_is_read():
    assert pixels(with_last_scan_repeated(progressive(), 60)).shape == (48, 64, 3)


def test_bytes_like_scans_before_and_after_a_jpegs_picture_do_not_count():
    film = b"\xff\xda" * 5000  # as in the film after a phone's moving picture
    data = progressive(icc_profile=b"\0" * 128 + film) + film
    assert np.array_equal(pixels(data), pixels(progressive()))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_bytes_give_a_picture_or_a_typed_error(kind, edits):
    data = bytearray(encoded(Image.fromarray(noise(40, 30)), kind))
    for where, value in edits:
        data[int(where * len(data))] = value
    with contextlib.suppress(BadPicture):
        assert open_picture(bytes(data)).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "expected"), [("a.JPG", True), ("x/y.webp", True), ("labels.csv", False), ("png", False), (".png", False)]
)
def test_picture_names(name, expected):
    assert is_picture_name(name) is expected


def png_of(width: int, height: int, *, depth: int, colour: int, rows: list[bytes], transparency: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    transparent = chunk(b"tRNS", transparency) if transparency else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + chunk(b"IDAT", body) + chunk(b"IEND", b"")

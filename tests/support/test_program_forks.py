"""A program that starts as a fork is as a started one: a child, with its arguments, streams, exit code and signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract.media.video_request import DONE, HEADER
from tests.support import program_forks

pytestmark = pytest.mark.skipif(program_forks._CLONE is None, reason="knows Linux's clone on two kinds of processor")


def start(module: str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def decode(path: Path) -> subprocess.Popen[bytes]:
    request = {"path": str(path), "count": 3, "every": None}
    return start("service.contract.media.video_decoder", json.dumps(request), start_new_session=True)


def test_fork_is_a_child_that_answers_as_a_started_process(video, tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(video(3))
    answers = []
    for _ in range(2):
        with decode(path) as process:
            assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
            answers.append(process.communicate())
            assert process.returncode == 0
        monkeypatch.setattr("subprocess._fork_exec", program_forks.START)
    assert answers[0] == answers[1]
    assert HEADER.unpack(answers[0][0][-HEADER.size :])[0] == DONE


def test_fork_has_its_exit_code_streams_and_environment(tmp_path):
    with start("model.scoring.label_hdf5", stdin=subprocess.PIPE) as process:
        said, reason = process.communicate(b"no HDF5")
    assert process.returncode
    assert not said
    assert reason
    with start("service.training.label_check", "no JSON", env={**os.environ, "PPL_X": "1"}, cwd=tmp_path) as process:
        _, reason = process.communicate()
    assert process.returncode == 1
    assert b"JSONDecodeError" in reason


def test_signal_ends_it(tmp_path):
    os.mkfifo(tmp_path / "never.mp4")
    with decode(tmp_path / "never.mp4") as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL

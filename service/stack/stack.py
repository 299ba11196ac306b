"""The whole platform on one machine: Valkey, both workers and the gateway as children of one process."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import secrets
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
from service.contract import routing
from service.runtime.settings import Settings

from .data_lock import DataRootLock
from .supervisor import ChildSpec, Supervisor
from .valkey import PID_FILE, EmbeddedValkey
from .worker_watch import WorkerWatch

logger = logging.getLogger(__name__)

# a worker finishes its batch, or its training step and checkpoint, before it stops
_WORKER_STOP_S = 20.0
_GATEWAY_STOP_S = 12.0
_REMIND_EVERY_S = 30.0
# the gateway of a killed stack may hold the port a moment longer
_PORT_GRACE_S = 1.0


class StackError(RuntimeError):
    """The stack can't be started; the message says why and what to do."""


@dataclass(frozen=True)
class RunningStack:
    """Addresses and processes of a running stack; ``first_key`` is the file with the first API key while it exists."""

    url: str
    data_root: Path
    logs: Path
    pids: dict[str, int | None]
    first_key: Path | None


def run_stack(
    settings: Settings,
    stop: threading.Event,
    on_ready: Callable[[RunningStack], None],
    now: Callable[[], bool] = lambda: False,
    any_port: bool = False,
    gateways: int = 1,
) -> None:
    """Start everything, call ``on_ready`` once the API serves, and run until ``stop`` is set.

    With PPL_REDIS_URL set, that server is used and none is embedded.

    Args:
        now: polled while stopping; true kills the processes that still run.
        any_port: listen on a free port instead of the configured one.
        gateways: number of gateway processes; they accept connections from one socket.

    Raises:
        StackError: packages are missing, or the address is in use.
        DataRootInUseError: another stack uses the data root.
        ValkeyMissingError: there is no server to embed.
        ChildFailedError: a process exits after each start.
        OSError: the data root can't be written.
    """
    _check_packages()
    with (
        DataRootLock(settings.data_root) as lock,
        _listen(settings.host, 0 if any_port else settings.port) as listener,
    ):
        url = _local_url(listener)
        lock.describe(pid=os.getpid(), url=url, valkey_pid_file=str(settings.data_root / "valkey" / PID_FILE))
        logger.info("starting the stack: data_root=%s", settings.data_root)
        supervisor = Supervisor(_child_specs(settings, listener, lock, gateways))
        try:
            supervisor.start(stop)
            if _wait_until_ready(supervisor, url, stop):
                pids = {child.spec.name: child.pid for child in supervisor.children}
                file = KeyStore(settings.data_root).first_key_file
                first_key = file if settings.needs_keys and file.exists() else None
                on_ready(RunningStack(url, settings.data_root, settings.data_root / "logs", pids, first_key))
            supervisor.run(stop)
        finally:
            supervisor.stop(now)


def _child_specs(settings: Settings, listener: socket.socket, lock: DataRootLock, gateways: int) -> list[ChildSpec]:
    logs = settings.data_root / "logs"
    environment = {"PPL_DATA_ROOT": str(settings.data_root), "PYTHONUNBUFFERED": "1"}
    # -P: do not import a folder named worker or service from the working directory
    python = (sys.executable, "-P", "-m")
    specs = []
    if "redis_url" in settings.model_fields_set:
        environment["PPL_REDIS_URL"] = settings.redis_url
        logger.info("using the server of PPL_REDIS_URL instead of an embedded one")
    else:
        server = EmbeddedValkey.create_in(settings.data_root / "valkey")
        environment["PPL_REDIS_URL"] = server.url
        specs.append(server.spec(logs / "valkey.log", pass_fds=(lock.fd,)))
    metrics_port = os.environ.get("PPL_WORKER_METRICS_PORT", "")
    for offset, kind in enumerate(routing.KINDS):
        name = f"worker-{kind}"
        env = environment
        if metrics_port.isdigit():  # two workers on one machine need different ports
            env = {**environment, "PPL_WORKER_METRICS_PORT": str(int(metrics_port) + offset)}
        watch = WorkerWatch(environment["PPL_REDIS_URL"], kind)
        specs.append(
            ChildSpec(
                name,
                (*python, "worker", kind),
                logs / f"{name}.log",
                stage=1,
                env=env,
                stop_timeout_s=_WORKER_STOP_S,
                last_beat=watch.last_beat,
                on_crash=watch.forget,
            )
        )
    # the gateway inherits the environment but not the options of `ppl up`
    api_keys = {} if settings.api_keys is None else {"PPL_API_KEYS": str(settings.api_keys).lower()}
    # one socket for all, not one each with SO_REUSEPORT: connections waiting at a shared socket are accepted by another
    # gateway at once; at a killed gateway's own socket they would wait for its restart
    group = secrets.token_hex(4)
    for number in range(1, gateways + 1):
        several = () if gateways == 1 else ("--member", str(number), str(gateways), "--group", group)
        name = f"gateway-{number}" if several else "gateway"
        specs.append(
            ChildSpec(
                name,
                (*python, "service.gateway.serve", "--fd", str(listener.fileno()), *several),
                logs / f"{name}.log",
                stage=2,
                env={**environment, **api_keys},
                pass_fds=(listener.fileno(),),
                stop_timeout_s=_GATEWAY_STOP_S,
            )
        )
    return specs


def _listen(host: str, port: int) -> socket.socket:
    """Open the gateway's socket here, to find a port in use at once, and so that connections wait for a restart."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise StackError(f"can't listen on {host}: {error.strerror}; choose another address with --host") from error
    deadline = time.monotonic() + _PORT_GRACE_S
    while True:
        try:
            is_dual = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
            return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=is_dual)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise StackError(
                    f"can't listen on {host}:{port}: {os.strerror(error.errno or 0)}. "
                    "Choose another port with --port (0 takes a free one) or PPL_PORT."
                ) from error
            time.sleep(0.05)


def _local_url(listener: socket.socket) -> str:
    """Return the socket's address for clients on this machine: loopback if it listens on all interfaces."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _wait_until_ready(supervisor: Supervisor, url: str, stop: threading.Event) -> bool:
    with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as client:
        while not supervisor.wait_until(partial(_is_ready, client), stop, timeout_s=_REMIND_EVERY_S):
            if stop.is_set():
                return False
            logs = ", ".join(str(child.spec.log_path) for child in supervisor.children)
            logger.warning("the stack is not ready yet; see the logs: %s", logs)
    return True


def _is_ready(client: httpx.Client) -> bool:
    time.sleep(0.1)  # do not flood the starting gateway
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _check_packages() -> None:
    missing = [name for name in ("torch", "worker") if importlib.util.find_spec(name) is None]
    if missing:
        raise StackError(
            f"not installed: {', '.join(missing)}. The stack needs the worker's packages: "
            "pip install 'pose-prior-learner[worker,embedded]'"
        )

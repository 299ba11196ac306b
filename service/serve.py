"""``python -m service.serve``: the gateway alone, as ``ppl up`` and the container run it."""

from __future__ import annotations

import argparse
import logging
import socket
import sys

import uvicorn

from .app import create_app
from .contract.store import VersionStore
from .sample_categories import install_samples
from .settings import Settings

_DRAIN_S = 8


class _Server(uvicorn.Server):
    """Lets answers that go on for long, as streams of events do, end before it waits for those in flight."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.gateway.leaving = True  # type: ignore[union-attr]
        await super().shutdown(sockets)


def main() -> None:
    """Serves on PPL_HOST and PPL_PORT, or on a listening socket inherited from ``ppl up``."""
    parser = argparse.ArgumentParser(prog="python -m service.serve", description=__doc__)
    parser.add_argument("--fd", type=int, help="file descriptor of a listening socket to serve on")
    fd = parser.parse_args().fd
    settings = Settings()
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if settings.sample_categories:
        install_samples(VersionStore(settings.data_root))
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    _Server(config).run(sockets=None if fd is None else [socket.socket(fileno=fd)])


if __name__ == "__main__":
    main()

"""Run the gateway: ``python -m service.gateway.serve``, as ``ppl up`` and the container do."""

from __future__ import annotations

import argparse
import gc
import logging
import socket

import uvicorn
from asgi_correlation_id import CorrelationIdFilter

from service.access.keys import KeyStore
from service.contract.logs import configure_logging
from service.contract.memory import limit_arenas
from service.contract.tracing import configure_tracing
from service.contract.versions.shared import open_versions
from service.http.requests import LOG_FORMAT, ProblemProtocol
from service.runtime.settings import Settings
from service.versions.samples import install_samples

from .app import create_app
from .gateway import Member

log = logging.getLogger(__name__)

_DRAIN_S = 8
_GC_THRESHOLD = 10_000  # with a tenth of it, collecting garbage took an eighth of the CPU time of an estimate


class _Server(uvicorn.Server):
    """A server that ends event streams before it waits for the requests in flight."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.gateway.shutting_down = True  # type: ignore[union-attr]
        await super().shutdown(sockets)


def main() -> None:
    """Serve on PPL_HOST and PPL_PORT, or on a listening socket inherited from ``ppl up``."""
    limit_arenas()
    parser = argparse.ArgumentParser(prog="python -m service.gateway.serve", description=__doc__)
    parser.add_argument("--fd", type=int, help="file descriptor of the listening socket to serve on")
    parser.add_argument("--member", type=int, nargs=2, metavar=("NUMBER", "TOTAL"), help="of several on one socket")
    parser.add_argument("--group", default="", help="name of the group of gateways on one socket")
    options = parser.parse_args()
    fd, member = options.fd, Member(options.group, *options.member) if options.member else None
    inherited = None if fd is None else socket.socket(fileno=fd)
    settings = Settings() if inherited is None else Settings(host=inherited.getsockname()[0])
    handler = configure_logging(settings.log_level, settings.log_format, LOG_FORMAT)
    handler.addFilter(CorrelationIdFilter(default_value="-"))
    configure_tracing(settings, "gateway")
    if settings.sample_categories:
        install_samples(open_versions(settings))
    if settings.needs_keys:
        path = KeyStore.open(settings).ensure_first()
        if path:
            log.warning("the first API key, which permits everything, is in %s; read it and remove the file", path)
    config = uvicorn.Config(
        create_app(settings, member),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        log_config=None,
        access_log=False,
        http=ProblemProtocol,
        ws="none",  # a web socket's handshake would bypass the keys
        timeout_graceful_shutdown=_DRAIN_S,
    )
    # do not search objects that live as long as the process for garbage
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    _Server(config).run(sockets=None if inherited is None else [inherited])


if __name__ == "__main__":
    main()

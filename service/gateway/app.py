"""The gateway's ASGI application. Loads no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from service.access.guard import Guard, RequestLog
from service.estimates.results import ERRORS_HEADER
from service.http import problems
from service.http.headers import REPLAYED_HEADER
from service.http.requests import BodyLimit, HeadAsGet, InnerPath, OuterPath, add_request_ids
from service.runtime.settings import Settings

from . import openapi, page
from .gateway import Gateway, Member
from .routes import datasets, estimate, estimates, health, jobs, landmarks, priors, versions

# of a response, by scripts of other origins
_READABLE_HEADERS = ("ETag", "Location", "Retry-After", problems.REQUEST_ID, REPLAYED_HEADER, ERRORS_HEADER)


def create_app(settings: Settings | None = None, member: Member | None = None) -> FastAPI:
    """Create the application, for any ASGI server (``uvicorn --factory service.gateway.app:create_app``).

    It starts also without Redis and workers. With `member`, it is one of several gateways on one socket.
    """
    settings = settings or Settings()
    gateway = Gateway(settings, member)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    # serves the scripts of /docs too, for browsers without internet access
    app = FastAPIOffline(
        title="Pose Prior Learner",
        version=version("pose-prior-learner"),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    pages = list(app.router.routes)
    for router in (
        estimate.make_router(settings),  # the most frequent first: routes are searched in order
        estimates.router,
        jobs.router,
        datasets.router,
        priors.router,
        landmarks.make_router(settings),
        landmarks.router,
        versions.router,
        health.router,
    ):
        # include_router would analyse each route a second time, during the first request, which takes 30 ms
        app.router.routes += router.routes

    app.router.routes += page.make_router().routes
    # the pages of the documentation were added first and are requested rarely
    app.router.routes.sort(key=lambda route: route in pages)
    problems.install(app)
    openapi.install(app, needs_keys=settings.needs_keys)
    # the last one added is the outermost
    if settings.root_path:
        app.add_middleware(InnerPath, prefix=settings.root_path)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(
        Guard, settings=settings, keys=gateway.keys if settings.needs_keys else None, redis=gateway.redis
    )
    app.add_middleware(RequestLog, metrics=gateway.metrics, log_all=settings.access_log)
    if settings.site_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.site_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_READABLE_HEADERS,
        )
    if settings.root_path:
        app.add_middleware(OuterPath, prefix=settings.root_path)
    add_request_ids(app)
    return app

"""The gateway's application: HTTP in front of the queue. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import Scope

from service.access.guard import Access
from service.access.keys import KeyStore
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.contract.versions.start_prior import MAX_PRIOR_BYTES
from service.http import problems as errors
from service.http.body_limits import BodyLimit, HeadAsGet, RequestFigures
from service.http.negotiation import media_type, responds_async
from service.http.request_ids import RequestId
from service.runtime.settings import Settings

from . import openapi
from .gateway import Gateway
from .routes import (
    datasets,
    estimate,
    estimates,
    export_import,
    health,
    job_events,
    jobs,
    keypoint_names,
    landmarks,
    priors,
    versions,
    webhooks,
)

# what a multipart form weighs beside its files
_FORM_BYTES = 2**20
# JSON is read in one piece by the event loop, so it must be short; a folder, some settings and a prior are
_JSON_BYTES = 256 * 2**10
_IMPORT = re.compile(r"/priors/[^/]+/versions/import")
_LANDMARKS = re.compile(r"/priors/[^/]+/landmarks")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application, for any ASGI server (``uvicorn --factory service.gateway.app:create_app``).

    Starts while Redis or the workers are away, and uses them once they are there.
    """
    settings = settings or Settings()
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    # the page of /docs with its scripts, so that it works where the browser has no internet
    app = FastAPIOffline(
        title=openapi.TITLE,
        version=openapi.package_version(),
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # create_job, get_job, …: what generated clients call it
    )
    app.state.gateway = gateway
    pages = list(app.router.routes)
    for router in (
        estimate.make_router(settings),  # asked for most often, so found first
        estimates.router,
        jobs.router,
        job_events.router,
        webhooks.router,
        datasets.router,
        priors.router,
        keypoint_names.router,
        landmarks.make_router(settings),
        export_import.router,
        versions.router,
        health.router,
    ):
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    # the pages of the documentation were there first; a route is found by going through them in turn
    app.router.routes.sort(key=lambda route: route in pages)
    errors.install(app)
    openapi.install(app, keys_needed=settings.keys_needed)
    # the last one is the first that a request meets
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, limit_of=_limit_of(settings), slowest=settings.slowest_body_bytes_per_s)
    app.add_middleware(Access, settings=settings, keys=KeyStore(settings.data_root) if settings.keys_needed else None)
    app.add_middleware(RequestFigures, metrics=gateway.metrics, log_all=settings.access_log)
    app.add_middleware(RequestId)
    return app


def _limit_of(settings: Settings) -> Callable[[Scope], int]:
    def limit(scope: Scope) -> int:
        """Only uploads to keep, to train, to fit or to import may be long, and only as a form; JSON must be short."""
        kind = media_type(Headers(scope=scope))
        if kind == "application/json":
            return min(_JSON_BYTES, settings.max_body_bytes)
        if scope["path"] == "/estimate" and kind == "multipart/form-data" and responds_async(Headers(scope=scope)):
            return settings.background_body_bytes
        if scope["path"] in ("/train-jobs", "/datasets") and kind == "multipart/form-data":
            return settings.archive_max_bytes + MAX_LABELS_BYTES + MAX_PRIOR_BYTES + _FORM_BYTES
        if _IMPORT.fullmatch(scope["path"]) and kind == "multipart/form-data":
            return settings.version_max_bytes + _FORM_BYTES
        if _LANDMARKS.fullmatch(scope["path"]) and kind == "multipart/form-data":
            return min(settings.landmarks_max_bytes, settings.max_pending_bytes)
        return settings.max_body_bytes

    return limit

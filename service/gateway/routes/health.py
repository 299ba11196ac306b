"""/livez, /readyz and /metrics, for operators."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from service.contract.errors import Unavailable
from service.gateway.gateway import CurrentGateway, new_router
from service.http.problems import responses
from service.http.schemas import Liveness, Readiness
from service.runtime.redis_clients import NO_ANSWER

router = new_router("operation")

_RETRY_S = 2.0
_REDIS_S = 2.0


@router.get("/livez", summary="Whether the process answers")
async def livez() -> Liveness:
    """Return the same while the process runs; checks nothing else."""
    return Liveness()


@router.get("/readyz", summary="Whether requests can be served", responses=responses(503))
async def readyz(gateway: CurrentGateway) -> Readiness:
    """Return 200 once Redis answers and an inference worker is alive; else 503 with `checks` that name what is missing.

    A missing training worker is listed, but the service is ready without it; so is a category's own Redis server
    (`PPL_REDIS_BY_CATEGORY`) that does not answer or has no inference worker.
    """
    workers = gateway.workers
    checks = {"redis": "ok", "inference_worker": "unknown", "training_worker": "unknown"}
    try:
        async with asyncio.timeout(_REDIS_S):  # before the timeout of usual probes
            await workers.refresh()
    except NO_ANSWER:
        checks["redis"] = "does not answer"
    else:
        incompatible = " (one of another release is)" if workers.incompatible else ""
        for kind, alive in workers.live.items():
            checks[f"{kind}_worker"] = "ok" if alive else f"none is running{incompatible}"
    for queue, state in zip(
        gateway.category_queues,
        await asyncio.gather(*(queue.check() for queue in gateway.category_queues)),
        strict=True,
    ):
        checks |= {f"redis of {category}": state for category in queue.categories}
    missing = [name for name in ("redis", "inference_worker") if checks[name] != "ok"]
    if missing:
        detail = "not ready: " + ", ".join(f"{name} {checks[name]}" for name in missing)
        raise Unavailable(detail, retry_after_s=_RETRY_S, extra={"checks": checks, "missing": missing})
    return Readiness(checks=checks)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}},
)
async def metrics(gateway: CurrentGateway) -> Response:
    """Return metrics of requests, the queue, batches, jobs and workers; those of workers have a label `worker`."""
    return Response(await gateway.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

"""Deliver webhooks: signed requests that report the end of a job, repeated until the receiver accepts one.

As in Standard Webhooks (https://www.standardwebhooks.com). A delivery is stored in Redis by the same step that ends
its job, so it is made at least once, whatever process crashes. Repeated deliveries have the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
from standardwebhooks.webhooks import Webhook

from service.contract import routing
from service.contract.errors import BadWebhook, StoreUnavailable, UnknownJob
from service.contract.jobs import scripts
from service.contract.jobs.job import Job
from service.contract.jobs.record import JobRecord
from service.contract.jobs.store import JobStore
from service.contract.jobs.webhooks import check_address, check_webhook_url
from service.runtime.concurrency import cancel_tasks
from service.runtime.redis_clients import QUEUE_ERRORS

log = logging.getLogger(__name__)

# seconds between attempts, as Standard Webhooks recommends: about a day in all
RETRIES_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0)
_TIMEOUT_S = 15.0
_LEASE_MS = 60_000
_MAX_CONCURRENT = 16
# limits of one host and of the jobs of one API key, so that slow receivers do not hold up the others for long
_MAX_PER_HOST = 4
_MAX_PER_KEY = 12
_BUSY_RETRY_S = 1.0
_OUTAGES: tuple[type[Exception], ...] = (*QUEUE_ERRORS, StoreUnavailable)


class WebhookSender:
    """A sender of due webhooks. Gateways share the work: each delivery needs a lease.

    Args:
        client: redis.asyncio.Redis.
        in_thread: runs a blocking function of the job store.
        secret: returns the signing secret. Blocking; raises StoreUnavailable.
        private: whether private addresses are allowed.
    """

    def __init__(
        self, client: Any, jobs: JobStore, in_thread: Callable[..., Any], secret: Callable[[], str], *, private: bool
    ) -> None:
        self._redis = client
        self._jobs = jobs
        self._in_thread = in_thread
        self._secret = secret
        self._private = private
        self._running: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[tuple[str, str]] = Counter()

    async def start_due(self) -> None:
        """Start the deliveries that are due, up to the limit of concurrent ones."""
        self._running = {job_id: task for job_id, task in self._running.items() if not task.done()}
        limit = 2 * _MAX_CONCURRENT  # running deliveries are still listed as due
        for name in await self._redis.eval(scripts.DUE, 1, routing.WEBHOOKS, RETRIES_S[-1], limit):
            job_id = name.decode()
            if job_id not in self._running and len(self._running) < _MAX_CONCURRENT:
                self._running[job_id] = asyncio.create_task(self._deliver(job_id))

    async def close(self) -> None:
        """Cancel running deliveries; another gateway repeats them."""
        await cancel_tasks(self._running.values())

    async def _deliver(self, job_id: str) -> None:
        lease, token = routing.webhook_lease_key(job_id), secrets.token_hex(8)
        try:
            if not await self._redis.set(lease, token, nx=True, px=_LEASE_MS):
                return
            try:
                await self._attempt(job_id)
            except _OUTAGES:
                raise
            except Exception:  # a bug with one webhook must not stop the others
                log.exception("webhook failed: job=%s", job_id)
                await self._postpone(job_id, RETRIES_S[-1])
            finally:
                await self._redis.eval(scripts.RELEASE, 1, lease, token)
        except _OUTAGES as error:  # it stays due
            log.warning("webhook waits for Redis or the object store: job=%s error=%s", job_id, error)

    async def _postpone(self, job_id: str, delay_s: float) -> None:
        await self._redis.eval(scripts.POSTPONE, 1, routing.WEBHOOKS, delay_s, job_id)

    async def _attempt(self, job_id: str) -> None:
        """Send a webhook once, and record the outcome."""
        try:
            job: Job | None = await self._in_thread(self._jobs.get, job_id)
        except UnknownJob:  # deleted
            job = None
        if job is None or job.webhook is None or job.webhook.status != "pending":
            await self._redis.zrem(routing.WEBHOOKS, job_id)
            return
        host, owner = ("host", urlsplit(job.webhook.url).netloc), ("key", job.created_by or "")
        if self._busy[host] >= _MAX_PER_HOST or self._busy[owner] >= _MAX_PER_KEY:
            await self._postpone(job_id, _BUSY_RETRY_S)
            return
        self._busy.update((host, owner))
        try:
            error, is_final = await self._send(job)
        finally:
            self._busy.subtract((host, owner))
            self._busy += Counter()  # drops zeros
        attempts = job.webhook.attempts + 1
        is_final = is_final or attempts > len(RETRIES_S)

        def record_outcome(record: JobRecord) -> None:
            delivery = record.job.webhook
            assert delivery is not None  # a job keeps its webhook
            delivery.attempts, delivery.last_error = attempts, error
            if error is None:
                delivery.status, delivery.delivered_at = "delivered", datetime.now(UTC)
            elif is_final:
                delivery.status = "failed"

        try:
            await self._in_thread(self._jobs.update, job_id, record_outcome)
        except UnknownJob:
            is_final = True
        if is_final:
            await self._redis.zrem(routing.WEBHOOKS, job_id)
        else:
            await self._postpone(job_id, RETRIES_S[attempts - 1])
        outcome = "delivered" if error is None else "given up" if is_final else "failed, will be repeated"
        log.info("webhook %s: job=%s attempts=%d error=%s", outcome, job_id, attempts, error)

    async def _send(self, job: Job) -> tuple[str | None, bool]:
        """Send a webhook. Return the error, or None if the receiver accepted it, and whether the outcome is final."""
        assert job.webhook is not None
        now = datetime.now(UTC)
        data = job.model_dump(mode="json", exclude={"webhook"})
        body = json.dumps({"type": f"train_job.{job.status}", "timestamp": data["finished_at"], "data": data})
        name, secret = f"msg_{job.id}", await self._in_thread(self._secret)
        headers = {
            "content-type": "application/json",
            "user-agent": "pose-prior-learner",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(name, now, body),
        }
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await self._post(job.webhook.url, body.encode(), headers)
        except BadWebhook as error:
            # its DNS record may change; the address is logged only, or users who start jobs could scan the network
            log.warning("webhook refused: job=%s %s", job.id, error.detail)
            return "its host has a private address; webhooks go to public addresses only", False
        except TimeoutError:
            return f"no answer within {_TIMEOUT_S:g} s", False
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}", False
        if 200 <= status < 300:
            return None, True
        return f"the receiver answered {status}", status == HTTPStatus.GONE

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send to the address that was checked, as the name may resolve to another one a moment later."""
        target = httpx.URL(check_webhook_url(url, private=self._private))
        port = target.port or (443 if target.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        address = found[0][4][0]
        if not self._private:
            for entry in found:
                check_address(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]), target.host)
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S, follow_redirects=False) as client:
            request = client.build_request(
                "POST",
                target.copy_with(host=str(address)),
                content=body,
                headers={**headers, "host": target.netloc.decode("ascii")},
                extensions={"sni_hostname": target.host},
            )
            answer = await client.send(request, stream=True)  # the body is not read
            await answer.aclose()
            return answer.status_code

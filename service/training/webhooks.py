"""Tells the ends of jobs to whoever asked for it: signed, again and again until it is taken.

After Standard Webhooks (https://www.standardwebhooks.com): headers ``webhook-id``, ``webhook-timestamp`` and
``webhook-signature``. What is due stands in Redis from the very step that ended the job, so whoever dies meanwhile, it
is delivered at least once; a delivery that comes twice has the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from standardwebhooks.webhooks import Webhook

from service.contract import routing
from service.contract.errors import BadWebhook, UnknownJob
from service.contract.jobs import scripts
from service.contract.jobs.store import Job, JobRecord, JobStore
from service.contract.jobs.webhooks import check_address, check_webhook_url
from service.runtime.redis_clients import QUEUE_ERRORS
from service.runtime.threads import cancel_tasks

log = logging.getLogger(__name__)

# seconds from one attempt to the next: those that Standard Webhooks recommends, about a day in all
RETRIES_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0)
_TIMEOUT_S = 15.0
_LEASE_MS = 60_000
_AT_ONCE = 16
# receivers that do not answer hold up no others for long: of one host, and of what one API key asked for, so many
_OF_A_HOST = 4
_OF_A_KEY = 12
_ASIDE_S = 1.0
_GONE = 410


class Courier:
    """Delivers what is due. Several gateways share the work: who takes a delivery holds its lease.

    Args:
        client: redis.asyncio.Redis.
        in_thread: runs a blocking function of the job store.
        secret: gives the secret to sign with.
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

    async def round(self) -> None:
        """Begin to deliver what is due now, as far as there is room."""
        self._running = {job_id: task for job_id, task in self._running.items() if not task.done()}
        most = 2 * _AT_ONCE  # those under way are due still
        for name in await self._redis.zrangebyscore(routing.WEBHOOKS, 0, time.time(), start=0, num=most):
            job_id = name.decode()
            if job_id not in self._running and len(self._running) < _AT_ONCE:
                self._running[job_id] = asyncio.create_task(self._deliver(job_id))

    async def close(self) -> None:
        """Leave what is under way to the next gateway."""
        await cancel_tasks(self._running.values())

    async def _deliver(self, job_id: str) -> None:
        lease, token = routing.webhook_lease_key(job_id), secrets.token_hex(8)
        try:
            if not await self._redis.set(lease, token, nx=True, px=_LEASE_MS):
                return
            try:
                await self._attempt(job_id)
            except QUEUE_ERRORS:
                raise
            except Exception:  # a fault of ours with one must not hold up the others
                log.exception("job %s: its webhook failed", job_id)
                await self._redis.zadd(routing.WEBHOOKS, {job_id: time.time() + RETRIES_S[-1]}, xx=True)
            finally:
                await self._redis.eval(scripts.RELEASE, 1, lease, token)
        except QUEUE_ERRORS as error:  # it stays due
            log.warning("job %s: Redis is away, its webhook waits: %s", job_id, error)

    async def _attempt(self, job_id: str) -> None:
        try:
            job: Job = await self._in_thread(self._jobs.get, job_id)
        except UnknownJob:  # its record was deleted
            await self._redis.zrem(routing.WEBHOOKS, job_id)
            return
        if job.webhook is None or job.webhook.status != "pending":
            await self._redis.zrem(routing.WEBHOOKS, job_id)
            return
        # whose time it takes
        shares = (("host", urlsplit(job.webhook.url).netloc), ("key", job.created_by or ""))
        if any(self._busy[share] >= most for share, most in zip(shares, (_OF_A_HOST, _OF_A_KEY), strict=True)):
            await self._redis.zadd(routing.WEBHOOKS, {job_id: time.time() + _ASIDE_S}, xx=True)
            return
        self._busy.update(shares)
        try:
            error, final = await self._send(job)
        finally:
            self._busy.subtract(shares)
            self._busy += Counter()  # what is nobody's any more is forgotten
        attempts = job.webhook.attempts + 1
        final = final or attempts > len(RETRIES_S)

        def note(record: JobRecord) -> None:
            delivery = record.job.webhook
            if delivery is None:
                return
            delivery.attempts, delivery.last_error = attempts, error
            if error is None:
                delivery.status, delivery.delivered_at = "delivered", datetime.now(UTC)
            elif final:
                delivery.status = "failed"

        try:
            await self._in_thread(self._jobs.update, job_id, note)
        except UnknownJob:
            final = True
        if error is None or final:
            await self._redis.zrem(routing.WEBHOOKS, job_id)
            log.info("job %s: webhook %s after %d attempts", job_id, "given up" if error else "delivered", attempts)
        else:
            await self._redis.zadd(routing.WEBHOOKS, {job_id: time.time() + RETRIES_S[attempts - 1]}, xx=True)
            log.info("job %s: webhook not delivered (%s), attempt %d", job_id, error, attempts)

    async def _send(self, job: Job) -> tuple[str | None, bool]:
        """Why it was not taken, None where it was; and whether trying again makes no sense."""
        assert job.webhook is not None
        moment = datetime.now(UTC)
        shown = job.model_dump(mode="json", exclude={"webhook"})
        body = json.dumps({"type": f"train_job.{job.status}", "timestamp": shown["finished_at"], "data": shown})
        name = f"msg_{job.id}"
        headers = {
            "content-type": "application/json",
            "user-agent": "pose-prior-learner",
            "webhook-id": name,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(self._secret()).sign(name, moment, body),
        }
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await self._post(job.webhook.url, body.encode(), headers)
        except BadWebhook as error:
            # its host may get another address; which one it has is for those only who run the server, or whoever may
            # start jobs could ask for every name of their network
            log.warning("job %s: %s", job.id, error.detail)
            return "its host leads to a private address; webhooks go to public ones only", False
        except TimeoutError:
            return f"no answer within {_TIMEOUT_S:g} s", False
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}", False
        if 200 <= status < 300:
            return None, True
        return f"it answered {status}", status == _GONE

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send to the very address that was checked: a name may lead elsewhere a moment later."""
        target = httpx.URL(check_webhook_url(url, private=self._private))
        default = 443 if target.scheme == "https" else 80
        found = await asyncio.get_running_loop().getaddrinfo(
            target.host, target.port or default, type=socket.SOCK_STREAM
        )
        address = found[0][4][0]
        if not self._private:
            for entry in found:
                check_address(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]), target.host)
        host = target.netloc.decode("ascii")
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S, follow_redirects=False) as client:
            request = client.build_request(
                "POST",
                target.copy_with(host=str(address)),
                content=body,
                headers={**headers, "host": host},
                extensions={"sni_hostname": target.host},
            )
            answer = await client.send(request, stream=True)  # what it says beside its status is not read
            await answer.aclose()
            return answer.status_code

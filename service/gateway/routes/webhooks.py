"""/webhooks/secret: the secret by which a receiver verifies a webhook."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.gateway.gateway import gateway_of
from service.http.problems import responses

router = APIRouter(tags=["training"])


class WebhookSecret(BaseModel):
    """The secret that signs webhooks."""

    secret: str = Field(
        description="whsec_ and base64, as the libraries of Standard Webhooks take it",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
    )


@router.get(
    "/webhooks/secret",
    summary="The secret of webhooks",
    response_model=WebhookSecret,
    responses=responses(500),
)
async def get_webhook_secret(request: Request) -> WebhookSecret:
    """Return the secret that signs the webhooks of `POST /train-jobs` (`webhook_url`) by HMAC-SHA256.

    The header `webhook-signature` is `v1,` and the base64 of the HMAC of `webhook-id`, `webhook-timestamp` and the body
    joined by dots (https://www.standardwebhooks.com, whose libraries verify it). The server creates the secret at its
    first start, unless `PPL_WEBHOOK_SECRET` sets it.
    """
    gateway = gateway_of(request)
    return WebhookSecret(secret=await gateway.threads.io(gateway.webhook_secret))

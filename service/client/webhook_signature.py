"""Verify the webhooks that the server sends.

from service.client.webhook_signature import verify_webhook

event = verify_webhook(request.headers, await request.body(), secret)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standardwebhooks.exceptions import WebhookVerificationError
from standardwebhooks.webhooks import Webhook

from .errors import InputError


def verify_webhook(headers: Mapping[str, str], body: bytes | str, secret: str) -> dict[str, Any]:
    """Return a webhook's content if its signature is right and its time within five minutes of now.

    Args:
        headers: the request's headers, including ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.
        body: the body as received, not parsed.
        secret: ``whsec_…``, as GET /webhooks/secret and ``ppl webhooks secret`` return it.

    Raises:
        InputError: the webhook is forged or too old; answer it with 4xx and ignore it.
    """
    try:
        event: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:
        raise InputError(f"the webhook is not from this server or too old: {error}") from error
    return event

"""For those who receive webhooks: whether one is really from the platform.

from service.webhook_signature import verify_webhook

event = verify_webhook(request.headers, await request.body(), secret)  # of GET /webhooks/secret
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standardwebhooks.exceptions import WebhookVerificationError
from standardwebhooks.webhooks import Webhook

from .errors import InputError


def verify_webhook(headers: Mapping[str, str], body: bytes | str, secret: str) -> dict[str, Any]:
    """What a webhook says, once its signature is found right and its time within five minutes of now.

    Args:
        headers: of the request; ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` count.
        body: as it came, not parsed.
        secret: ``whsec_…``, as ``ppl webhooks secret`` shows it.

    Raises:
        InputError: it is not from there, or too old; answer it with 4xx and do nothing else.
    """
    try:
        event: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:
        raise InputError(f"this webhook is not the platform's: {error}") from error
    return event

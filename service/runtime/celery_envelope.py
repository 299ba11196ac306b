"""Batches as Celery messages, filled into an envelope that Celery and kombu made once.

Celery's own way to send one makes all of it anew, borrows a connection and declares the queue each time: three times
the work of a batch's one round trip to Redis. What a message looks like stays Celery's business: the envelope is what
its sender puts into kombu's transport in memory, which shares all but the last step with that of Redis.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from celery import Celery

from service.contract import routing


class Envelope:
    """Makes the messages of one task with one argument."""

    def __init__(self, kind: routing.Kind) -> None:
        message = _sample(kind)
        (_, keywords, self._embedded) = json.loads(base64.b64decode(message["body"]))
        assert not keywords
        self._message = message

    def fill(self, argument: Any, task_id: str) -> str:
        """The message of a task, as it lies in the queue's list."""
        body = json.dumps([[argument], {}, self._embedded]).encode()
        message = self._message
        return json.dumps(
            {
                **message,
                "body": base64.b64encode(body).decode(),
                "headers": {**message["headers"], "id": task_id, "root_id": task_id},
                "properties": {
                    **message["properties"],
                    "correlation_id": task_id,
                    "delivery_tag": str(uuid.uuid4()),
                },
            }
        )


def send(app: Any, kind: routing.Kind, argument: Any, task_id: str, **options: Any) -> None:
    """Have Celery send a task of one argument."""
    app.send_task(
        routing.task_name(kind),
        args=(argument,),
        task_id=task_id,
        queue=routing.queue_name(kind),
        # what monitors would show of it, which takes a fifth of the time for sending
        argsrepr="",
        kwargsrepr="",
        **options,
    )


def _sample(kind: routing.Kind) -> dict[str, Any]:
    app: Any = Celery(f"ppl-{kind}-envelope", set_as_current=False)
    app.conf.update({**routing.celery_options(kind, "memory://"), "broker_transport_options": {}})
    try:
        with app.connection_for_write() as connection, connection.channel() as channel:
            send(app, kind, None, "", connection=connection)
            message: dict[str, Any] = channel._get(routing.queue_name(kind))
            return message
    finally:
        app.close()

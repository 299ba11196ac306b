"""Messages that are filled in are those that Celery sends."""

from __future__ import annotations

import base64
import json
import time

import pytest
from celery import Celery

from service.contract import routing
from service.contract.messages import BatchRequest
from service.runtime.worker_queue import CeleryEnvelope, Sender, send_task

REQUEST = BatchRequest(
    batch_id="a" * 32,
    category="dog",
    version="20260101T000000-abc123",
    count=2,
    side=16,
    refine_steps=1,
    reply_to=routing.reply_key("here"),
    timeout_s=30.0,
    deadline=1e9,
)


@pytest.fixture
def sender(redis_url, redis_client):
    made = Sender(redis_url)
    yield made
    made.close()


def waiting(redis_client) -> list[dict]:
    found = [json.loads(item) for item in redis_client.lrange(routing.queue_key("inference"), 0, -1)]
    for message in found:
        message["body"] = json.loads(base64.b64decode(message["body"]))
    return found


def test_message_is_the_one_that_celery_sends(sender, redis_url, redis_client):
    app = Celery("theirs", set_as_current=False)
    app.conf.update(routing.celery_options("inference", redis_url))
    send_task(app, "inference", REQUEST.model_dump(), REQUEST.batch_id)
    app.close()
    sender.send_batch(REQUEST, None)
    ours, theirs = waiting(redis_client)
    assert ours["body"][0] == [REQUEST.model_dump()]
    assert ours["properties"].pop("delivery_tag") != theirs["properties"].pop("delivery_tag")
    for message in (ours, theirs):  # who sent it, and where results would go if there were any
        message["headers"].pop("origin")
        message["properties"].pop("reply_to")
    assert ours == theirs
    # nothing else is left in Redis by either than what binds the queue to its exchange, which a direct one needs not
    assert {key for key in redis_client.scan_iter() if b"_kombu" not in key} == {
        routing.queue_key("inference").encode()
    }


def test_less_urgent_batches_lie_where_kombu_takes_them_last(sender, redis_url, redis_client):
    app = Celery("theirs", set_as_current=False)
    app.conf.update(routing.celery_options("inference", redis_url))
    for priority in routing.PRIORITIES[::-1]:
        sender.send_batch(REQUEST.model_copy(update={"priority": priority}), None)
    with app.connection_for_read() as connection, connection.channel() as channel:
        taken = []
        channel.basic_consume("inference", True, taken.append, "tag")
        for _ in routing.PRIORITIES:
            connection.drain_events(timeout=5)
    app.close()
    assert [message.properties["priority"] for message in taken] == [*routing.PRIORITIES]


def test_each_message_has_a_tag_of_its_own():
    envelope = CeleryEnvelope("inference")
    made = [json.loads(envelope.fill({"n": n}, str(n))) for n in range(3)]
    assert len({message["properties"]["delivery_tag"] for message in made}) == 3
    assert [message["headers"]["id"] for message in made] == ["0", "1", "2"]


def test_pixels_lie_there_with_their_message_and_expire(sender, redis_client):
    sender.send_batch(REQUEST, b"pixels")
    key = routing.pixels_key(REQUEST.batch_id)
    assert redis_client.get(key) == b"pixels"
    assert 29 < redis_client.pttl(key) / 1000 <= 30, "they are the batch's deadline"
    sender.send_batch(REQUEST, None)  # once more: the pixels are left alone
    assert redis_client.get(key) == b"pixels"
    assert len(waiting(redis_client)) == 2


def test_training_is_sent_by_celery(sender, redis_client):
    sender.send_training("0123456789")
    (message,) = redis_client.lrange(routing.queue_key("training"), 0, -1)
    assert json.loads(message)["headers"]["id"] == "0123456789"


def test_envelope_is_made_soon():
    began = time.thread_time()
    CeleryEnvelope("inference")
    assert time.thread_time() - began < 1

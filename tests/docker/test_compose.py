"""`docker compose up` with real containers: training, estimates, metrics, restarts. Takes minutes."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import httpx
import pytest

from .project import Stack, drawn_archive, drawn_figure, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]

SETTINGS = {"preset": "compact", "steps": "6", "batch_size": "8", "base_width": "8", "token_dim": "16"}


def _job(stack: Stack, job_id: str) -> dict[str, Any]:
    return stack.get(f"/train-jobs/{job_id}").raise_for_status().json()  # type: ignore[no-any-return]


def _estimate(stack: Stack) -> dict[str, Any]:
    files = [("images", ("a.jpg", drawn_figure(3), "image/jpeg")), ("images", ("b.jpg", drawn_figure(7), "image/jpeg"))]
    answer = stack.post("/estimate", data={"category": "figures"}, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def _containers(stack: Stack, service: str) -> tuple[str, int]:
    container = stack.compose("ps", "--quiet", service).strip()
    count = subprocess.run(
        ["docker", "inspect", "--format", "{{.RestartCount}}", container],
        env=stack.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return container, int(count)


@pytest.fixture(scope="module")
def job(stack: Stack) -> dict[str, Any]:
    """A small prior, trained through the API."""
    files = {"archive": ("figures.zip", drawn_archive(24), "application/zip")}
    answer = stack.post("/train-jobs", data={"category": "figures", **SETTINGS}, files=files)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    ended = ("succeeded", "failed", "cancelled")
    wait_for(lambda: _job(stack, job_id)["status"] in ended, "the training to end", timeout_s=600)
    return _job(stack, job_id)


def test_training_and_estimating_work_over_http(stack: Stack, job: dict[str, Any]) -> None:
    assert job["status"] == "succeeded", job
    answer = _estimate(stack)
    assert answer["version"] == job["version"]
    assert [image["index"] for image in answer["images"]] == [0, 1]
    assert all(len(image["keypoints"]) == 16 for image in answer["images"])


def test_prometheus_sees_gateway_and_workers_and_their_counters_move(stack: Stack, job: dict[str, Any]) -> None:
    services = {"gateway", "worker-inference", "worker-training"}

    def up() -> set[str]:
        return {row["metric"]["job"] for row in stack.query("up") if row["value"][1] == "1"}

    wait_for(lambda: up() == services, "all targets to be up")

    def total(name: str, service: str) -> float:
        rows = stack.query(f'sum({name}{{job="{service}"}})')
        return float(rows[0]["value"][1]) if rows else 0.0

    counters = (("ppl_http_requests_total", "gateway"), ("ppl_inference_images_total", "worker-inference"))
    before = {name: total(name, service) for name, service in counters}
    _estimate(stack)
    for name, service in counters:
        wait_for(lambda n=name, s=service: total(n, s) > before[n], f"{name} to move")  # type: ignore[misc]
    wait_for(lambda: total("ppl_training_steps_total", "worker-training") >= 6, "the training's steps to be scraped")


def test_services_run_without_rights_and_the_gateway_without_torch(stack: Stack) -> None:
    for service in ("redis", "gateway", "worker-inference", "worker-training"):
        assert stack.compose("exec", "-T", service, "id", "-u").strip() == "10001"
    torch = "import importlib.util as u; print(u.find_spec('torch') is None)"
    assert stack.compose("exec", "-T", "gateway", "python", "-c", torch).strip() == "True"


def test_api_wants_a_key_and_the_gateway_makes_more(stack: Stack) -> None:
    def status(headers: dict[str, str]) -> int:
        return httpx.get(f"{stack.api}/priors", timeout=30, trust_env=False, headers=headers).status_code

    assert (status({}), status(stack.key())) == (401, 200)
    made = json.loads(stack.compose("exec", "-T", "gateway", "ppl", "keys", "create", "test", "--json"))
    assert status({"Authorization": f"Bearer {made['key']}"}) == 200
    stack.compose("exec", "-T", "gateway", "ppl", "keys", "revoke", made["id"])
    wait_for(lambda: status({"Authorization": f"Bearer {made['key']}"}) == 401, "the revoked key to open nothing")


def test_redis_wants_its_password_and_evicts_nothing(stack: Stack) -> None:
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "ping", check=False)
    known = "REDISCLI_AUTH=$(cat /run/ppl/redis-password) redis-cli config get maxmemory-policy appendonly"
    answer = stack.compose("exec", "-T", "redis", "sh", "-c", known).split()
    options = dict(zip(answer[::2], answer[1::2], strict=False))
    assert options["maxmemory-policy"] == "noeviction"
    assert options["appendonly"] == "yes"


@pytest.mark.parametrize("service", ["worker-inference", "worker-training"])
def test_a_killed_worker_comes_back(stack: Stack, job: dict[str, Any], service: str) -> None:
    container, before = _containers(stack, service)
    # process 1 is the container's small init; it ends with the worker below it
    kill = "import os, signal; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), signal.SIGKILL)"
    stack.compose("exec", "-T", service, "python", "-c", kill, check=False)
    wait_for(lambda: _containers(stack, service) == (container, before + 1), f"{service} to be restarted")
    assert len(_estimate(stack)["images"]) == 2


def test_job_and_version_outlive_down_and_up(stack: Stack, job: dict[str, Any]) -> None:
    stack.compose("down")
    stack.up()
    assert _job(stack, job["id"]) == job
    assert stack.get("/priors/figures").raise_for_status().json()["version"] == job["version"]
    assert _estimate(stack)["version"] == job["version"]

"""`docker compose up` with real containers: training, estimates, metrics, restarts. Takes minutes."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from .project import DASHBOARD, Stack, drawn_archive, drawn_figure, missing_data, unhealthy_rules, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]

SETTINGS = {"preset": "compact", "steps": "6", "batch_size": "8", "base_width": "8", "token_dim": "16"}
ENDED = ("succeeded", "failed", "cancelled")
TRAINED = {"category": "figures", "activate": "always", **SETTINGS}


def _job(stack: Stack, job_id: str) -> dict[str, Any]:
    return stack.get(f"/train-jobs/{job_id}").raise_for_status().json()  # type: ignore[no-any-return]


def _estimate(stack: Stack) -> dict[str, Any]:
    files = [("images", ("a.jpg", drawn_figure(3), "image/jpeg")), ("images", ("b.jpg", drawn_figure(7), "image/jpeg"))]
    answer = stack.post("/estimate", data={"category": "figures"}, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def job(stack: Stack) -> dict[str, Any]:
    """A small prior, trained through the API."""
    files = {"archive": ("figures.zip", drawn_archive(24), "application/zip")}
    answer = stack.post("/train-jobs", data=TRAINED, files=files)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    wait_for(lambda: _job(stack, job_id)["status"] in ENDED, "the training to end", timeout_s=600)
    return _job(stack, job_id)


def test_training_and_estimating_work_over_http(stack: Stack, job: dict[str, Any]) -> None:
    assert job["status"] == "succeeded", job
    answer = _estimate(stack)
    assert answer["version"] == job["version"]
    assert [image["index"] for image in answer["images"]] == [0, 1]
    assert all(len(image["keypoints"]) == 16 for image in answer["images"])


def test_prometheus_sees_gateway_and_workers_and_their_counters_move(stack: Stack, job: dict[str, Any]) -> None:
    began = time.time() - 120
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
    # losses are shown only while a job runs, longer than a scrape
    files = {"archive": ("figures.zip", drawn_archive(24), "application/zip")}
    answer = stack.post("/train-jobs", data={**TRAINED, "category": "shown", "steps": "400"}, files=files)
    shown = answer.raise_for_status().json()["id"]
    wait_for(lambda: _job(stack, shown)["status"] in ENDED, "the training to end", timeout_s=600)
    for _ in range(30):
        _estimate(stack)
    wait_for(lambda: missing_data(stack.prometheus, began, "20s") == [], "the dashboard's queries to have data", 60)
    assert unhealthy_rules(stack.prometheus) == []
    firing = {row["metric"]["alertname"] for row in stack.query('ALERTS{alertstate="firing", severity="critical"}')}
    assert firing == set()


def test_grafana_shows_the_dashboard_with_data(stack: Stack, job: dict[str, Any]) -> None:
    if reason := stack.missing_grafana():
        pytest.skip(reason)

    def get(path: str) -> Any:
        return httpx.get(stack.grafana + path, timeout=30, trust_env=False).raise_for_status().json()

    wait_for(lambda: get("/api/health")["database"] == "ok", "Grafana to be ready")
    shown = get("/api/dashboards/uid/ppl")["dashboard"]
    assert [panel["title"] for panel in shown["panels"]] == [panel["title"] for panel in DASHBOARD["panels"]]
    query = {"refId": "A", "datasource": {"uid": "prometheus"}, "expr": "up", "instant": True}
    asked = {"queries": [query], "from": "now-5m", "to": "now"}
    answer = httpx.post(f"{stack.grafana}/api/ds/query", json=asked, timeout=30, trust_env=False).raise_for_status()
    assert answer.json()["results"]["A"]["frames"]


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


@pytest.mark.parametrize("service", ["redis", "gateway", "worker-inference", "worker-training"])
def test_only_volumes_and_tmp_can_be_written(stack: Stack, service: str) -> None:
    try_all = "for f in / /opt /opt/ppl /etc /tmp; do touch $f/probe 2>/dev/null && echo $f; done; rm -f /tmp/probe"
    assert stack.compose("exec", "-T", service, "sh", "-c", try_all, check=False).split() == ["/tmp"]
    (container,) = stack.containers(service)
    (found,) = json.loads(stack.run("inspect", container))
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["CapDrop"] == ["ALL"]


def test_sleap_files_are_written_by_the_gateway(stack: Stack, job: dict[str, Any]) -> None:
    files = [("images", ("a.jpg", drawn_figure(3), "image/jpeg"))]
    answer = stack.post("/estimate?format=slp", data={"category": "figures"}, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"\x89HDF")


class Estimating(threading.Thread):
    """Estimate one picture after another at all gateways in turn; a connection that breaks is tried at the next one.

    Attributes:
        outcomes: "right", a status, or "no connection" where no gateway answered.
    """

    def __init__(self, addresses: list[str], key: dict[str, str], version: str) -> None:
        super().__init__(daemon=True)
        self.addresses, self.key, self.version = addresses, key, version
        self.outcomes: list[str] = []
        self.longest_gap_s = 0.0
        self.stop = threading.Event()
        self.expected = self.ask(addresses[0])
        assert self.expected[0] == 200

    def ask(self, address: str) -> tuple[int, Any]:
        files = [("images", ("a.jpg", drawn_figure(3), "image/jpeg"))]
        fields = {"category": "figures", "version": self.version}
        answer = httpx.post(
            f"{address}/estimate", data=fields, files=files, headers=self.key, timeout=60, trust_env=False
        )
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json"
            return answer.status_code, answer.json()["code"]
        return 200, [value for point in answer.json()["images"][0]["keypoints"] for value in (point["x"], point["y"])]

    def run(self) -> None:
        right_at = time.monotonic()
        for turn in itertools.count():
            if self.stop.wait(0.05):
                return
            outcome = "no connection"
            for tried in range(len(self.addresses)):
                try:
                    status, answer = self.ask(self.addresses[(turn + tried) % len(self.addresses)])
                except httpx.TransportError:
                    continue
                outcome = f"{status} {answer}" if status != 200 else "right"
                if status == 200 and answer != pytest.approx(self.expected[1], abs=0.05):
                    outcome = "wrong"
                break
            self.outcomes.append(outcome)
            if outcome == "right":
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - right_at)
                right_at = time.monotonic()


def test_each_container_is_killed_in_turn_while_a_client_estimates(stack: Stack, job: dict[str, Any]) -> None:
    stack.up("--no-recreate", "--scale", "worker-inference=2", "--scale", "gateway=2")
    key, addresses = stack.key(), stack.apis()
    assert len(set(addresses)) == 2
    wait_for(lambda: all(httpx.get(f"{address}/readyz", trust_env=False).is_success for address in addresses), "both")
    files = {"archive": ("figures.zip", drawn_archive(24), "application/zip")}
    fields = {**TRAINED, "category": "killed", "steps": "2000", "checkpoint_every": "20"}
    training = stack.post("/train-jobs", data=fields, files=files).raise_for_status().json()["id"]
    wait_for(lambda: _job(stack, training)["progress"]["step"] >= 40, "the training's first checkpoints", 300)
    client = Estimating(addresses, key, job["version"])
    client.start()
    try:
        for service in ("worker-inference", "gateway", "worker-training", "redis"):
            for container in stack.containers(service):
                before, client.longest_gap_s, began = len(client.outcomes), 0.0, time.monotonic()
                stack.kill(container)
                healthy_s = time.monotonic() - began
                wait_for(lambda n=len(client.outcomes): "right" in client.outcomes[n:], "a right answer", 60)  # type: ignore[misc]
                seen = Counter(client.outcomes[before:])
                print(
                    f"{service}: {dict(seen)}, longest gap {client.longest_gap_s:.1f} s, healthy in {healthy_s:.1f} s"
                )
                assert "wrong" not in seen
                if service == "redis":
                    assert all(outcome.startswith(("right", "503", "504")) for outcome in seen)
                else:
                    assert set(seen) == {"right"}
    finally:
        client.stop.set()
        client.join(90)
    wait_for(lambda: _job(stack, training)["status"] in ENDED, "the killed training to end", timeout_s=600)
    ended = _job(stack, training)
    assert ended["status"] == "succeeded", ended
    versions = stack.get("/priors/killed/versions").raise_for_status().json()["items"]
    assert [version["job_id"] for version in versions] == [training], "published once"


def test_nothing_is_lost_by_down_and_up(stack: Stack, job: dict[str, Any]) -> None:
    archive = {"archive": ("figures.zip", drawn_archive(12), "application/zip")}
    dataset = stack.post("/datasets", data={"name": "kept"}, files=archive).raise_for_status().json()["id"]
    wait_for(lambda: stack.get(f"/datasets/{dataset}").json()["status"] != "inspecting", "the dataset's inspection")
    made = json.loads(stack.compose("exec", "-T", "gateway", "ppl", "keys", "create", "kept", "--json"))
    paths = [f"/train-jobs/{job['id']}", "/train-jobs", "/priors", "/priors/figures", "/priors/figures/versions"]
    paths += [f"/datasets/{dataset}", "/datasets"]
    before = {path: stack.get(path).raise_for_status().json() for path in paths}
    poses = _estimate(stack)["images"]
    stack.compose("down")
    assert stack.containers("gateway") == []
    stack.up()
    assert {path: stack.get(path).json() for path in paths} == before
    again = _estimate(stack)
    assert again["version"] == job["version"]
    for one, other in zip(poses, again["images"], strict=True):
        for ours, theirs in zip(one["keypoints"], other["keypoints"], strict=True):
            assert (ours["x"], ours["y"]) == pytest.approx((theirs["x"], theirs["y"]), abs=0.05)
    answer = httpx.get(f"{stack.api}/priors", trust_env=False, headers={"Authorization": f"Bearer {made['key']}"})
    assert answer.status_code == 200

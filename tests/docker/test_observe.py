"""Dashboard and alerts: their metrics exist, the files are valid, and every query has data behind it.

Prometheus and promtool are Debian's package `prometheus`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.stack_process import TINY, StackProcess, archive, drawing
from worker.metrics import InferenceMetrics, TrainingMetrics

from .project import (
    ALERTS,
    DASHBOARD,
    ROOT,
    dashboard_queries,
    free_port,
    missing_data,
    missing_program,
    panels_of,
    rules_of,
    unhealthy_rules,
    wait_for,
)

OBSERVE = ROOT / "docker" / "observe"
QUERIES = [*dashboard_queries(), *((rule["alert"], rule["expr"]) for rule in rules_of(ALERTS))]


def known_metrics() -> set[str]:
    """Return the names of the series that docs/metrics.md lists."""
    rows = re.findall(r"^\| `(ppl_\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {name + ending for name, kind in rows for ending in endings[kind]}


def test_metrics_of_dashboard_and_alerts_exist() -> None:
    assert len(QUERIES) > 40
    for title, query in QUERIES:
        names = re.findall(r"\b(?:ppl_\w+|up)\b", query)
        assert names, title
        assert set(names) <= known_metrics() | {"up"}, title


def test_dashboard_shows_every_subject_once() -> None:
    text = " ".join(query for _, query in dashboard_queries())
    for subject in ("http_requests_total", "http_request_seconds", "batch_pictures", "queue_pictures", "training_loss"):
        assert f"ppl_{subject}" in text
    for subject in ("training_steps_per_second", "training_quality", "workers", "jobs", "redis_up"):
        assert f"ppl_{subject}" in text
    cells = [
        (x, y)
        for panel in panels_of(DASHBOARD)
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "no panel covers another"
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in panels_of(DASHBOARD)]
    assert len(ids) == len(set(ids))


def test_dashboard_follows_the_schema_of_grafana() -> None:
    """What Grafana's own types do not know is lost when they read and write it."""
    register_default_plugins()
    wrong = {**DASHBOARD, "panels": [{**DASHBOARD["panels"][0], "tragets": []}]}
    assert unknown_fields(DASHBOARD, reread(DASHBOARD)) == []
    assert unknown_fields(wrong, reread(wrong)) == [".panels[0].tragets"]


def reread(dashboard: dict[str, Any]) -> Any:
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def unknown_fields(ours: Any, theirs: Any, place: str = "") -> list[str]:
    if isinstance(ours, dict):
        theirs = theirs if isinstance(theirs, dict) else {}
        lost = [f"{place}.{name}" for name in ours if name not in theirs]
        return lost + [
            at for name in ours if name in theirs for at in unknown_fields(ours[name], theirs[name], f"{place}.{name}")
        ]
    if isinstance(ours, list):
        assert len(ours) == len(theirs), place
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [at for index, (one, other) in pairs for at in unknown_fields(one, other, f"{place}[{index}]")]
    return [] if ours == theirs else [place]


def test_grafana_is_given_its_data_source_and_the_folder_of_the_dashboard() -> None:
    (source,) = yaml.safe_load((OBSERVE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    used = {json.dumps(target["datasource"]) for panel in panels_of(DASHBOARD) for target in panel.get("targets", [])}
    assert used == {json.dumps({"type": source["type"], "uid": source["uid"]})}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    targets = {target: source for source, target in mounts.items()}
    (provider,) = yaml.safe_load((OBSERVE / "grafana/provisioning/dashboards/ppl.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert (ROOT / targets[folder] / "ppl.json").is_file()
    assert compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/ppl.json"


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules_of(ALERTS):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "action"}
    tested = (Path(__file__).parent / "alerts.test.yml").read_text()
    assert {rule["alert"] for rule in rules_of(ALERTS)} <= set(re.findall(r'alertname="(\w+)"', tested))


def test_counters_of_rare_things_begin_at_zero() -> None:
    """Prometheus does not see the first increase of a series that appears with a 1."""
    text = InferenceMetrics().text() + TrainingMetrics().text()
    for series in (
        'ppl_training_jobs_total{outcome="failed"}',
        'ppl_training_jobs_total{outcome="succeeded"}',
        'ppl_training_versions_total{verdict="failed"}',
        'ppl_training_versions_total{verdict="not measured"}',
        'ppl_preparation_pictures_total{outcome="skipped"}',
        'ppl_inference_batches_total{outcome="ok"}',
    ):
        assert f"{series} 0.0\n" in text


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "docker/observe/prometheus.yml"],
        ["check", "rules", "docker/observe/alerts.yml"],
        ["test", "rules", "tests/docker/alerts.test.yml"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_finds_no_fault(command: list[str]) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    done = subprocess.run([promtool, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StackProcess, str]]:
    """`ppl up` and a Prometheus with the rules and the jobs of the compose file, which scrapes it each second."""
    if reason := missing_program("prometheus"):
        pytest.skip(reason)
    workers = free_port()
    monkeypatch.setenv("PPL_METRICS_INCLUDE_WORKERS", "false")
    monkeypatch.setenv("PPL_WORKER_METRICS_PORT", str(workers))
    stack = StackProcess(tmp_path / "data")
    process = None
    try:
        gateway = stack.url.removeprefix("http://")
        targets = {
            "gateway": gateway,
            "worker-inference": f"127.0.0.1:{workers}",
            "worker-training": f"127.0.0.1:{workers + 1}",
        }
        config = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(OBSERVE / "alerts.yml")]
        for job in config["scrape_configs"]:  # names of containers
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
        assert not targets
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        command = [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/samples",
            f"--web.listen-address={address}",
        ]
        with (tmp_path / "prometheus.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: httpx.get(f"http://{address}/-/ready", trust_env=False).is_success, "Prometheus to be ready")
        yield stack, f"http://{address}"
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        stack.end()


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_every_query_has_data_behind_it(prometheus: tuple[StackProcess, str], tmp_path: Path) -> None:
    stack, url = prometheus
    began = time.time()
    with stack.client() as client:
        pictures = archive(tmp_path / "crosses.zip")
        job = client.train("crosses", pictures, "compact", {**TINY, "steps": 300}, activate="always")
        client.wait(job.id, timeout_s=300)
        for index in range(40):
            client.estimate("crosses", [drawing(index)])
            time.sleep(0.2)
    wait_for(lambda: missing_data(url, began, "10s") == [], "every query of the dashboard to have data", timeout_s=30)
    wait_for(lambda: unhealthy_rules(url) == [], "every alert to be evaluated", timeout_s=30)
    print(
        f"{len(dashboard_queries())} queries of the dashboard had data, {len(rules_of(ALERTS))} alerts were evaluated"
    )

"""What the tests ask of a compose project and of Prometheus, and the pictures that they send."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker/observe/grafana/dashboards/ppl.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "docker/observe/alerts.yml").read_text())


SERVICES = ("prepare", "redis", "gateway", "worker-inference", "worker-training", "prometheus", "grafana")


@dataclass(frozen=True)
class Stack:
    """One running compose project."""

    environment: dict[str, str]
    prometheus: str
    grafana: str

    def compose(self, *words: str, check: bool = True, timeout_s: float = 300) -> str:
        """Run `docker compose` and return its standard output. Raise AssertionError with all output if it fails."""
        return self.run("compose", "--profile", "observe", *words, check=check, timeout_s=timeout_s)

    def run(self, *words: str, check: bool = True, timeout_s: float = 300) -> str:
        """Run `docker` and return its standard output."""
        done = subprocess.run(
            ["docker", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def up(self, *options: str) -> None:
        """Start everything and wait until all health checks pass; Grafana only if its image is to be had."""
        services = [name for name in SERVICES if name != "grafana" or self.missing_grafana() is None]
        self.compose("up", "--detach", "--wait", *options, *services, timeout_s=600)
        wait_for(lambda: self.get("/readyz").is_success, "the gateway to be ready")

    def images(self) -> dict[str, str]:
        """Return the image of each service."""
        configured = json.loads(self.compose("config", "--format", "json"))["services"]
        return {name: configured[name]["image"] for name in SERVICES}

    def missing_grafana(self) -> str | None:
        """Return why Grafana does not run, or None."""
        image = self.images()["grafana"]
        if self.run("image", "ls", "--quiet", image) or self.run("pull", "--quiet", image, check=False):
            return None
        return f"{image} is not here and cannot be pulled"

    def describe_images(self) -> str:
        """Return the images' sizes and layers, and which have not come from a registry."""
        lines = []
        for name in dict.fromkeys(self.images().values()):
            if not self.run("image", "ls", "--quiet", name):
                lines.append(f"{name}: not here")
                continue
            (image,) = json.loads(self.run("image", "inspect", name))
            history = self.run("history", "--format", "{{.Size}}", name).split("\n")
            layers = ", ".join(size for size in history if size.endswith(("kB", "MB", "GB")))
            source = "from a registry" if image["RepoDigests"] else "made here"
            lines.append(f"{name}: {image['Size'] / 1e6:.0f} MB ({layers}), {source}")
        return "\n".join(lines)

    @property
    def api(self) -> str:
        """The address of the first gateway."""
        return self.apis()[0]

    def apis(self) -> list[str]:
        """Return the addresses of all gateways that run."""
        found = []
        for container in self.containers("gateway"):
            ports = self.run("port", container, "8000", check=False).split()
            found += [f"http://{address}" for address in ports if address.startswith("127.")]
        return found

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def state(self, container: str) -> tuple[int, str]:
        """Return how often the engine restarted a container, and its health."""
        (found,) = json.loads(self.run("inspect", container))
        state = found["State"]
        return found["RestartCount"], state.get("Health", state)["Status"]

    def kill(self, container: str) -> None:
        """End the program of a container by SIGKILL, and wait until the engine has restarted it and it is healthy.

        `docker kill` would count as the user's wish, after which the engine does not restart it.
        """
        restarts, _ = self.state(container)
        # process 1 is the container's small init; it ends with the program below it
        self.run("exec", container, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)", check=False)
        wait_for(lambda: self.state(container) == (restarts + 1, "healthy"), f"{container} to be healthy again", 180)

    def get(self, path: str) -> httpx.Response:
        """Send a GET request to the API."""
        return httpx.get(self.api + path, timeout=30, trust_env=False, headers=self.key())

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a POST request to the API."""
        return httpx.post(self.api + path, timeout=60, trust_env=False, headers=self.key(), **arguments)

    def key(self) -> dict[str, str]:
        """The header with the key that the gateway made at its first start."""
        text = self.compose("exec", "-T", "gateway", "cat", "/data/first-api-key").strip()
        return {"Authorization": f"Bearer {text}"}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query of Prometheus."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, trust_env=False)
        return answer.raise_for_status().json()["data"]["result"]  # type: ignore[no-any-return]


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels with those of rows."""
    return [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]


def dashboard_queries() -> list[tuple[str, str]]:
    """Return the title of its panel and each query."""
    return [(panel["title"], target["expr"]) for panel in panels_of(DASHBOARD) for target in panel.get("targets", [])]


def rules_of(alerts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rules of all groups."""
    return [rule for group in alerts["groups"] for rule in group["rules"]]


def missing_data(prometheus: str, since: float, rate_interval: str) -> list[str]:
    """Return the dashboard's queries that had no finite value since a Unix time.

    Args:
        rate_interval: what Grafana puts in place of $__rate_interval, at least four scrapes.
    """
    missing = []
    for title, query in dashboard_queries():
        query = query.replace("$__rate_interval", rate_interval)
        wanted = {"query": query, "start": str(since), "end": str(time.time()), "step": "1"}
        answer = httpx.get(f"{prometheus}/api/v1/query_range", params=wanted, trust_env=False, timeout=30)
        rows = answer.raise_for_status().json()["data"]["result"]
        if not any(math.isfinite(float(value)) for row in rows for _, value in row["values"]):
            missing.append(f"{title}: {query}")
    return missing


def unhealthy_rules(prometheus: str) -> list[str]:
    """Return the alerts that Prometheus has not evaluated, or not without an error, and those missing."""
    answer = httpx.get(f"{prometheus}/api/v1/rules", trust_env=False).raise_for_status().json()
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    absent = {rule["alert"] for rule in rules_of(ALERTS)} - {rule["name"] for rule in rules}
    return [*absent, *(f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok")]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Poll until true; an unreachable server counts as false."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(1)


def drawn_figure(index: int, side: int = 64) -> bytes:
    """Return a JPEG of a stick figure whose limbs move with the index."""
    image = Image.new("RGB", (side, side), (210, 205, 190))
    draw = ImageDraw.Draw(image)
    swing = (index % 9 - 4) * 2
    x = side // 2 + index % 5 - 2
    draw.ellipse((x - 6, 8, x + 6, 20), fill=(150, 60, 40))
    draw.line((x, 20, x, 40), fill=(40, 60, 150), width=5)
    for sign in (-1, 1):
        draw.line((x, 24, x + sign * 14, 32 + sign * swing), fill=(40, 120, 60), width=4)
        draw.line((x, 40, x + sign * (8 + swing // 2), 60), fill=(90, 40, 120), width=4)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def drawn_archive(count: int) -> bytes:
    """Return a zip of stick figures."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            archive.writestr(f"figures/{index:03}.jpg", drawn_figure(index))
    return buffer.getvalue()


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def neighbouring_ports() -> tuple[int, int]:
    """Return two free ports of the loopback address that follow each other."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            if port < 65535 and probe.connect_ex(("127.0.0.1", port + 1)) != 0:
                return port, port + 1


def missing_program(name: str) -> str | None:
    """Return why a program is not tested with, or None."""
    if os.environ.get("PPL_TEST_DOCKER") != "1":
        return "takes minutes: set PPL_TEST_DOCKER=1 (make docker)"
    return f"the program {name} is not installed" if shutil.which(name) is None else None


def missing_engine() -> str | None:
    """Return why there is no engine to test with, or None."""
    if reason := missing_program("docker"):
        return reason
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
            return f"no Docker engine: `{' '.join(command)}` fails: {reason}"
    return None

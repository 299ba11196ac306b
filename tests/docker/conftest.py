"""A compose project of its own on a real engine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .project import Stack, free_port, missing_engine, neighbouring_ports


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The project built and up with the profile observe; removed with its volumes at the end, images kept."""
    if reason := missing_engine():
        pytest.skip(reason)
    first, last = neighbouring_ports()  # of two gateways
    prometheus, grafana = free_port(), free_port()
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"ppl-test-{os.getpid()}",
        "PPL_TAG": "test",
        "PPL_PUBLISH": f"127.0.0.1:{first}-{last}",
        "PROMETHEUS_PUBLISH": f"127.0.0.1:{prometheus}",
        "GRAFANA_PUBLISH": f"127.0.0.1:{grafana}",
    }
    running = Stack(environment, f"http://127.0.0.1:{prometheus}", f"http://127.0.0.1:{grafana}")
    try:
        running.compose("build", timeout_s=1500)
        running.up()
        print("\n" + running.describe_images())
        yield running
    finally:
        running.compose("down", "--volumes", "--remove-orphans", check=False)

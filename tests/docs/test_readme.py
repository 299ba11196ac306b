"""README and docs are right: every setting is in the table, every command is shown, links lead somewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command

from service.cli.main import app
from service.runtime.metrics import Metrics as GatewayMetrics
from service.runtime.settings import Settings
from worker.metrics import InferenceMetrics, TrainingMetrics
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SETTINGS = """# Settings

Environment variables, read at the start; `ppl up` passes them to all of its parts. (`PPL_URL` and `PPL_API_KEY` belong
to the command line and the client.) This table is generated: `PPL_WRITE_DOCS=1 pytest tests/docs`.

{table}

With `ppl up` the training worker takes the port after `PPL_WORKER_METRICS_PORT`.
"""

BY_CORES = {
    "decode_threads": "number of cores, 2 to 8",
    "inference_threads": "half of the cores",
    "training_threads": "number of cores",
}


def default_text(name: str, field: FieldInfo) -> str:
    if name in BY_CORES:
        return BY_CORES[name]
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes"):
        return f"{value} ({value / 2**30:g} GiB)" if value >= 2**30 else f"{value} ({value / 2**20:g} MiB)"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_rows() -> list[str]:
    fields = {**Settings.model_fields, **WorkerSettings.model_fields}
    return [
        f"| `PPL_{name.upper()}` | {default_text(name, field)} | {field.description} |"
        for name, field in fields.items()
    ]


def test_table_of_settings_is_that_of_the_classes() -> None:
    table = "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *settings_rows()])
    page = ROOT / "docs" / "settings.md"
    if os.environ.get("PPL_WRITE_DOCS"):
        page.write_text(SETTINGS.format(table=table))

    assert page.read_text() == SETTINGS.format(table=table), "run PPL_WRITE_DOCS=1 pytest tests/docs"


METRICS = """# Metrics

For Prometheus, at `GET /metrics` of the gateway: its own, and those of the workers with a label `worker`. Of several
gateways on one socket (`ppl up --gateways`) each returns those of all, with a label `gateway`. A worker also serves its
own at `PPL_WORKER_METRICS_PORT`. A counter's name ends in `_total`; a histogram has `_bucket`, `_sum` and
`_count`. This table is generated: `PPL_WRITE_DOCS=1 pytest tests/docs`.

{table}
"""


def metric_rows() -> list[str]:
    registries = {"gateway": GatewayMetrics().registry, "inference": InferenceMetrics(), "training": TrainingMetrics()}
    rows = ["| metric | kind | labels | part | meaning |", "| --- | --- | --- | --- | --- |"]
    for part, registry in registries.items():
        for collector in dict.fromkeys(registry._collector_to_names):
            family, labels = next(iter(collector.describe())), collector._labelnames
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{family.name}` | {family.type} | {shown} | {part} | {family.documentation} |")
    return rows


def test_table_of_metrics_is_that_of_the_classes() -> None:
    page, text = ROOT / "docs" / "metrics.md", METRICS.format(table="\n".join(metric_rows()))
    if os.environ.get("PPL_WRITE_DOCS"):
        page.write_text(text)

    assert text.count("`ppl_") > 30
    assert page.read_text() == text, "run PPL_WRITE_DOCS=1 pytest tests/docs"


def test_every_command_is_shown() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    text = "\n".join(PAGES.values())
    shown = set(re.findall(r"^ppl (\w+)", text, re.MULTILINE)) | set(re.findall(r"`ppl (\w+)", text))

    assert shown == commands


def test_every_setting_that_is_named_exists() -> None:
    known = {re.findall(r"PPL_\w+", row)[0] for row in settings_rows()} | {"PPL_URL", "PPL_API_KEY"}
    named = {name for text in PAGES.values() for name in re.findall(r"`(PPL_\w+)`", text)}

    assert named <= known


def test_links_lead_to_files_and_headings() -> None:
    for page, text in PAGES.items():
        for target, _, heading in (link.partition("#") for link in re.findall(r"\]\((?!http)([^)]+)\)", text)):
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
    assert (ROOT / "service/samples/NOTICE").exists()


def test_paths_that_are_named_exist() -> None:
    for page, text in PAGES.items():
        for path in re.findall(r"`((?:model|service|worker|benchmarks|tests|docker)/[\w/.-]*)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("package", ["torch"])
def test_pinned_versions_are_those_of_the_project(package: str) -> None:
    pinned = re.findall(rf'"({package}==[^"]+)"', (ROOT / "pyproject.toml").read_text())

    assert set(re.findall(rf"{package}==[0-9.]+", README)) == set(pinned)

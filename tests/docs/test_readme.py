"""The README says what is so: every setting is in its table, every command exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command

from service.cli.main import app
from service.runtime.settings import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()

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


def test_table_of_settings_is_complete_and_right() -> None:
    rows = settings_rows()
    table = "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])

    assert table in README, f"the table should read\n{table}"
    documented = set(re.findall(r"\| `(PPL_\w+)` \|", README))
    assert documented == {re.findall(r"PPL_\w+", row)[0] for row in rows}


def test_every_command_is_shown() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"^ppl (\w+)", README, re.MULTILINE)) | set(re.findall(r"`ppl (\w+)", README))

    assert shown == commands


def test_files_that_it_points_to_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    assert (ROOT / "service/samples/NOTICE").exists()


@pytest.mark.parametrize("package", ["torch"])
def test_pinned_versions_are_those_of_the_project(package: str) -> None:
    pinned = re.findall(rf'"({package}==[^"]+)"', (ROOT / "pyproject.toml").read_text())

    assert set(re.findall(rf"{package}==[0-9.]+", README)) == set(pinned)

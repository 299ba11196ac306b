"""The files of the images and of compose agree with pyproject.toml and the settings; no engine is needed."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from service.contract.settings import CommonSettings
from service.runtime.settings import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_requirements", ROOT / "docker" / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gateway_requirements_hold_no_torch(script: ModuleType) -> None:
    lines = script.requirements(PROJECT, [])
    assert lines == PROJECT["dependencies"]
    assert not any(line.startswith("torch") for line in lines)


def test_worker_requirements_add_the_extra(script: ModuleType) -> None:
    lines = script.requirements(PROJECT, ["worker"])
    assert lines == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["worker"]


def test_one_package_can_be_picked_with_its_pin(script: ModuleType) -> None:
    assert re.fullmatch(r"torch==[0-9.]+", *script.requirements(PROJECT, ["worker"], "torch"))


@pytest.mark.parametrize(("extras", "only"), [(["nonsense"], None), ([], "torch")])
def test_what_pyproject_does_not_have_ends_the_build(script: ModuleType, extras: list[str], only: str | None) -> None:
    with pytest.raises(SystemExit, match=r"pyproject\.toml"):
        script.requirements(PROJECT, extras, only)


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_dockerfile_suits_the_classic_builder_and_a_user_without_rights(name: str) -> None:
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"[^:]+:(?!latest$).+", base) for base in bases)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"RUN --|COPY --(chmod|chown|link)|<<[-~]?\w|^# syntax", text, re.MULTILINE)


@pytest.mark.parametrize(("settings", "service"), [(Settings, "gateway"), (WorkerSettings, "worker-inference")])
def test_every_setting_can_be_given_to_compose(settings: type[CommonSettings], service: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    common = text[text.index("x-common:") : text.index("x-worker:")]
    own = text[text.index(f"\n  {service}:\n") :]
    own = own[: re.search(r"\n\n  [a-z]", own).start()]  # type: ignore[union-attr]
    offered = set(re.findall(r"^ +(PPL_\w+):", common + own, re.MULTILINE))
    # the address of Redis is put together from its host and the password's file
    wanted = {f"PPL_{name.upper()}" for name in settings.model_fields} - {"PPL_REDIS_URL"}
    assert wanted <= offered
    assert "PPL_REDIS_PASSWORD_FILE" in offered


@pytest.mark.parametrize("path", sorted(ROOT.glob("docker-compose*.yml")) + sorted((ROOT / "docker").glob("*.y*ml")))
def test_no_key_stands_twice(path: Path) -> None:
    """Compose refuses such a file as a whole; YAML's own readers take the last."""

    def keys(node: yaml.Node) -> list[str]:
        if isinstance(node, yaml.SequenceNode):
            return [key for item in node.value for key in keys(item)]
        if not isinstance(node, yaml.MappingNode):
            return []
        own = [key.value for key, _ in node.value]
        twice = sorted({f"{key} (line {node.start_mark.line})" for key in own if own.count(key) > 1})
        return twice + [key for _, value in node.value for key in keys(value)]

    assert keys(yaml.compose(path.read_text(encoding="utf-8"))) == []

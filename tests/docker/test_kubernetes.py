"""The manifests for Kubernetes are valid and agree with each other and with the program; no cluster is needed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.contract.settings import CommonSettings
from service.runtime.metrics import Metrics
from service.runtime.settings import Settings
from worker.settings import WorkerSettings

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "kubernetes"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
PARTS = ("gateway", "worker-inference", "worker-training")


@cache
def documents(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"<<:|: [&*]\w", text), "kustomize does not keep anchors and merge keys"
    return list(yaml.safe_load_all(text))


def everything(kind: str) -> dict[str, dict[str, Any]]:
    found = [document for name in FILES for document in documents(name) if document["kind"] == kind]
    return {document["metadata"]["name"]: document for document in found}


def pods() -> dict[str, dict[str, Any]]:
    sets = {**everything("Deployment"), **everything("StatefulSet")}
    return {name: document["spec"]["template"]["spec"] for name, document in sets.items()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("release", ["1.33", "1.37"])
def test_manifests_follow_the_schemas_of_kubernetes(name: str, release: str) -> None:
    for document in documents(name):
        if not document["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(document, release, strict=True)


def test_validator_refuses_what_kubernetes_would() -> None:
    wrong = yaml.safe_load((FOLDER / "namespace.yaml").read_text())
    wrong["spec"] = {"finalisers": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_kustomization_lists_every_manifest_and_every_image() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == FILES
    used = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert {image["name"] for image in kustomization["images"]} == {image for image in used if ":" not in image}
    gpu = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    renamed = {image["newName"] for image in kustomization["images"]}
    assert {image["name"] for image in gpu["images"]} <= renamed
    for patch in gpu["patches"]:
        matched = [name for name in everything("Deployment") if re.fullmatch(patch["target"]["name"], name)]
        assert matched == ["worker-inference", "worker-training"]
        for operation in yaml.safe_load(patch["patch"]):
            assert operation["op"] == "add"
            for name in matched:
                place: Any = everything("Deployment")[name]
                for part in operation["path"].split("/")[1:-1]:
                    place = place[int(part)] if part.isdigit() else place[part]
                assert operation["path"].rpartition("/")[2].replace("~1", "/") not in place


@pytest.mark.parametrize("name", [*PARTS, "redis"])
def test_pods_have_no_rights_and_are_watched(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["startupProbe"]
        assert container["livenessProbe"]
        assert container["resources"]["requests"]
        assert "memory" in container["resources"]["limits"]
        volumes = {volume["name"] for volume in pod["volumes"]} | ({"data"} if name == "redis" else set())
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_settings_exist_and_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    data = everything("ConfigMap")["ppl-settings"]["data"]
    fields = {**Settings.model_fields, **WorkerSettings.model_fields}
    known = {f"PPL_{name.upper()}" for name in fields} | {"PPL_REDIS_HOST", "PPL_REDIS_PASSWORD_FILE"}
    assert {name for name in data if name.startswith("PPL_")} <= known
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    for settings in (Settings(), WorkerSettings()):
        assert isinstance(settings, CommonSettings)
        assert settings.store_url == data["PPL_STORE_URL"]


def test_parts_can_be_found_disrupted_and_scaled() -> None:
    labels = {
        name: document["spec"]["template"]["metadata"]["labels"]
        for name, document in {**everything("Deployment"), **everything("StatefulSet")}.items()
    }
    for name, document in {**everything("Deployment"), **everything("StatefulSet")}.items():
        assert document["spec"]["selector"]["matchLabels"] == labels[name]
    for name, document in everything("Service").items():
        assert document["spec"]["selector"] == labels[name]
    assert set(everything("PodDisruptionBudget")) == set(PARTS)
    for name, document in everything("PodDisruptionBudget").items():
        assert document["spec"]["selector"]["matchLabels"] == labels[name]
    metrics = {name for collector in Metrics().registry.collect() for name in (collector.name,)}
    scaled = everything("ScaledObject")
    assert set(scaled) == set(PARTS)
    for name, document in scaled.items():
        spec = document["spec"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert "replicas" not in everything("Deployment")[name]["spec"], "KEDA sets it"
        assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
            assert set(re.findall(r"ppl_\w+", trigger["metadata"]["query"])) <= metrics


def test_network_is_closed_but_for_what_the_parts_need() -> None:
    policies = {name: document["spec"] for name, document in everything("NetworkPolicy").items()}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = policies["redis"]["ingress"]
    (peer,) = rule["from"]
    assert sorted(peer["podSelector"]["matchExpressions"][0]["values"]) == sorted(PARTS)
    ports = {port["port"] for rule in policies["parts-egress"]["egress"] for port in rule["ports"]}
    assert ports == {53, 6379, 443}

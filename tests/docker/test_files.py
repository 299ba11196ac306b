"""The files of the images and of compose agree with pyproject.toml and the settings; no engine is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.contract.settings import CommonSettings
from service.runtime.settings import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


LOCKS = ROOT / "docker" / "locks"
EXTRAS = ("video", "heic", "interop", "store", "otel")


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock file by normal name; each has its hashes."""
    text = (LOCKS / f"{name}.lock").read_text(encoding="utf-8")
    assert "://" not in text, "no address of an index"
    assert not re.search(r"^-", text, re.MULTILINE), "no option"
    pins = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    return {name: version for name, version, _ in pins}


def excluded() -> set[str]:
    lines = (LOCKS / "excluded.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if not line.startswith("#")}


def required(lines: list[str], extras: frozenset[str] = frozenset()) -> dict[str, Requirement]:
    """Return what applies in the images: Python 3.11 on Linux."""
    images = {"python_version": "3.11", "python_full_version": "3.11.9", "platform_system": "Linux"}
    images |= {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"}
    found = {}
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if not marker or any(marker.evaluate({**images, "extra": extra}) for extra in extras | {""}):
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize(("image", "extras"), [("gateway", EXTRAS), ("worker", (*EXTRAS, "worker"))])
def test_locks_have_all_that_pyproject_pins_and_that_these_need(image: str, extras: tuple[str, ...]) -> None:
    pins = locked("gateway") | (locked("worker") if image == "worker" else {})
    optional = PROJECT["optional-dependencies"]
    waiting = required(PROJECT["dependencies"] + [line for extra in extras for line in optional[extra]])
    assert len(waiting) > 25
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, requirement = waiting.popitem()
        wanted = frozenset(requirement.extras)
        if name in excluded() or (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name != "torch":
            assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement}: make lock"
        with suppress(PackageNotFoundError):  # what only the images' platform needs is checked by name alone
            waiting |= required(metadata.requires(name) or [], wanted)
    assert not {"torch", *excluded()} & set(pins)
    assert (image == "worker") == any(name == "torch" for name, _ in seen)


def test_torch_is_pinned_apart_and_its_needs_are_those_of_its_release() -> None:
    (pin,) = PROJECT["optional-dependencies"]["worker"][:1]
    assert (LOCKS / "torch.txt").read_text().strip() == pin
    (stated,) = tomllib.loads((LOCKS / "settings.toml").read_text())["dependency-metadata"]
    assert f"{stated['name']}=={stated['version']}" == pin
    if metadata.version("torch").partition("+")[0] == stated["version"]:
        bare = [line for line in metadata.requires("torch") or [] if "extra ==" not in line]
        kept = {line for line in bare if not re.match(r"nvidia|cuda|triton", line)}
        assert {str(Requirement(line.partition(";")[0])) for line in kept} == set(stated["requires-dist"])


def test_build_backend_is_locked() -> None:
    (backend,) = required(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]).values()
    assert backend.specifier.contains(locked("build")[backend.name])


def test_sleap_files_are_written_and_read_without_what_the_images_leave_out(tmp_path: Path) -> None:
    modules = {"skia-python": "skia"} | {name: name.replace("-", "_") for name in excluded() - {"skia-python"}}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(modules.values())}))
import numpy
from sleap_io import Edge, LabeledFrame, Labels, Node, PredictedInstance, Instance, Skeleton, Track, Video, load_slp
nodes = [Node("a"), Node("b")]
skeleton = Skeleton(nodes, [Edge(*nodes)])
video = Video("x.mp4", open_backend=False)
points = numpy.array([[1.0, 2.0], [3.0, 4.0]])
poses = [PredictedInstance.from_numpy(points, skeleton, point_scores=numpy.ones(2), score=1.0, track=Track("t"))]
frame = LabeledFrame(video, 0, [*poses, Instance.from_numpy(points + 1, skeleton)])
Labels([frame]).save("{tmp_path}/x.slp", embed=False, verbose=False)
(read,) = load_slp("{tmp_path}/x.slp", open_videos=False).labeled_frames
print(read.user_instances[0].numpy().tolist(), read.predicted_instances[0].numpy().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[[2.0, 3.0], [4.0, 5.0]] [[1.0, 2.0], [3.0, 4.0]]", done.stderr


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_dockerfile_is_clean_to_hadolint(name: str) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed; its wheel is not built for this platform")
    done = subprocess.run(
        [program, ROOT / "docker" / f"{name}.Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


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


@pytest.mark.parametrize("path", sorted(ROOT.glob("docker-compose*.yml")) + sorted((ROOT / "docker").rglob("*.y*ml")))
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

    assert [key for document in yaml.compose_all(path.read_text(encoding="utf-8")) for key in keys(document)] == []


SERVICES = ("redis", "gateway", "worker-inference", "worker-training", "prometheus", "grafana")


@pytest.mark.parametrize("name", ["prepare", *SERVICES])
def test_containers_have_no_rights_and_write_into_volumes_only(name: str) -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert re.search(r":\S*\d+\.\d+|:8-alpine|^ppl-", service["image"])
    if name == "prepare":  # gives the volumes to the others' user, then ends
        assert (service["cap_add"], service["network_mode"]) == (["CHOWN", "DAC_OVERRIDE"], "none")
        return
    assert "cap_add" not in service
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["restart"] == "unless-stopped"
    assert [place.partition(":")[0] for place in service["tmpfs"]] == ["/tmp"]
    for volume in service["volumes"]:
        source, _, mode = volume.partition(":")
        assert source in compose["volumes"] or mode.endswith(":ro,z")
    for port in service.get("ports", []):
        assert re.search(r":-127\.0\.0\.1:\d+\}:\d+$", port)

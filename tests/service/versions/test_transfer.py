"""A version out of one server and into another, and files that must not get in."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import stat
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save, save_file

from model.config import PPLConfig, resolve
from model.network.architecture import FEATURE_WEIGHTS, expected_tensors, named_features
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor
from model.version.prior import History as Recorded
from model.version.tensor_files import write_version
from service.contract.versions.export_manifest import MANIFEST
from service.contract.versions.store import VersionStore
from service.versions.export import export_version
from service.versions.reader import Versions
from service.versions.schemas import History, Memory, Prior, VersionEntry

NAME = "20260101T000000-abc123"
NUMPY = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}
NAMES = ["nose", "neck", "tail", "left", "right"]
SIZES = {"base_width": 8, "num_keypoints": 5, "num_banks": 3, "bank_size": 2, "token_dim": 8, "memory_width": 8}
CONFIG = resolve("compact", {**SIZES, "keypoint_prior": "predefined", "link_width": 1e-3})


def weights(config: PPLConfig = CONFIG, **changes) -> bytes:
    """Return weights that the published prior and memory follow from; zeros apart from these."""
    tensors = {name: np.zeros(shape, NUMPY[kind]) for name, (kind, shape) in expected_tensors(config).items()}
    links = 1 / (1 + np.add(*np.triu_indices(5, 1)))
    tensors["link_logits"] = (np.log(np.expm1(links)) / config.link_scale).astype(np.float32)
    tensors["own_prior"] = np.float32([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]])
    tensors["memory.use_counts"] += 1
    tensors.update(changes)
    facts = json.dumps({"step": 10, "features": named_features(config)})
    return save({name: value for name, value in tensors.items() if value is not None}, {"facts": facts})


@pytest.fixture
def version(publish, data_root) -> Path:
    """A version as a training publishes it; its folder."""
    publish("dog", NAME)
    folder = VersionStore(data_root).path("dog", NAME)
    (folder / "weights.safetensors").write_bytes(weights())
    documents = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("version", "prior", "memory")}
    documents["version"]["settings"] = CONFIG.to_dict()
    documents["prior"]["keypoint_prior_source"] = "predefined"
    documents["memory"].update(bank_size=2, token_dim=8)
    documents["memory"]["prototypes"][0]["keypoints"] = [[0.0, 0.0]] * 5
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    for name in ("prior", "memory"):
        (folder / f"{name}.json").write_text(json.dumps(documents[name]))
    for path in folder.iterdir():
        if path.name != "version.json":
            documents["version"]["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "version.json").write_text(json.dumps(documents["version"]))
    return folder


@pytest.fixture
async def there(serve, tmp_path):
    """Another server, with a data root of its own."""
    root = tmp_path / "there"
    root.mkdir()
    client = await serve(data_root=root)
    client.root = root
    return client


async def export(http, version="active"):
    return await http.get(f"/priors/dog/versions/{version}/export")


async def bring(http, data, category="dog", **fields):
    return await http.post(f"/priors/{category}/versions/import", data=fields, files=[("file", ("dog.zip", data))])


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes], *, kind=zipfile.ZIP_STORED, sums: bool = True) -> bytes:
    """Zip the files; write their sizes and checksums to the manifest unless `sums` is false."""
    if sums and MANIFEST in files:
        manifest = json.loads(files[MANIFEST])
        manifest["files"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
            if name != MANIFEST
        }
        files = {**files, MANIFEST: json.dumps(manifest).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


async def test_version_goes_from_one_server_to_another_with_all_that_belongs_to_it(
    http, there, version, consumer, make_picture, data_root
):
    await http.put("/priors/dog/keypoint-names", json={"names": NAMES})
    rows, files = ["image,keypoint,x,y"], []
    for number in range(6):
        x, y = 30 + 5 * number, 40 - 3 * number
        files.append(("images", (f"{number}.png", make_picture(96, 64, (x / 96, y / 64)))))
        rows.append(f"{number}.png,eye,{x},{y}")
    files.append(("labels", ("labels.csv", "\n".join(rows).encode())))
    assert (await http.post("/priors/dog/landmarks", data={"name": "eyes"}, files=files)).status_code == 201

    got = await export(http)
    assert got.headers["content-type"] == "application/zip"
    assert got.headers["content-disposition"] == f'attachment; filename="dog-{NAME}.zip"'
    files = unpacked(got.content)
    assert next(iter(files)) == MANIFEST
    assert json.loads(files[MANIFEST])["format"] == 1
    answer = await bring(there, got.content, "puppy")
    assert answer.status_code == 201, answer.text
    VersionEntry.model_validate(answer.json())
    assert (answer.json()["version"], answer.json()["aliases"]) == (NAME, ["active"])
    assert answer.headers["location"] == f"/priors/puppy?version={NAME}"

    for address, shape in (("", Prior), ("/memory", Memory), ("/history", History)):
        here_, there_ = [
            (await client.get(f"/priors/{name}{address}")).json() for client, name in ((http, "dog"), (there, "puppy"))
        ]
        shape.model_validate(there_)
        assert there_ == {**here_, "category": "puppy"}
    shown = [(await c.get(f"/priors/{n}/landmarks/eyes")).json()["maps"] for c, n in ((http, "dog"), (there, "puppy"))]
    assert shown[0] == shown[1]
    folder = there.root / "categories" / "puppy" / "versions" / NAME
    assert (folder / "weights.safetensors").read_bytes() == (version / "weights.safetensors").read_bytes()
    info = json.loads((folder / "version.json").read_text())
    assert (info["category"], info["imported"]["from"], info["job_id"]) == ("puppy", "dog", "0123456789abc123")
    assert info["files"] == json.loads((version / "version.json").read_text())["files"]
    assert [path.name for path in (there.root / "categories").iterdir()] == ["puppy"]
    Predictor.load(folder, "cpu")  # as the worker will
    again = await export_of(there, "puppy")
    assert unpacked(again)["prior.json"] == files["prior.json"]


async def export_of(http, category):
    return (await http.get(f"/priors/{category}/versions/active/export")).content


async def test_sample_version_passes_all_checks(http, there, data_root):
    from service.versions.samples import install_samples

    install_samples(VersionStore(data_root))
    got = await export(http)
    assert (await bring(there, got.content)).status_code == 201
    assert (await export(there)).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [{}, {"keypoint_prior": "random", "keypoint_prior_trainable": True}, {"method": "autolink"}],
    ids=["memory", "own prior", "autolink"],
)
async def test_what_a_training_writes_passes_all_checks(there, tmp_path, changes):
    """Its prior and its memory follow from its weights, for each kind of prior."""
    torch.manual_seed(0)
    small = {"image_size": 32, "base_width": 8, "num_keypoints": 5, "num_banks": 3, "bank_size": 4, "token_dim": 8}
    config = resolve("paper", {**small, "memory_width": 16, "memory_depth": 1, **changes})
    model, folder = PosePriorLearner(config), tmp_path / "written"
    folder.mkdir()
    history = Recorded(10, 2)
    history.record(model, 0)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    write_version(folder, model, pictures, history, step=10)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["version.json"] = json.dumps({"format": 1, "version": NAME, "training": {"mode": "stills"}}).encode()
    files[MANIFEST] = json.dumps({"format": 1, "category": "dog", "version": NAME}).encode()
    answer = await bring(there, packed(files))
    assert answer.status_code == 201, answer.text


async def test_export_streams_in_little_memory(version, data_root):
    big = {"x": np.zeros(16 * 2**20, np.float32)}
    save_file(big, version / "weights.safetensors", {"facts": "{}"})
    info = json.loads((version / "version.json").read_text())
    (version / "version.json").write_text(json.dumps({**info, "files": {}}))
    versions = Versions(VersionStore(data_root))
    tracemalloc.start()
    size = sum(len(part) for part in export_version(versions, "dog", NAME))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 64 * 2**20
    assert peak < 12 * 2**20


async def test_import_streams_in_little_memory(there, http, version, problem):
    files = unpacked((await export(http)).content)
    files["weights.safetensors"] = save({"x": np.zeros(16 * 2**20, np.float32)}, {"facts": "{}"})
    data = packed(files)
    del files
    tracemalloc.start()
    try:
        # the request's own body is in the memory of the test; what the server adds to it is measured
        before = tracemalloc.get_traced_memory()[0]
        answer = await there.post(
            "/priors/dog/versions/import",
            content=multipart(data),
            headers={"content-type": "multipart/form-data; boundary=xxx"},
        )
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    problem(answer, 422, "bad_version_file")  # as the weights are of another model
    assert peak < 24 * 2**20


async def multipart(data: bytes):
    yield b'--xxx\r\ncontent-disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    for first in range(0, len(data), 2**18):
        yield data[first : first + 2**18]
    yield b"\r\n--xxx--\r\n"


async def test_same_version_gives_the_same_file(http, version):
    assert (await export(http)).content == (await export(http, NAME)).content


async def test_damaged_version_is_not_exported(http, version, problem):
    (version / "memory.json").write_text('{"num_banks": 0}')
    problem(await export(http), 500, "store_corrupt")


async def test_unknown_things_are_not_exported(http, version, problem):
    problem(await export(http, "nosuch"), 404, "unknown_version")
    problem(await http.get("/priors/cat/versions/active/export"), 404, "unknown_category")


async def test_version_that_is_there_is_not_imported_again(http, version, problem, data_root):
    data = (await export(http)).content
    before = sorted(path for path in data_root.rglob("*"))
    problem(await bring(http, data), 409, "version_exists")
    assert sorted(path for path in data_root.rglob("*")) == before


async def test_of_two_gateways_that_import_at_once_one_wins(serve, http, version, tmp_path):
    data = (await export(http)).content
    root = tmp_path / "there"
    root.mkdir()
    gateways = [await serve(data_root=root), await serve(data_root=root)]
    answers = await asyncio.gather(*(bring(client, data) for client in gateways))
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    assert (await gateways[0].get("/priors/dog")).json()["version"] == NAME


@pytest.mark.parametrize(("given", "active"), [(None, "old"), ("false", "old"), ("true", NAME)])
async def test_import_activates_only_if_asked(http, there, version, given, active):
    data = (await export(http)).content
    files = unpacked(data)
    old = {**json.loads(files["version.json"]), "version": "20250101T000000-old"}
    manifest = {**json.loads(files[MANIFEST]), "version": old["version"]}
    older = packed({**files, "version.json": json.dumps(old).encode(), MANIFEST: json.dumps(manifest).encode()})
    assert (await bring(there, older)).json()["active"] is True
    answer = await bring(there, data, **({} if given is None else {"activate": given}))
    assert answer.status_code == 201, answer.text
    assert (await there.get("/priors/dog")).json()["version"].endswith(active)


async def test_compressed_zip_is_taken_too(http, there, version):
    files = unpacked((await export(http)).content)
    assert (await bring(there, packed(files, kind=zipfile.ZIP_DEFLATED))).status_code == 201


def changed(files: dict[str, bytes], name: str, **changes) -> dict[str, bytes]:
    document = {**json.loads(files[name]), **changes}
    return {**files, name: json.dumps({key: value for key, value in document.items() if value is not ...}).encode()}


def presence(size: int, precision: float = 1.0) -> dict:
    """A calibration by descriptions of this size."""
    matrix = (precision * np.eye(size)).tolist()
    parts = {"mean": [0.0] * size, "precision": matrix, "centre": [0.0] * 4, "scale": [1.0] * 4, "weights": [0.0] * 5}
    return {"format": 1, **parts}


def landmark_set(weight: float) -> dict:
    """A set of one landmark of five keypoints."""
    error = {"name": "eye", "visible": 6, "error_percent": 1.0, "error_px": 1.0}
    scores = {"folds": 5, "error_percent": 1.0, "error_px": 1.0, "mean_place_percent": 2.0, "per_landmark": [error]}
    return {
        "format": 1,
        "name": "eyes",
        "landmarks": ["eye"],
        "num_keypoints": 5,
        "images": 6,
        "strength": 1.0,
        "maps": [[[weight, weight]] * 11],
        "cross_validation": scores,
        "created_at": "2026-01-01T00:00:00.000Z",
    }


def hurt(files: dict[str, bytes], what: str) -> bytes:
    """Return an exported version with one fault."""
    match what:
        case "no zip":
            return b"PK nothing"
        case "cut":
            return packed(files)[:-100]
        case "checksum":
            return packed({**files, "prior.json": files["prior.json"].replace(b"0.5", b"0.4")}, sums=False)
        case "size":
            return packed({**files, "prior.json": files["prior.json"] + b" "}, sums=False)
        case "weights bit":
            data = bytearray(files["weights.safetensors"])
            data[-1] ^= 1
            return packed({**files, "weights.safetensors": bytes(data)}, sums=False)
        case "later format":
            return packed(changed(files, MANIFEST, format=2))
        case "odd format":
            return packed(changed(files, MANIFEST, format="1"))
        case "no manifest":
            return packed({name: data for name, data in files.items() if name != MANIFEST})
        case "manifest no JSON":
            return packed({**files, MANIFEST: b"["}, sums=False)
        case "missing member":
            return packed({name: data for name, data in files.items() if name != "memory.json"})
        case "member not in manifest":
            return packed({**files, "keypoint-names.json": b"{}"}, sums=False)
        case "listed but absent":
            kept = {name: data for name, data in files.items() if name != "history.json"}
            return packed(kept, sums=False)
        case "pickle":
            return packed({**files, "weights.pkl": b"x"})
        case "config":
            return packed(changed(files, "config.json", num_keypoints=99))
        case "unknown setting":
            return packed(changed(files, "config.json", colour="red"))
        case "other config":
            return packed(changed(files, "config.json", base_width=16))
        case "prior of other K":
            prior = json.loads(files["prior.json"])
            links = [link for link in prior["links"] if 4 not in (link["i"], link["j"])]
            return packed(
                changed(
                    files,
                    "prior.json",
                    num_keypoints=4,
                    keypoint_names=...,
                    keypoint_prior=prior["keypoint_prior"][:4],
                    links=links,
                    connectivity_prior=...,
                )
            )
        case "prior without links":
            return packed(changed(files, "prior.json", links=...))
        case "NaN":
            return packed({**files, "prior.json": files["prior.json"].replace(b"0.5", b"NaN", 1)})
        case "infinite":
            return packed(
                {**files, "version.json": files["version.json"].replace(b'"seconds": 1.5', b'"seconds": 1e999')}
            )
        case "half a letter":
            return packed(changed(files, "version.json", training={"device": "\ud800"}))
        case "deep":
            return packed({**files, "history.json": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"})
        case "memory":
            return packed(changed(files, "memory.json", num_banks=4))
        case "use counts":
            return packed(changed(files, "memory.json", use_counts=[[1.0]]))
        case "history":
            return packed(
                changed(files, "history.json", snapshots=[{"step": 0, "keypoint_prior": [], "link_weights": []}])
            )
        case "presence":
            return packed({**files, "presence.json": b'{"format": 1, "mean": [1]}'})
        case "quality":
            return packed(changed(files, "version.json", quality={"verdict": "splendid"}))
        case "version name":
            return packed(changed(changed(files, "version.json", version="../../x"), MANIFEST, version="../../x"))
        case "version names differ":
            return packed(changed(files, "version.json", version="20990101T000000-zzzzzz"))
        case "version.json":
            return packed(changed(files, "version.json", created_at=["x"]))
        case "mode":
            return packed(changed(files, "version.json", training={"mode": 7}))
        case "origin":
            return packed(changed(files, "version.json", training={"continued_from": "x"}))
        case "lineage":
            before = {"category": "dog", "version": "v1", "lineage": [{}]}
            return packed(changed(files, "version.json", training={"continued_from": before}))
        case "long lineage":
            before = {"category": "dog", "version": "v1", "lineage": ["dog@v1"] * 1001}
            return packed(changed(files, "version.json", training={"continued_from": before}))
        case "names":
            return packed({**files, "keypoint-names.json": b'{"names": ["a", "a", "b", "c", "d"]}'})
        case "landmarks":
            return packed({**files, "landmarks/eyes.json": b'{"format": 1}'})
        case "weights of landmarks":
            return packed({**files, "landmarks/eyes.json": json.dumps(landmark_set(1e308)).encode()})
        case "tensor shape":
            return packed({**files, "weights.safetensors": weights(link_logits=np.zeros(9, np.float32))})
        case "tensor type":
            return packed({**files, "weights.safetensors": weights(link_logits=np.zeros(10, np.float64))})
        case "tensor infinite":
            return packed({**files, "weights.safetensors": weights(link_logits=np.full(10, np.inf, np.float32))})
        case "tensor absurd":
            return packed({**files, "weights.safetensors": weights(link_logits=np.full(10, 1e30, np.float32))})
        case "variance below zero":
            changes = {"regressor.encoder.up.0.norm.running_var": np.full(32, -1, np.float32)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "count below zero":
            changes = {"memory.idle_steps": np.full((3, 2), -1)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "hits below zero":
            changes = {"memory.hits": np.full((3, 2), -1, np.float32)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "clusters below zero" | "clusters absurd":
            changes = {"regressor.clusters.factor": np.array(10.5 if what == "clusters absurd" else -10, np.float32)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "spread of clusters":
            changes = {"regressor.clusters.spread": np.full(112, -1, np.float32)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "direction too long":
            changes = {"regressor.clusters.directions": 3 * np.eye(5, 112, dtype=np.float32)}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "truth beyond true":
            data = bytearray(weights(**{"memory.filled": np.array(True)}))
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            at = header["memory.filled"]["data_offsets"][0] + 8 + int.from_bytes(data[:8], "little")
            assert data[at] == 1
            data[at] = 7
            return packed({**files, "weights.safetensors": bytes(data)})
        case "other links":
            return packed({**files, "weights.safetensors": weights(link_logits=np.zeros(10, np.float32))})
        case "other pose":
            return packed({**files, "weights.safetensors": weights(own_prior=np.zeros((5, 2), np.float32))})
        case "other prototype":
            bias = {"memory.decoder.4.bias": np.float32([0.3, 0])}
            return packed({**files, "weights.safetensors": weights(**bias)})
        case "decoder overflows":
            shapes = {"1.bias": 32, "2.token_norm.weight": 32, "3.weight": 32, "3.bias": 32, "4.weight": (2, 32)}
            changes = {f"memory.decoder.{part}": np.full(shape, 1e6, np.float32) for part, shape in shapes.items()}
            return packed({**files, "weights.safetensors": weights(**changes)})
        case "other use counts":
            return packed(changed(files, "memory.json", use_counts=[[2.0, 2.0]] * 3))
        case "other source":
            return packed(changed(files, "prior.json", keypoint_prior_source="random"))
        case "other link width":
            return packed(changed(files, "prior.json", link_width=0.05))
        case "surprise":
            return packed(changed(files, "memory.json", surprise_scale=0))
        case "surprise in text":
            return packed(changed(files, "memory.json", surprise_scale="nan"))
        case "nested":
            nested: list = []
            for _ in range(200):
                nested = [nested]
            return packed(changed(files, "version.json", training={"mode": "stills", "losses": nested}))
        case "presence of other size":
            return packed({**files, "presence.json": json.dumps(presence(7)).encode()})
        case "presence absurd":
            return packed({**files, "presence.json": json.dumps(presence(112, 1e300)).encode()})
        case "history absurd":
            snapshot = {"step": 0, "keypoint_prior": [[1e300, 0.0]] * 5, "link_weights": [1.0] * 10}
            return packed(changed(files, "history.json", snapshots=[snapshot]))
        case "prototypes":
            prototype = json.loads(files["memory.json"])["prototypes"]
            return packed(changed(files, "memory.json", prototypes=prototype * 1000))
        case "tensor missing":
            return packed({**files, "weights.safetensors": weights(link_logits=None)})
        case "other features":
            data = files["weights.safetensors"].replace(FEATURE_WEIGHTS["efficientnet_lite0"].encode(), b"0" * 64)
            return packed({**files, "weights.safetensors": data})
        case "tensor too many":
            return packed({**files, "weights.safetensors": weights(more=np.zeros(9, np.float32))})
        case "weights junk":
            return packed({**files, "weights.safetensors": b"junk" * 100})
        case "weights header":
            return packed({**files, "weights.safetensors": (2**40).to_bytes(8, "little") + b"{}"})
        case "weights no facts":
            tensors = {n: np.zeros(s, NUMPY[k]) for n, (k, s) in expected_tensors(CONFIG).items()}
            return packed({**files, "weights.safetensors": save(tensors)})
    raise AssertionError(what)


async def test_version_made_before_its_clusters_had_faded_out_keeps_them(http, there, version):
    changes = {
        "regressor.clusters.factor": np.array(10, np.float32),
        "regressor.clusters.spread": np.ones(112, np.float32),
    }
    changes["regressor.clusters.directions"] = np.eye(5, 112, dtype=np.float32)
    files = {**unpacked((await export(http)).content), "weights.safetensors": weights(**changes)}
    answer = await bring(there, packed(files))
    assert answer.status_code == 201, answer.text
    model = Predictor.load(VersionStore(there.root).path("dog", NAME), "cpu").model
    assert model.regressor.clusters.factor == 10
    assert torch.equal(model.regressor.clusters.directions, torch.eye(5, 112))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no zip", "not a zip"),
        ("cut", "damaged"),
        ("checksum", "SHA-256"),
        ("size", "bytes"),
        ("weights bit", "SHA-256"),
        ("later format", "format 2; this release reads format 1: use a later one"),
        ("odd format", "'1'; this release reads format 1: expected a zip from"),
        ("no manifest", "no manifest.json"),
        ("manifest no JSON", "not JSON"),
        ("missing member", "memory.json"),
        ("member not in manifest", "keypoint-names.json"),
        ("listed but absent", "history.json"),
        ("pickle", "weights.pkl"),
        ("config", "num_keypoints is 99"),
        ("unknown setting", "colour"),
        ("other config", "by its config.json"),
        ("prior of other K", "4 keypoints"),
        ("prior without links", "links"),
        ("NaN", "NaN"),
        ("infinite", "version.json"),
        ("half a letter", "version.json"),
        ("deep", "history.json"),
        ("memory", "memory.json"),
        ("use counts", "memory.json"),
        ("history", "history.json"),
        ("presence", "presence.json"),
        ("quality", "quality"),
        ("version name", "version.json"),
        ("version names differ", "version.json"),
        ("version.json", "created_at"),
        ("mode", "mode"),
        ("origin", "version.json: training"),
        ("lineage", "version.json: training"),
        ("long lineage", "version.json: training"),
        ("names", "keypoint-names.json"),
        ("landmarks", "landmarks/eyes.json"),
        ("weights of landmarks", "landmarks/eyes.json: it has a weight beyond"),
        ("tensor shape", "link_logits"),
        ("tensor type", "F64"),
        ("tensor infinite", "link_logits in weights.safetensors holds infinity"),
        ("tensor absurd", "link_logits in weights.safetensors holds numbers from 1e+30 to 1e+30"),
        ("variance below zero", "running_var in weights.safetensors holds numbers from -1"),
        ("count below zero", "idle_steps in weights.safetensors holds numbers from -1"),
        ("hits below zero", "memory.hits in weights.safetensors holds numbers from -1"),
        ("clusters below zero", "factor in weights.safetensors holds numbers from -10"),
        ("clusters absurd", "factor in weights.safetensors holds numbers from 10.5 to 10.5; no training reaches"),
        ("spread of clusters", "spread in weights.safetensors holds numbers from -1"),
        ("direction too long", "directions in weights.safetensors has the length 3; expected 1, or 0"),
        ("truth beyond true", "memory.filled in weights.safetensors holds numbers from 7"),
        ("other links", "prior.json has other link weights than weights.safetensors"),
        ("other pose", "prior.json has another pose than weights.safetensors"),
        ("other prototype", "memory.json has another pose than weights.safetensors"),
        ("decoder overflows", "memory.json has another pose than weights.safetensors"),
        ("other use counts", "memory.json has other use_counts"),
        ("other source", "keypoint_prior_source is random; by config.json it is predefined"),
        ("other link width", "link_width is 0.05; by config.json it is 0.001"),
        ("surprise", "surprise_scale is 0"),
        ("surprise in text", "memory.json: surprise_scale"),
        ("nested", "version.json is not JSON: it is nested more than 32 deep"),
        ("presence of other size", "describes pictures by 7 numbers; by config.json there are 112"),
        ("presence absurd", "presence.json: its precision has a number beyond 1e+12"),
        ("history absurd", "history.json: at step 0 it has a number beyond 1e+06"),
        ("prototypes", "has 1000 prototypes"),
        ("other features", "was trained with the features {'name': 'efficientnet_lite0', 'sha256': '00"),
        ("tensor missing", "link_logits in weights.safetensors is absent"),
        ("tensor too many", "more in weights.safetensors is F32 of shape [9]"),
        ("weights junk", "weights.safetensors"),
        ("weights header", "weights.safetensors"),
        ("weights no facts", "weights.safetensors"),
    ],
)
async def test_file_with_one_thing_wrong_is_refused(http, there, version, problem, what, said):
    files = unpacked((await export(http)).content)
    document = problem(await bring(there, hurt(files, what)), 422, "bad_version_file")
    assert said in document["detail"]
    assert [path for path in there.root.rglob("*") if path.name != "categories"] == []


def raw_zip(entries: list[tuple[str, bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "landmarks/../../../evil.json"])
async def test_members_that_lead_out_are_refused(http, there, version, problem, name):
    files = {**unpacked((await export(http)).content), name: b"x"}
    problem(await bring(there, packed(files)), 422, "bad_version_file")  # by the manifest
    problem(await bring(there, packed(files, sums=False)), 422, "unsafe_archive")
    assert [path for path in there.root.rglob("*") if path.name != "categories"] == []


async def test_links_and_members_that_come_twice_are_refused(http, there, version, problem):
    files = unpacked((await export(http)).content)
    entries = [(name, data, stat.S_IFREG | 0o644) for name, data in files.items()]
    linked = [*entries[:-1], (entries[-1][0], b"/etc/passwd", stat.S_IFLNK | 0o777)]
    problem(await bring(there, raw_zip(linked)), 422, "unsafe_archive")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = raw_zip([*entries, entries[-1]])
    assert "twice" in problem(await bring(there, twice), 422, "bad_version_file")["detail"]


async def test_bombs_are_refused_before_they_are_unpacked(http, serve, version, problem, tmp_path):
    files = unpacked((await export(http)).content)
    (tmp_path / "small").mkdir()
    small = await serve(data_root=tmp_path / "small", version_max_bytes=4 * 2**20)
    bomb = packed({**files, "weights.safetensors": b"\0" * (64 * 2**20)}, kind=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    problem(await bring(small, bomb), 413, "archive_too_large")
    many = packed({**files, **{f"landmarks/a{number}.json": b"{}" for number in range(200)}})
    problem(await bring(small, many), 413, "archive_too_large")
    assert [path for path in (tmp_path / "small").rglob("*") if path.name != "categories"] == []


async def test_member_larger_than_it_says_is_refused(http, there, version, problem):
    """The zip's directory has a wrong size; the unpacked bytes count."""
    data = bytearray(packed(unpacked((await export(http)).content), kind=zipfile.ZIP_DEFLATED))
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"memory.json"))
    size = int.from_bytes(data[entry + 24 : entry + 28], "little")
    data[entry + 24 : entry + 28] = (size - 1).to_bytes(4, "little")
    problem(await bring(there, bytes(data)), 422, "bad_version_file")


async def test_uploads_that_are_none_are_refused(http, there, version, problem):
    problem(await there.post("/priors/dog/versions/import", files=[("file", ("a.zip", b""))]), 422, "bad_version_file")
    problem(await there.post("/priors/dog/versions/import", data={"activate": "true"}), 415, "bad_request")
    problem(await bring(there, b"x", activate="perhaps"), 422, "bad_request")
    problem(await bring(there, b"x", colour="red"), 422, "bad_request")
    problem(await bring(there, b"x", category="No"), 400, "bad_category_name")
    data = (await export(http)).content
    problem(await there.post("/priors/dog/versions/import", files=[("other", ("a.zip", data))]), 422, "bad_request")
    small = await there.post("/priors/dog/versions/import", content=b"{}", headers={"content-type": "application/json"})
    problem(small, 415, "bad_request")


async def test_upload_longer_than_allowed_is_refused(serve, http, version, problem, tmp_path):
    data = (await export(http)).content
    (tmp_path / "small").mkdir()
    small = await serve(data_root=tmp_path / "small", version_max_bytes=4096)
    problem(await bring(small, data), 413, "body_too_large")


async def test_version_called_as_an_alias_is_not_imported(http, there, version, problem):
    files = unpacked((await export(http)).content)
    assert (await bring(there, packed(files))).status_code == 201
    await there.put("/priors/dog/aliases/champion", json={"version": "active"})
    for name in ("champion", "active"):
        renamed = changed(changed(files, "version.json", version=name), MANIFEST, version=name)
        problem(await bring(there, packed(renamed)), 409, "name_taken")

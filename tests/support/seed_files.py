"""Small valid files of every accepted format, made by our own code and by libraries when they are asked for."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import tarfile
import tempfile
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save

from model.config import resolve
from model.network.architecture import expected_tensors, named_features
from tests.support.media import TURNED_HEIC, encode_video
from tests.support.tiffs import tiff_of

NAME = "20260101T000000-abc123"  # of the version
PARTS = ("nose", "tail", "left", "right")
_NUMPY = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}
_SMALL = {"image_size": 32, "base_width": 8, "num_keypoints": 4, "num_banks": 3, "bank_size": 4, "token_dim": 8}
CONFIG = resolve("paper", {**_SMALL, "memory_width": 8, "memory_depth": 1, "keypoint_prior": "predefined"})
_VIDEOS = {
    "mp4": "",
    "mov": "",
    "avi": "",
    "mkv": "",
    "webm": "",
    "ts": "libx264",
    "mpg": "mpeg2video",
    "y4m": "wrapped_avframe",
}
_VIDEOS |= {"wmv": "wmv2", "flv": "flv", "ivf": "libvpx", "h264": "libx264"}


def zip_of(entries: list[tuple[str, bytes]], rng: random.Random | None = None, *, deflated: bool = False) -> bytes:
    """Zip some files; with a generator with an odd attribute or comment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            if rng and rng.random() < 0.2:
                info.external_attr = rng.choice((0o120777, 0o060666, 0o010666, 0o040755, 0o140777)) << 16
            archive.writestr(info, data, archive.compression)
        if rng and rng.random() < 0.1:
            archive.comment = rng.randbytes(60_000)
    return buffer.getvalue()


def quiet_zip(entries: list[tuple[str, bytes]], rng: random.Random | None = None) -> bytes:
    """Zip, also names that come twice, which zipfile warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zip_of(entries, rng)


def packed(files: dict[str, bytes]) -> bytes:
    """Zip the files of a version, the manifest with their sizes and checksums first."""
    manifest = json.loads(files["manifest.json"])
    if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
        manifest["files"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
            if name != "manifest.json"
        }
    return quiet_zip(
        [("manifest.json", json.dumps(manifest).encode()), *((n, d) for n, d in files.items() if n != "manifest.json")]
    )


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    rng = random.Random(seed)
    image = Image.new("RGB", size, (20, 30, rng.randrange(90)))
    x, y = rng.randrange(8, size[0] - 8), rng.randrange(8, size[1] - 8)
    ImageDraw.Draw(image).line((x - 7, y, x + 7, y + 5), fill=(230, 220, 40), width=3)
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def seeds() -> dict[str, bytes]:
    """Return a valid file of every format, by kind and suffix."""
    found = {f"picture/{name}": data for name, data in _pictures().items()}
    found |= {f"video/{kind}": encode_video(5, kind, codec=codec) for kind, codec in _VIDEOS.items()}
    grey = picture().convert("L")
    found["video/pages.tif"] = encoded(grey, "TIFF", save_all=True, append_images=[grey, grey])
    entries = [(f"{n}.png", encoded(picture(n), "PNG")) for n in range(9)]
    found["archive/zip"] = zip_of(entries)
    found["archive/deflated.zip"] = zip_of(
        [*entries[:8], ("walk.mp4", found["video/mp4"]), ("a.tif", found["picture/tif"])], deflated=True
    )
    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
            for name, data in entries:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found[f"archive/{suffix}"] = buffer.getvalue()
    return found | _labels() | _boxes() | _json() | {"version/zip": _version()}


def _pictures() -> dict[str, bytes]:
    image, deep = picture(), np.arange(40 * 32, dtype=np.uint16).reshape(32, 40) * 50
    exif = Image.Exif()
    exif[0x0112] = 6
    grey, palette = image.convert("L"), image.convert("P")
    return {
        "jpg": encoded(image, "JPEG", exif=exif),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image, "PNG"),
        "deep.png": encoded(Image.fromarray(deep), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "avif": encoded(image, "AVIF", speed=10),
        "heic": TURNED_HEIC,
        "tif": tiff_of(deep),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(grey, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "big.tif": encoded(image, "TIFF", big_tiff=True),
    }


def _labels() -> dict[str, bytes]:
    places = [[(5 + 3 * joint + number, 6 + 2 * joint) for joint in range(4)] for number in range(9)]
    rows = [
        (f"{number}.png", name, x, y)
        for number, pose in enumerate(places)
        for name, (x, y) in zip(PARTS, pose, strict=True)
    ]
    plain = "image,keypoint,x,y,visible,width,height\n" + "".join(
        f"{image},{name},{x},{y},1,40,32\n" for image, name, x, y in rows
    )
    head = [
        ["scorer", *["me"] * 8],
        ["bodyparts", *(n for name in PARTS for n in (name, name))],
        ["coords", *["x", "y"] * 4],
    ]
    table = [[f"labeled-data/a/{number}.png", *itertools.chain(*pose)] for number, pose in enumerate(places)]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 32} for n in range(9)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "keypoints": [v for x, y in pose for v in (x, y, 2)]}
            for n, pose in enumerate(places)
        ],
        "categories": [{"id": 1, "name": "dog", "keypoints": list(PARTS), "skeleton": [[1, 2], [2, 3]]}],
    }
    point = {"original_width": 40, "original_height": 32, "image_rotation": 0, "type": "keypointlabels"}
    studio = [
        {
            "id": n,
            "data": {"img": f"/data/upload/1/0123abcd-{n}.png"},
            "annotations": [
                {
                    "result": [
                        {
                            **point,
                            "id": name,
                            "value": {"x": 100 * x / 40, "y": 100 * y / 32, "width": 1, "keypointlabels": [name]},
                        }
                        for name, (x, y) in zip(PARTS, pose, strict=True)
                    ]
                }
            ],
        }
        for n, pose in enumerate(places)
    ]
    samples = {
        "keypoint_names": list(PARTS),
        "edges": [[0, 1]],
        "train": {
            f"{n}.png": {"keypoints": [[x / 40, y / 40] for x, y in pose], "visibility": [1] * 4}
            for n, pose in enumerate(places)
        },
    }
    found = {
        "labels/csv": plain.encode(),
        "labels/dlc.csv": "\n".join(",".join(map(str, row)) for row in [*head, *table]).encode(),
        "labels/coco.json": json.dumps(coco).encode(),
        "labels/studio.json": json.dumps(studio).encode(),
        "labels/samples.json": json.dumps(samples).encode(),
    }
    return found | _hdf5(places)


def _hdf5(places: list[list[tuple[int, int]]]) -> dict[str, bytes]:
    """Return labels as DeepLabCut and SLEAP write them; none without the extra ``interop``."""
    try:
        import pandas as pd
        import sleap_io as sio
    except ImportError:
        return {}
    columns = pd.MultiIndex.from_product([["me"], PARTS, ["x", "y"]], names=["scorer", "bodyparts", "coords"])
    values = np.array(places, dtype=float).reshape(9, 8)
    skeleton = sio.Skeleton(list(PARTS), edges=[("nose", "tail")])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        pd.DataFrame(values, index=[f"{n}.png" for n in range(9)], columns=columns).to_hdf(
            path, key="df_with_missing", mode="w", format="fixed"
        )
        for number in range(9):
            picture(number).save(f"{folder}/{number}.png")
        video = sio.Video.from_filename([f"{folder}/{n}.png" for n in range(9)])
        frames = [
            sio.LabeledFrame(video, n, [sio.Instance.from_numpy(np.array(pose, dtype=float), skeleton=skeleton)])
            for n, pose in enumerate(places)
        ]
        sio.Labels(frames).save(f"{folder}/a.slp", embed=False, verbose=False)
        return {"labels/h5": path.read_bytes(), "labels/slp": Path(folder, "a.slp").read_bytes()}


def _boxes() -> dict[str, bytes]:
    images = [{"id": n, "file_name": f"{n}.png", "file": f"{n}.png"} for n in range(2)]
    coco = {"images": images, "annotations": [{"image_id": n, "bbox": [4, 4, 20, 20], "score": 0.9} for n in range(2)]}
    detections = [{"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.5, 0.5]}]
    detector = {
        "images": [{**image, "detections": detections} for image in images],
        "detection_categories": {"1": "animal"},
    }
    rows = "".join(f"{n}.png,4,4,20,20,0.9\n" for n in range(2))
    return {
        "boxes/csv": f"image,x,y,width,height,confidence\n{rows}".encode(),
        "boxes/coco.json": json.dumps(coco).encode(),
        "boxes/detector.json": json.dumps(detector).encode(),
    }


def _json() -> dict[str, bytes]:
    points = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0]]
    links = [{"i": i, "j": j, "weight": 1.0} for i, j in itertools.combinations(range(4), 2)]
    prior = {
        "keypoint_prior": points,
        "links": links,
        "skeleton": [[0, 1]],
        "keypoint_names": list(PARTS),
        "link_width": 1e-3,
    }
    train = {
        "category": "cat",
        "folder": "imports/cat",
        "preset": "compact",
        "settings": {"steps": 2},
        "prior": prior,
        "activate": False,
    }
    return {
        "prior/json": json.dumps(prior).encode(),
        "json/train.json": json.dumps(train).encode(),
        "json/alias.json": json.dumps({"version": "active"}).encode(),
        "json/names.json": json.dumps({"names": [f"part {n}" for n in range(16)]}).encode(),
    }


def _version() -> bytes:
    """Return an exported version of a model that was never trained, whose prior follows from its weights."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, (kind, shape) in expected_tensors(CONFIG).items():
        value = rng.normal(0, 0.05, shape) if kind == "F32" else np.zeros(shape)
        value = np.abs(value) if name.endswith(("running_var", "hits")) else value
        tensors[name] = np.asarray(value, dtype=_NUMPY[kind])
    tensors["own_prior"] = np.float32([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0]])
    weights = np.logaddexp(0, CONFIG.link_scale * tensors["link_logits"].astype(float)).tolist()
    pairs = list(itertools.combinations(range(4), 2))
    matrix = np.zeros((4, 4))
    for (i, j), weight in zip(pairs, weights, strict=True):
        matrix[i, j] = matrix[j, i] = weight
    memory = {
        "num_banks": 3,
        "bank_size": 4,
        "token_dim": 8,
        "use_counts": [[0] * 4] * 3,
        "prototypes": [],
        "surprise_scale": 0.5,
    }
    prior = {
        "num_keypoints": 4,
        "keypoint_names": list(PARTS),
        "keypoint_prior": tensors["own_prior"].tolist(),
        "connectivity_prior": matrix.tolist(),
        "links": [{"i": i, "j": j, "weight": weight} for (i, j), weight in zip(pairs, weights, strict=True)],
        "skeleton": [[0, 1], [0, 2], [0, 3]],
        "link_width": CONFIG.link_width,
        "keypoint_prior_source": "predefined",
    }
    training = {
        "images": 99,
        "skipped": 1,
        "steps": 10,
        "seconds": 1.5,
        "device": "cpu",
        "mode": "stills",
        "losses": {},
    }
    documents = {
        "manifest.json": {"kind": "ppl-version", "format": 1, "category": "dog", "version": NAME, "files": {}},
        "version.json": {"format": 1, "version": NAME, "created_at": "2026-01-01T00:00:00.000Z", "training": training},
        "config.json": CONFIG.to_dict(),
        "prior.json": prior,
        "memory.json": memory,
        "history.json": {
            "snapshots": [{"step": 0, "keypoint_prior": prior["keypoint_prior"], "link_weights": weights}]
        },
    }
    files = {name: json.dumps(document).encode() for name, document in documents.items()}
    facts = json.dumps({"step": 10, "features": named_features(CONFIG)})
    return packed(files | {"weights.safetensors": save(tensors, {"facts": facts})})

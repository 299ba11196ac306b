"""Photographs for the benchmarks of the service: JPEGs of about 640x480, each with a different width."""

from __future__ import annotations

import io
import zipfile
from importlib.resources import as_file, files

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 640, 480
_BOUNDARY = "a-boundary-of-the-benchmarks"
_QUALITY = 90


def photos(count: int) -> list[bytes]:
    """Return the held-out dogs of the samples on a grainy background: about 90 KB each, like a camera's.

    Photograph n is n pixels wider, so the size in a response identifies its photograph.
    """
    with as_file(files("service") / "samples" / "dog_heldout.zip") as path, zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith((".jpg", ".png"))]
        return [_photo(archive.read(names[number % len(names)]), number) for number in range(count)]


def upload(category: str, photo: bytes, field: str = "images") -> tuple[str, bytes]:
    """Return a form with a photograph: its media type and its body."""
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="'
    head = (
        f'{part}category"\r\n\r\n{category}\r\n{part}{field}"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return f"multipart/form-data; boundary={_BOUNDARY}", head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _photo(picture: bytes, number: int) -> bytes:
    rng = np.random.default_rng(number)
    width = WIDTH + number
    with Image.open(io.BytesIO(picture)) as opened:
        dog = opened.convert("RGB").resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    ground = np.linspace((90, 120, 160), (140, 130, 100), HEIGHT)[:, None].repeat(width, axis=1)
    canvas = Image.fromarray(ground.astype(np.uint8))
    canvas.paste(dog, ((width - HEIGHT) // 2, 0))
    grain = np.asarray(canvas) + rng.normal(0, 6, (HEIGHT, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()

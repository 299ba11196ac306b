"""Actions that estimate poses, in every way that the platform has."""

from __future__ import annotations

import csv
import io
import json
import socket
from itertools import islice
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from service.client import APIError, Client
from service.client.types import EstimateStatus, png_bytes

from .world import FRAMES, PATIENCE_S, World, count_frames, keypoints_of, require

_FORMATS = ("native", "csv", "coco", "slp")
_NEAR_PX = 12.0


def estimate_with_everything(world: World, client: Client) -> None:
    """Ask for refinement and all that can be included."""
    include = ("link_map", "trajectory", "reconstructions", "overlay", "codes", "links")
    pictures = [known.picture for known in world.known]
    images = client.estimate("dog", pictures, refine_steps=2, include=include).images
    require(len(images) == len(world.known), f"{len(images)} poses came of {len(world.known)} pictures")
    for known, image in zip(world.known, images, strict=True):
        first = np.array([(point.x, point.y) for point in (image.trajectory or [[]])[0]])
        require(known.is_right(first), f"the trajectory of picture {image.index} does not begin with its pose")
        with Image.open(io.BytesIO(png_bytes(image.overlay or ""))) as drawn:
            require(drawn.size == (image.width, image.height), f"the overlay is {drawn.size}")


def estimate_lines(world: World, client: Client) -> None:
    """Ask for JSON lines."""
    lines = sorted(client.estimate_lines("dog", [known.picture for known in world.known]), key=lambda line: line.index)
    for line in lines:
        keypoints_of(line)  # none failed
    world.check(world.known, lines)  # type: ignore[arg-type]


def estimate_as_coco(world: World, client: Client) -> None:
    """Ask for COCO."""
    found = json.loads(client.estimate_as("coco", "dog", [known.picture for known in world.known]))["annotations"]
    require(len(found) == len(world.known), f"{len(found)} annotations came of {len(world.known)} pictures")
    for known, annotation in zip(world.known, found, strict=True):
        keypoints = np.array(annotation["keypoints"]).reshape(-1, 3)[:, :2]
        require(known.is_right(keypoints), f"annotation {annotation['id']} has other keypoints")


def estimate_in_background(world: World, client: Client) -> None:
    """Estimate pictures in the background in one of the formats; most results stay until they expire."""
    turn = world.turn
    kind = _FORMATS[turn % len(_FORMATS)]
    pictures = [known.picture for known in world.known]
    begun = client.estimate_async("dog", pictures, format=kind)
    found = client.wait_estimate(begun.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(found.status is EstimateStatus.SUCCEEDED, f"background estimate {found.id} {found.status}: {found.error}")
    data = client.estimate_result(found.id)
    if kind == "native":
        require(found.result is not None, "there is no result")
        world.check(world.known, found.result.images if found.result else [])
    elif kind == "csv":
        rows = list(csv.reader(io.StringIO(data.decode())))[-len(pictures) :]
        for known, row in zip(world.known, rows, strict=True):
            keypoints = np.array(row[-3 * len(known.keypoints) :], float).reshape(-1, 3)[:, :2]
            require(known.is_right(keypoints), f"row {row[0]} has other keypoints")
    elif kind == "coco":
        require(len(json.loads(data)["annotations"]) == len(pictures), "annotations are missing")
    else:
        require(data.startswith(b"\x89HDF"), "the result is no HDF5 file")
    if turn % 3 == 0:
        client.delete_estimate(found.id)


def cancel_in_background(world: World, client: Client) -> None:
    """Cancel an estimate in the background, unless it was faster."""
    begun = client.estimate_async("dog", video=world.film)
    try:
        client.cancel_estimate(begun.id)
    except APIError as error:
        if error.status != 409:
            raise
    found = client.wait_estimate(begun.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(found.status in (EstimateStatus.CANCELLED, EstimateStatus.SUCCEEDED), f"{found.status}: {found.error}")


def stream_video(world: World, client: Client) -> None:
    """Stream a video's poses."""
    every = 1 + world.turn % 3
    world.check_frames(list(client.estimate_video("dog", world.video, every=every)), every)


def leave_stream(world: World, client: Client) -> None:
    """Leave a stream after a few of its poses."""
    lines = client.estimate_video("dog", world.film, locate="off")
    some = list(islice(lines, 3))
    lines.close()  # type: ignore[attr-defined]
    require(len(some) == 3, f"{len(some)} poses came of 24 frames")


def draw_video(world: World, client: Client) -> None:
    """Have a video's poses smoothed and drawn on it, in the background."""
    begun = client.estimate_async("dog", video=world.video, include=("overlay",), smooth="median:5", locate="off")
    found = client.wait_estimate(begun.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(found.status is EstimateStatus.SUCCEEDED, f"background estimate {found.id} {found.status}: {found.error}")
    world.check_frames(found.result.images if found.result else [])
    drawn = count_frames(client.save_estimate(found.id, world.folder / "drawn.mp4", "overlay"))
    require(drawn == FRAMES, f"{drawn} frames were drawn of {FRAMES}")


def locate_in_video(world: World, client: Client) -> None:
    """Find what moves in a film of a fixed camera."""
    begun = client.estimate_async("dog", video=world.film, locate="motion")
    found = client.wait_estimate(begun.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(found.status is EstimateStatus.SUCCEEDED, f"background estimate {found.id} {found.status}: {found.error}")
    images = found.result.images if found.result else []
    require(len(images) == len(world.places), f"{len(images)} poses came of {len(world.places)} frames")
    for image, place in zip(images, world.places, strict=True):
        require(image.region is not None, f"nothing was found in frame {image.index}")
        if box := image.region:
            off = np.hypot(box.x + box.width / 2 - place[0], box.y + box.height / 2 - place[1])
            require(off < _NEAR_PX, f"the box of frame {image.index} is {off:.0f} px off")


def abandon_upload(world: World, client: Client) -> None:
    """Break a connection in the middle of an upload."""
    address = urlsplit(world.stack.url)
    path = ("/train-jobs", "/datasets", "/estimate")[world.turn % 3]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 10000000\r\n"
        'Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="archive"; '
        'filename="a.zip"\r\n\r\n'
    )
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as connection:
        connection.sendall(head.encode() + bytes(2**18))


def send_what_is_refused(world: World, client: Client) -> None:
    """Send damaged pictures and videos and unknown names; each is refused with the right status."""
    known = world.known[0]
    for expected, send in (
        (404, lambda: client.estimate("unknown", [known.picture])),
        (422, lambda: client.estimate("dog", [known.picture[:200]])),
        (422, lambda: client.estimate("dog", [known.picture], refine_steps=1000)),
        (404, lambda: client.job("0" * 22)),
    ):
        try:
            send()
        except APIError as error:
            require(error.status == expected, f"{error.status} came instead of {expected}: {error.detail}")
        else:
            require(False, f"an answer came instead of {expected}")

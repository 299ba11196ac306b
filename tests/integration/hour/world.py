"""What the roles of the mixed load share: the stack, pictures with known answers, and what they did and found wrong."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.client import Client
from service.client.types import FailedPicture, ImageEstimate, PoseLine
from service.client.webhook_signature import verify_webhook
from tests.integration.faults.load import SAMPLES, TOLERANCE_PX, Known, ask_first
from tests.support.arena import encode_film, walk, walker_frame
from tests.support.media import encode_video
from tests.support.stack_process import StackProcess, archive, within

FRAMES = 12
PATIENCE_S = 120.0


class WrongAnswerError(AssertionError):
    """An answer is not what it must be; the message says what is wrong."""


Action = Callable[["World", Client], None]


class World:
    """Files to send, what must come back, and the record of what was done.

    Attributes:
        done: number of successes by action.
        faults: wrong or lost answers, refusals and errors.
        turn: counts on at each use, to choose among variants.
    """

    def __init__(self, stack: StackProcess, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stack, self.folder = stack, folder
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._turns = itertools.count()
        self.crosses = archive(folder / "crosses.zip")
        self.video, self.film = folder / "grey.mp4", folder / "walk.mkv"
        self.video.write_bytes(encode_video(FRAMES))
        self.places = walk(24)
        self.film.write_bytes(
            encode_film(walker_frame(tuple(place), 90, number) for number, place in enumerate(self.places))
        )
        with Client(stack.url) as client:
            self.known = ask_first(client)
            lines = sorted(client.estimate_video("dog", self.video), key=lambda line: line.index)
            self.frames = [keypoints_of(line) for line in lines]
            self.hooks = Receiver(client.webhook_secret())
        if len(self.frames) != FRAMES:
            raise WrongAnswerError(f"{len(self.frames)} poses came of {FRAMES} frames")
        self.labelled, self.labels = _write_labelled(folder / "labelled")

    @property
    def turn(self) -> int:
        return next(self._turns)

    def close(self) -> None:
        self.hooks.close()

    def act(self, action: Action, client: Client) -> None:
        """Do an action once; record its success or fault."""
        name = action.__name__
        try:
            action(self, client)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported and the load goes on
            self.faults.append(f"{time.strftime('%H:%M:%S')} {name}: {type(error).__name__}: {str(error)[:500]}")
        else:
            self.done[name] += 1

    def check(self, knowns: Sequence[Known], poses: Sequence[ImageEstimate]) -> None:
        """Check that the poses are those of the pictures. Raises WrongAnswerError."""
        if len(poses) != len(knowns):
            raise WrongAnswerError(f"{len(poses)} poses came of {len(knowns)} pictures")
        for known, pose in zip(knowns, poses, strict=True):
            if not known.is_right(keypoints_of(pose)):
                raise WrongAnswerError(f"picture {pose.index} is answered with the keypoints {keypoints_of(pose)}")

    def check_frames(self, poses: Sequence[ImageEstimate | FailedPicture], every: int = 1) -> None:
        """Check that the poses are those of the video's frames. Raises WrongAnswerError."""
        expected = self.frames[::every]
        if len(poses) != len(expected):
            raise WrongAnswerError(f"{len(poses)} poses came of {len(expected)} frames")
        for pose in poses:
            off = np.abs(keypoints_of(pose) - expected[pose.index]).max()
            if off > TOLERANCE_PX:
                raise WrongAnswerError(f"a keypoint of frame {pose.index} is {off:.2f} px off")


def require(condition: object, what: str) -> None:
    """Raise WrongAnswerError unless the condition holds."""
    if not condition:
        raise WrongAnswerError(what)


def keypoints_of(pose: ImageEstimate | PoseLine | FailedPicture) -> NDArray[np.float64]:
    """Return the keypoints (K, 2) in pixels. Raises WrongAnswerError for a picture that failed."""
    if isinstance(pose, FailedPicture):
        raise WrongAnswerError(f"picture {pose.index} failed: {pose.error.detail}")
    return np.array([(point.x, point.y) for point in pose.keypoints])


def count_frames(file: Path) -> int:
    """Return the number of frames that a video's file decodes to."""
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


class Receiver:
    """A server that takes the platform's webhooks and checks their signatures."""

    def __init__(self, secret: str) -> None:
        self.jobs: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.jobs.add(verify_webhook(dict(self.headers.items()), body, secret)["data"]["id"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, job_id: str) -> bool:
        """Return whether the webhook of a job comes within the patience."""
        return within(PATIENCE_S, lambda: job_id in self.jobs)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Role:
    """Actions that one thread does in turn, with a rest after each."""

    actions: tuple[Action, ...]
    rest_s: float


class Players:
    """Threads that play roles until they are stopped."""

    def __init__(self, world: World, roles: Sequence[Role]) -> None:
        self._world = world
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._play, args=(role,), daemon=True) for role in roles]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every role finish its action. Raises TimeoutError if one does not end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * PATIENCE_S)
            if thread.is_alive():
                raise TimeoutError("a role does not end")

    def _play(self, role: Role) -> None:
        with Client(self._world.stack.url) as client:
            for action in itertools.cycle(role.actions):
                if self._stop.is_set():
                    return
                self._world.act(action, client)
                self._stop.wait(role.rest_s)


def _write_labelled(folder: Path) -> tuple[list[Path], Path]:
    """Write labelled pictures of the sample's held-out ones and their labels; return both."""
    folder.mkdir()
    heldout = json.loads((SAMPLES / "dog_labels.json").read_text())["heldout"]
    rows, pictures = ["image,keypoint,x,y"], []
    with zipfile.ZipFile(SAMPLES / "dog_heldout.zip") as archived:
        for name in sorted(heldout)[:12]:
            data = archived.read(f"dog/{name}")
            (folder / name).write_bytes(data)
            with Image.open(io.BytesIO(data)) as picture:
                side = picture.width
            pictures.append(folder / name)
            for mark, (x, y) in enumerate(heldout[name]["keypoints"]):
                rows.append(f"{name},{mark},{x * side - 0.5},{y * side - 0.5}")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(rows))
    return pictures, labels

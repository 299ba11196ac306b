"""A steady load of estimates whose right answers are known, by plain HTTP and by the Python client."""

from __future__ import annotations

import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import APIError, Client
from service.client.errors import Unreachable

Outcome = Literal["right", "refused", "broken", "lost", "wrong"]
SAMPLES = Path(__file__).resolve().parents[3] / "service" / "samples"
REFUSED = (429, 503, 504, 507)
TOLERANCE_PX = 0.05  # rounding depends on the other pictures of a batch
_PAUSE_AFTER_REFUSAL_S = 0.2
_GRACE_S = 5.0


@dataclass(frozen=True)
class Answer:
    """The outcome of a request: the right poses; a clear refusal; a connection that broke; nothing in time; else wrong.

    Times are monotonic.
    """

    started: float
    ended: float
    by_client: bool
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Known:
    """A picture and the keypoints (K, 2) that it must be answered with."""

    picture: bytes
    keypoints: NDArray[np.float64]

    def is_right(self, keypoints: NDArray[np.float64]) -> bool:
        return bool(np.abs(keypoints - self.keypoints).max() <= TOLERANCE_PX)


def ask_first(client: Client, count: int = 6) -> list[Known]:
    """Return pictures of the sample category's held-out ones with the answers that they get now."""
    with zipfile.ZipFile(SAMPLES / "dog_heldout.zip") as held_out:
        pictures = [held_out.read(name) for name in sorted(held_out.namelist())[:count]]
    images = client.estimate("dog", pictures).images
    keypoints = [np.array([(point.x, point.y) for point in image.keypoints]) for image in images]
    distances = [np.abs(one - two).max() for one in keypoints for two in keypoints if one is not two]
    assert min(distances) > 1, "an answer to another picture would not be noticed"
    return [Known(*pair) for pair in zip(pictures, keypoints, strict=True)]


class Load:
    """Threads that send one picture after the other until :meth:`stop`.

    Args:
        deadline_s: within which the server must answer.
        pause_s: after each answer.
    """

    def __init__(
        self,
        url: str,
        known: Sequence[Known],
        deadline_s: float,
        plain: int,
        clients: int,
        pause_s: float = 0.02,
    ) -> None:
        self._url, self._known, self._deadline_s, self._pause_s = url, known, deadline_s, pause_s
        self._stop = threading.Event()
        self._answers: list[Answer] = []
        roles = [self._send_plain] * plain + [self._send_by_client] * clients
        self._threads = [
            threading.Thread(target=role, args=(number,), daemon=True) for number, role in enumerate(roles)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._deadline_s + 60)

    def answers(self, since: float = 0.0) -> list[Answer]:
        """Return the answers to what was sent since a moment."""
        return [answer for answer in tuple(self._answers) if answer.started >= since]

    def recovered(self, since: float) -> float | None:
        """Return the seconds from a moment to the first right answer to a request sent after it; None if none came."""
        ended = [answer.ended for answer in self.answers(since) if answer.outcome == "right"]
        return min(ended) - since if ended else None

    def _send_plain(self, number: int) -> None:
        limit = httpx.Timeout(self._deadline_s + _GRACE_S)
        with httpx.Client(base_url=self._url, timeout=limit, trust_env=False) as http:

            def estimate(known: Known) -> tuple[Outcome, str]:
                try:
                    response = http.post("/estimate", data={"category": "dog"}, files={"images": known.picture})
                except httpx.TimeoutException as error:
                    return "lost", repr(error)
                except httpx.TransportError as error:
                    return "broken", repr(error)
                if response.status_code != 200:
                    is_clear = response.status_code in REFUSED and response.json().get("detail")
                    return "refused" if is_clear else "wrong", response.text[:300]
                (image,) = response.json()["images"]
                return self._check(known, [(point["x"], point["y"]) for point in image["keypoints"]])

            self._repeat(estimate, number, by_client=False)

    def _send_by_client(self, number: int) -> None:
        with Client(self._url, timeout_s=self._deadline_s + _GRACE_S) as client:

            def estimate(known: Known) -> tuple[Outcome, str]:
                try:
                    (image,) = client.estimate("dog", [known.picture]).images
                except Unreachable as error:
                    return "broken", str(error)
                except APIError as error:
                    return "refused" if error.status in REFUSED else "wrong", f"{error.status} {error.detail}"
                return self._check(known, [(point.x, point.y) for point in image.keypoints])

            self._repeat(estimate, number, by_client=True)

    def _check(self, known: Known, keypoints: Sequence[tuple[float, float]]) -> tuple[Outcome, str]:
        return ("right", "") if known.is_right(np.array(keypoints)) else ("wrong", f"keypoints {keypoints}")

    def _repeat(self, estimate: Callable[[Known], tuple[Outcome, str]], number: int, *, by_client: bool) -> None:
        while not self._stop.is_set():
            known = self._known[number % len(self._known)]
            number += 1
            started = time.monotonic()
            outcome, detail = estimate(known)
            self._answers.append(Answer(started, time.monotonic(), by_client, outcome, detail))
            self._stop.wait(self._pause_s if outcome == "right" else _PAUSE_AFTER_REFUSAL_S)


def count(answers: Sequence[Answer]) -> Counter[str]:
    """Return how many answers there are of each outcome."""
    return Counter(answer.outcome for answer in answers)

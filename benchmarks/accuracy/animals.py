"""Count how often the animals of a made video are swapped when they meet.

    python -m benchmarks.accuracy.animals --animals 2 --frames 6000 --looks equal --seed 0

Animals with bodies that bend walk through an arena, towards places and towards each other; where they meet they touch,
push past and climb over each other. What is known: where each is in every frame, and when bodies touch. The video is
given to the tracker frame by frame, as an estimate does it, and the result is printed as JSON:

- "meetings": times in which bodies touch, until all have been apart for five frames; "swaps": those after which a track
  that followed one animal of the meeting follows another one, and "swaps_percent" of the meetings;
- "right_percent": of all animals in all frames, those with the box of the track that follows them most of the time;
- "found_percent": of all animals in all frames, those with a box whose centre is within half a body length,
  "centre_percent" their mean distance in percent of the body length, and "invented": boxes that are further from
  every animal;
- "frames_per_s": of the tracker.

``--looks`` is equal, or different: of other shades and sizes. ``--write OUT.mp4`` writes the video instead.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.media.animals import AnimalLocator
from service.contract.media.motion import Track

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

SIZE = (320, 240)
LENGTH = 40.0  # of a body without its tail, px
_NODES = 9
_TAIL = 5
_RADII = LENGTH / 40 * np.array([2.5, 4.5, 5.5, 6.5, 7.5, 8.0, 8.0, 7.0, 4.5])
_SCALE = 16
_APART = 5  # frames


@dataclass(frozen=True)
class Look:
    """Colour (R, G, B) and size of an animal."""

    colour: tuple[int, int, int] = (45, 42, 40)
    size: float = 1.0


EQUAL = (Look(),) * 3
DIFFERENT = (Look(), Look((92, 64, 50), 1.0), Look((60, 66, 84), 0.85))


class Animal:
    """A chain of discs that follows its head."""

    def __init__(self, place: Array, look: Look, rng: np.random.Generator) -> None:
        self.look, self._rng = look, rng
        self.angle = float(rng.uniform(0, 2 * np.pi))
        step = LENGTH / (_NODES - 1) * look.size
        ahead = np.array([np.cos(self.angle), np.sin(self.angle)])
        self.chain = place - np.arange(_NODES + _TAIL)[:, None] * step * ahead
        self._step, self._speed, self._turn, self.goal = step, 1.0, 0.0, place

    @property
    def body(self) -> Array:
        """Centres of the discs, without the tail's."""
        return self.chain[:_NODES]

    @property
    def radii(self) -> Array:
        """Radii of the discs."""
        return _RADII * self.look.size

    def move(self, others: Sequence[Animal]) -> None:
        """Go one frame on: towards the goal, slower and pushed aside by the bodies of others."""
        rng = self._rng
        if np.linalg.norm(self.goal - self.chain[0]) < 15 or rng.random() < 0.01:
            self._choose(others)
        pull = self.goal - self.chain[0]
        bearing = (np.arctan2(pull[1], pull[0]) - self.angle + np.pi) % (2 * np.pi) - np.pi
        self._turn = 0.85 * self._turn + 0.02 * bearing + rng.normal(0, 0.03)
        self.angle += float(np.clip(self._turn, -0.25, 0.25))
        self._speed = float(np.clip(self._speed + 0.08 * (1.6 - self._speed) + rng.normal(0, 0.25), 0.0, 5.0))
        push = np.zeros(2)
        for other in others:
            apart = self.chain[0] - other.body
            depth = self.radii[2] + other.radii - np.linalg.norm(apart, axis=1)
            for k in np.flatnonzero(depth > 0):
                push += 0.08 * depth[k] * apart[k] / (np.linalg.norm(apart[k]) + 1e-6)
        head = self.chain[0] + self._speed * np.array([np.cos(self.angle), np.sin(self.angle)]) + np.clip(push, -2, 2)
        inside = np.clip(head, 12, np.subtract(SIZE, 12))
        if (inside != head).any():
            self._choose(others)
            self.angle += rng.choice([-1, 1]) * 0.2
        self.chain[0] = inside
        for k in range(1, len(self.chain)):
            back = self.chain[k] - self.chain[k - 1]
            self.chain[k] = self.chain[k - 1] + self._step * back / (np.linalg.norm(back) + 1e-9)

    def _choose(self, others: Sequence[Animal]) -> None:
        if others and self._rng.random() < 0.5:
            self.goal = others[self._rng.integers(len(others))].body[self._rng.integers(_NODES)].copy()
        else:
            self.goal = self._rng.uniform((30, 30), np.subtract(SIZE, 30))


class World:
    """An arena with its animals: frames, and the truth about them."""

    def __init__(self, looks: Sequence[Look], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        xs, ys = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
        floor = 165 + 20 * np.sin(xs / 60) + 15 * ys / SIZE[1] + 12 * ((xs // 40 + ys // 60) % 2)
        self._floor = np.repeat(floor[..., None], 3, axis=2).astype(np.uint8)
        places = self._rng.uniform((60, 60), np.subtract(SIZE, 60), (len(looks), 2))
        self.animals = [Animal(place, look, self._rng) for place, look in zip(places, looks, strict=True)]
        self._order = list(range(len(looks)))

    def step(self) -> tuple[Pixels, Array, NDArray[np.bool_]]:
        """Return the next frame (H, W, 3), the centres of the bodies (N, 2), and which of them touch (N, N)."""
        for animal in self.animals:
            animal.move([other for other in self.animals if other is not animal])
        if self._rng.random() < 0.02:
            self._rng.shuffle(self._order)
        centres = np.array([np.average(each.body, axis=0, weights=each.radii**2) for each in self.animals])
        touch = np.zeros((len(self.animals),) * 2, bool)
        for i, one in enumerate(self.animals):
            for j, other in enumerate(self.animals[:i]):
                gaps = np.linalg.norm(one.body[:, None] - other.body, axis=-1) - one.radii[:, None] - other.radii
                touch[i, j] = touch[j, i] = gaps.min() < 1
        return self._draw(), centres, touch

    def _draw(self) -> Pixels:
        image = self._floor.copy()
        for index in self._order:
            animal = self.animals[index]
            points = np.rint(animal.chain * _SCALE).astype(int)
            light = animal.look.colour
            for start, end in zip(points[_NODES - 1 :], points[_NODES:], strict=False):
                cv2.line(image, start.tolist(), end.tolist(), light, 1, cv2.LINE_AA, 4)
            for k in range(_NODES - 1):
                for share in (0.0, 0.5):
                    place = points[k] * (1 - share) + points[k + 1] * share
                    radius = animal.radii[k] * (1 - share) + animal.radii[k + 1] * share
                    centre = np.rint(place).astype(int).tolist()
                    cv2.circle(image, centre, round(radius * _SCALE), light, -1, cv2.LINE_AA, 4)
        noise = 3 * self._rng.standard_normal(image.shape[:2], np.float32)
        return np.clip(cv2.GaussianBlur(image, (3, 3), 0) + noise[..., None], 0, 255).astype(np.uint8)


def find_meetings(touches: NDArray[np.bool_]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield first and last frame of each meeting and the animals of it, from which of them touch (T, N, N)."""
    any_touch = touches.any((1, 2))
    frames = np.flatnonzero(any_touch)
    for part in np.split(frames, np.flatnonzero(np.diff(frames) > _APART) + 1):
        if len(part):
            first, last = int(part[0]), int(part[-1])
            yield first, last, np.flatnonzero(touches[first : last + 1].any((0, 1))).tolist()


def match(centres: Array, found: Array) -> list[int]:
    """Return the track of each animal (N, 2) that fits best; tracks are NaN where they have no box."""
    distance = np.nan_to_num(np.linalg.norm(centres[:, None] - found, axis=-1), nan=1e6)
    orders = list(permutations(range(len(found)), len(centres)))
    return list(min(orders, key=lambda order: sum(distance[i, k] for i, k in enumerate(order))))


def score(centres: Array, touches: NDArray[np.bool_], found: Array) -> dict[str, float]:
    """Return the figures of tracks (T, N, 2), NaN without a box, for animals (T, N, 2) of which some touch."""
    count = len(centres)
    meetings = swaps = 0
    for first, last, animals in find_meetings(touches):
        if first < 1 or last + _APART >= count:
            continue
        before, after = match(centres[first - 1], found[first - 1]), match(centres[last + 3], found[last + 3])
        meetings += 1
        swaps += any(before[animal] != after[animal] for animal in animals)
    distance = np.linalg.norm(centres[:, :, None] - found[:, None], axis=-1)  # (T, animals, tracks)
    near = np.nan_to_num(distance, nan=1e6)
    orders = list(permutations(range(found.shape[1]), centres.shape[1]))
    right = max(float(np.mean([near[:, i, k] < LENGTH / 2 for i, k in enumerate(order)])) for order in orders)
    best = near.min(2)
    return {
        "meetings": meetings,
        "swaps": swaps,
        "swaps_percent": round(100 * swaps / max(1, meetings), 1),
        "right_percent": round(100 * right, 1),
        "found_percent": round(100 * float((best < LENGTH / 2).mean()), 1),
        "centre_percent": round(100 * float(best[best < LENGTH / 2].mean()) / LENGTH, 1),
        "invented": int((np.nanmin(np.where(np.isnan(distance), 1e6, distance), axis=1) > LENGTH / 2).sum())
        - int(np.isnan(found[..., 0]).sum()),
    }


def centres_of(tracks: Sequence[Track]) -> Array:
    """Return the centres of boxes (T, N, 2), NaN without one, in pixel coordinates."""
    nothing = (np.nan, np.nan)
    return np.array(
        [
            [(box[0] + box[2] / 2 - 0.5, box[1] + box[3] / 2 - 0.5) if box else nothing for box in track.boxes]
            for track in tracks
        ]
    ).swapaxes(0, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    looks = (EQUAL if options.looks == "equal" else DIFFERENT)[: options.animals]
    world = World(looks, options.seed)
    if options.write:
        _write(options.write, (world.step()[0] for _ in range(options.frames)))
        return 0
    centres, touches = [], []
    locator = AnimalLocator(io.BytesIO())
    for _ in range(options.frames):
        pixels, places, touch = world.step()
        locator.add(Image.fromarray(pixels))
        centres.append(places)
        touches.append(touch)
    started = time.perf_counter()
    tracks = locator.locate_all(options.animals)
    seconds = time.perf_counter() - started
    head = {"animals": options.animals, "looks": options.looks, "seed": options.seed, "frames": options.frames}
    figures = score(np.array(centres), np.array(touches), centres_of(tracks))
    print(json.dumps({**head, **figures, "frames_per_s": round(options.frames / seconds)}))
    return 0


def _write(path: Path, frames: Iterator[Pixels]) -> None:
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        output.mux(stream.encode(None))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy.animals", description=__doc__.split("\n")[0])
    parser.add_argument("--animals", type=int, choices=(2, 3), default=2)
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--looks", choices=("equal", "different"), default="equal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="OUT.mp4")
    return parser


if __name__ == "__main__":
    sys.exit(main())

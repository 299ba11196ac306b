"""Track several animals before a fixed camera and keep their identities where they touch.

Blobs are assigned to animals by their expected positions, with scipy's ``linear_sum_assignment``. A blob that several
animals share is divided: a bent ellipse for each is fitted to its pixels, starting from the animal's last position,
motion and shape (:mod:`.bodies`). The animals of a meeting are also followed backwards from its end, and both
directions are joined at the lowest cost, which decides their identities after it. Finally, identities of animals that
differ in colour or size are corrected from the frames in which none of them touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bodies import VALUES, Shape, fit_bodies, measure_axis, nearest_angle

Floats = NDArray[np.float64]

_NEW = 0.5  # of the usual area: a blob that a new animal is in has at least this
_REACH = 1.5  # body lengths from the place that is expected to the blob that the animal is in
_ANOTHER, _CROWDED = 0.05, 0.25  # body lengths that sharing a blob costs, and one with too small an area for it
_FULL = 1.3  # times the area of a blob, that animals in it may have together before it is crowded
_KEPT, _SEEN = 0.95, 0.3  # of a velocity: what stays of it in the next frame; the share of the last step in it
_SEEN_SHARED = 0.2  # the same where animals share a blob
_GAP = 2  # frames between two meetings that count as one
_LEAVING = 20  # frames after a meeting in which the motion of animals is learned
_WALK = 0.03  # body lengths a frame, at which it is clear which end of an animal is ahead
_SEEN_AHEAD = 0.15  # of the last step in what is known of that
_HEAD_COST = 12.0  # of an animal that would have turned round
_WAY = 0.5  # weight of the costs of both ways, whose errors resemble each other from frame to frame
_TURN = 0.4  # deviation of an angle where both ways are joined
_SPEED = 0.06  # deviation of a velocity, in body lengths a frame
_DISTINCT = 4.0  # standard deviations between two appearances that count as different
_LEAST_COLOUR, _LEAST_SIZE = 3.0, 0.03  # deviations of looks: levels, and a share of the size
_MOST_ODDS, _SWITCH_ODDS = 30.0, 6.0  # of looks; of motion
_SHORT, _SHORTEST = 5, 2  # frames of a stretch that looks are learned from; in which they count in full

LOOKS = 4  # median red, green and blue, and the root of the area


@dataclass(frozen=True)
class Blobs:
    """The blobs of a frame that are large enough for an animal.

    Attributes:
        areas: in pixels.
        points: (n, 2) of each, x and y of its pixels.
        looks: (B, 4).
        marks: (B, M), what else to keep of an animal that is alone in a blob.
    """

    areas: Sequence[float]
    points: Sequence[Floats]
    looks: Floats
    marks: Floats


class Paths:
    """What is known of N animals in consecutive frames; NaN or -1 where an animal is not found.

    Attributes:
        first: number of the first frame.
        values: (T, N, 5), bodies.
        velocity: (T, N, 2), a frame, in the direction in which they are followed.
        ahead: (T, N), whether an animal moves along its axis, from -1 to 1; backwards if it is followed backwards.
        blob: (T, N), number of the blob.
        alone: (T, N), whether no other animal is in it.
        cost, wrong: (T, N), of the fit, see :func:`.bodies.fit_bodies`.
        looks, marks: (T, N, 4) and (T, N, M), of animals that are alone.
    """

    def __init__(self, first: int, last: int, animals: int, marks: int) -> None:
        shape = (last + 1 - first, animals)
        self.first = first
        self.values, self.velocity = np.full((*shape, VALUES), np.nan), np.zeros((*shape, 2))
        self.ahead = np.zeros(shape)
        self.blob, self.alone = np.full(shape, -1), np.zeros(shape, bool)
        self.cost, self.wrong = np.zeros(shape), np.zeros(shape)
        self.looks, self.marks = np.full((*shape, LOOKS), np.nan), np.full((*shape, marks), np.nan)

    @property
    def last(self) -> int:
        """Number of the last frame."""
        return self.first + len(self.blob) - 1

    @property
    def found(self) -> NDArray[np.bool_]:
        """Whether an animal is found (T, N)."""
        return self.blob >= 0

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        path = self.values, self.velocity, self.ahead, self.blob, self.alone
        return *path, self.cost, self.wrong, self.looks, self.marks

    def reorder(self, first: int, animals: Sequence[int], order: Sequence[int]) -> None:
        """Let each of some animals be another one of them from a frame on."""
        for array in self._arrays():
            array[first - self.first :, animals] = array[first - self.first :, [animals[place] for place in order]]

    def copy(self, other: Paths, first: int, last: int, animals: Sequence[int], order: Sequence[int]) -> None:
        """Take some frames from paths of these animals alone, in their order there."""
        for mine, its in zip(self._arrays(), other._arrays(), strict=True):
            part = its[first - other.first : last + 1 - other.first, order]
            mine[first - self.first : last + 1 - self.first, animals] = part


def track(count: int, blobs_of: Callable[[int], Blobs], animals: int, marks: int, shape: Shape) -> Paths:
    """Track up to ``animals`` animals through frames 0 to ``count`` - 1."""
    paths = Paths(0, count - 1, animals, marks)
    _Follower(blobs_of, paths, shape).follow(range(count))
    meetings = find_meetings(paths)
    now_at = list(range(animals))  # which of the animals is the one that a number meant in `meetings`
    for first, last, group in meetings:
        members = [now_at[animal] for animal in group]
        order = _resolve(paths, first, last, members, blobs_of, shape)
        moved = {members[place]: members[number] for number, place in enumerate(order)}
        now_at = [moved.get(animal, animal) for animal in now_at]
    _correct_identities(paths)
    return paths


class _Follower:
    """A follower of animals from frame to frame, forwards or backwards."""

    def __init__(self, blobs_of: Callable[[int], Blobs], paths: Paths, shape: Shape) -> None:
        self._blobs_of, self._paths, self._shape = blobs_of, paths, shape
        animals = paths.blob.shape[1]
        self.values, self.velocity = np.full((animals, VALUES), np.nan), np.zeros((animals, 2))
        self.ahead = np.zeros(animals)
        self.points: list[Floats | None] = [None] * animals  # of the blob that each was last alone in

    def follow(self, frames: Iterable[int]) -> None:
        """Follow the animals through frames in this order, and keep what is found."""
        for number in frames:
            blobs = self._blobs_of(number)
            own = self._assign(blobs)
            for blob in sorted(set(own) - {-1}):
                inside = [animal for animal, its in enumerate(own) if its == blob]
                row = number - self._paths.first
                if len(inside) > 1:
                    self._divide(blobs.points[blob], inside, row)
                else:
                    self._see_alone(blobs, blob, inside[0], row)
                self._paths.blob[row, inside] = blob
                self._paths.values[row, inside] = self.values[inside]
                self._paths.velocity[row, inside] = self.velocity[inside]
                self._paths.ahead[row, inside] = self.ahead[inside]
            self.velocity[[blob < 0 for blob in own]] *= 0.5

    def _assign(self, blobs: Blobs) -> list[int]:
        """Return the blob of each animal, -1 for one that is not found."""
        from scipy.optimize import linear_sum_assignment

        own, length = [-1] * len(self.values), self._shape.length
        live = np.flatnonzero(np.isfinite(self.values[:, 0])).tolist()
        expected = self.values[:, :2] + self.velocity * _KEPT
        slots, costs = [], []  # a blob has one for each animal that may be in it
        for blob, (area, points) in enumerate(zip(blobs.areas, blobs.points, strict=True)):
            distance = np.array([np.linalg.norm(points - expected[animal], axis=1).min() for animal in live])
            for others in range(min(len(live), 1 + round(area / self._shape.area))):
                is_crowded = (others + 1) * self._shape.area > _FULL * area
                slots.append(blob)
                costs.append(distance + length * ((_CROWDED if is_crowded else _ANOTHER) if others else 0))
        if slots:
            table = np.concatenate([np.stack(costs, axis=1), np.full((len(live),) * 2, _REACH * length)], axis=1)
            for row, column in zip(*linear_sum_assignment(table), strict=True):
                if column < len(slots):
                    own[live[row]] = slots[column]
        free = [animal for animal, blob in enumerate(own) if blob < 0]
        for blob in np.argsort(-np.array(blobs.areas)).tolist():
            if free and blob not in own and blobs.areas[blob] >= _NEW * self._shape.area:
                apart = np.linalg.norm(self.values[free, :2] - blobs.points[blob].mean(0), axis=1)
                animal = free.pop(int(np.nan_to_num(apart, nan=1e9).argmin()))  # a lost one before a new one
                self.values[animal] = np.nan
                own[animal] = blob
        return own

    def _see_alone(self, blobs: Blobs, blob: int, animal: int, row: int) -> None:
        points, before = blobs.points[blob], self.values[animal]
        mean, angle, _ = measure_axis(points)
        if np.isfinite(before[0]):
            angle = nearest_angle(angle, float(before[2]))
            self.velocity[animal] += _SEEN * (mean - before[:2] - self.velocity[animal])
            along = float(self.velocity[animal] @ [np.cos(angle), np.sin(angle)]) / (_WALK * self._shape.length)
            sure = min(abs(along), 1)  # an animal that rests keeps what is known
            self.ahead[animal] += _SEEN_AHEAD * sure * (np.sign(along) - self.ahead[animal])
        else:
            self.velocity[animal] = self.ahead[animal] = 0
        self.values[animal], self.points[animal] = [*mean, angle, 0, 0], points
        self._paths.alone[row, animal] = True
        self._paths.looks[row, animal], self._paths.marks[row, animal] = blobs.looks[blob], blobs.marks[blob]

    def _divide(self, points: Floats, inside: list[int], row: int) -> None:
        for animal in inside:
            alone = self.points[animal]
            if alone is not None:  # the bend of an animal is not measured while it is alone
                self.values[animal] = fit_bodies(alone, self.values[animal, None], self._shape)[0][0]
                self.points[animal] = None
        before = self.values[inside]
        expected = before.copy()
        expected[:, :2] += self.velocity[inside] * _KEPT
        found, cost, wrong = fit_bodies(points, expected, self._shape)
        step = found[:, :2] - before[:, :2]
        self.velocity[inside] = (1 - _SEEN_SHARED) * _KEPT * self.velocity[inside] + _SEEN_SHARED * step
        self.values[inside] = found
        self._paths.cost[row, inside], self._paths.wrong[row, inside] = cost / len(inside), wrong


def find_meetings(paths: Paths) -> list[tuple[int, int, list[int]]]:
    """Return first and last frame of the times in which animals share blobs, and those animals, in order of time."""
    meetings: list[tuple[int, int, set[int]]] = []
    shares = paths.found & ~paths.alone
    for number in np.flatnonzero(shares.any(1)).tolist():
        for blob in set(paths.blob[number, shares[number]].tolist()):
            first, group = number, set(np.flatnonzero(paths.blob[number] == blob).tolist())
            for each in [each for each in meetings if each[1] >= number - _GAP and each[2] & group]:
                meetings.remove(each)
                first, group = min(first, each[0]), group | each[2]
            meetings.append((first, number, group))
    return sorted((first + paths.first, last + paths.first, sorted(group)) for first, last, group in meetings)


def _resolve(
    paths: Paths, first: int, last: int, group: list[int], blobs_of: Callable[[int], Blobs], shape: Shape
) -> Sequence[int]:
    """Follow the animals of a meeting backwards, and join both ways; return the new order of the group from its end."""
    from scipy.optimize import linear_sum_assignment

    before, after = first - 1, last + 1
    stay = range(len(group))
    if before < 0 or after > paths.last or not paths.alone[[before, after]][:, group].all():
        return stay
    start = after  # from some frames later, to learn how they move
    while start < min(after + _LEAVING, paths.last) and paths.alone[start + 1, group].all():
        start += 1
    back = Paths(before, start, len(group), paths.marks.shape[2])
    follower = _Follower(blobs_of, back, shape)
    follower.values = paths.values[start, group]
    follower.follow(range(start, before - 1, -1))
    forward_cost = np.append(0, paths.cost[first:after, group].sum(1).cumsum())
    back_cost = np.append(back.cost[1 : after - before].sum(1)[::-1].cumsum()[::-1], 0)
    best, join, order = np.inf, last, list(stay)
    for place, frame in enumerate(range(before, after)):
        table = _join_costs(paths, frame, group, back, shape)
        if np.isnan(table).any():
            continue
        rows, columns = linear_sum_assignment(table)
        cost = _WAY * (forward_cost[place] + back_cost[place]) + table[rows, columns].sum()
        if cost < best:
            best, join, order = cost, frame, columns.tolist()
    paths.copy(back, join + 1, last, group, order)
    paths.reorder(after, group, order)
    return order


def _join_costs(paths: Paths, frame: int, group: Sequence[int], back: Paths, shape: Shape) -> Floats:
    """Return how unlikely it is that an animal (i) of a frame is one (j) of the next, which is followed backwards."""
    now, later = frame - paths.first, frame + 1 - back.first
    values, velocity, ahead = (array[now, group][:, None] for array in (paths.values, paths.velocity, paths.ahead))
    next_values, coming, behind = back.values[later], back.velocity[later], back.ahead[later]
    step = next_values[..., :2] - values[..., :2] - (velocity - coming) / 2
    turn = next_values[:, 2] - values[..., 2]
    half_turn = turn - np.pi * np.round(turn / np.pi)
    speed = (velocity + coming) / (_SPEED * shape.length)
    heads = _HEAD_COST / 2 * (np.abs(ahead * behind) + np.cos(turn) * ahead * behind)
    place = step / shape.deviations[:2]
    costs: Floats = (place**2).sum(-1) + (half_turn / _TURN) ** 2 + (speed**2).sum(-1) + heads
    return costs


def _correct_identities(paths: Paths) -> None:
    """Correct identities after meetings by appearance, where the animals differ."""
    from scipy.optimize import linear_sum_assignment

    all_alone = paths.alone.all(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], all_alone, [False]])))
    stretches = edges.reshape(-1, 2)  # first frame, and the one after the last
    variances = [paths.looks[start:end].var(axis=0) for start, end in stretches if end - start >= _SHORT]
    if len(stretches) < 2 or not variances:
        return
    least = [_LEAST_COLOUR] * 3 + [_LEAST_SIZE * float(np.nanmedian(paths.looks[..., 3]))]
    spread = np.maximum(np.sqrt(np.mean(variances, axis=(0, 1))), least)
    looks = np.stack([paths.looks[start:end].mean(0) for start, end in stretches]) / spread  # (S, N, 4)
    usual = _learn_looks(looks, np.minimum(np.diff(stretches)[:, 0], 1000).astype(np.float64))
    if usual is None:
        return
    now = linear_sum_assignment(((looks[0][:, None] - usual) ** 2).sum(-1))[1]
    for place in range(1, len(stretches)):
        gap_start, gap_end = int(stretches[place - 1][1]), int(stretches[place][0])
        length = int(stretches[place][1]) - gap_end
        odds = np.minimum(((looks[place][:, None] - usual) ** 2).sum(-1) / 2, _MOST_ODDS) * min(1, length / _SHORTEST)
        odds += _SWITCH_ODDS * (np.arange(len(now)) != now[:, None])
        chosen = linear_sum_assignment(odds)[1]
        if (chosen != now).any():
            closest = _find_closest(paths, gap_start, gap_end, np.flatnonzero(chosen != now))
            order = [int(np.flatnonzero(chosen == identity)[0]) for identity in now]
            paths.reorder(closest, range(len(now)), order)
            looks[place:] = looks[place:, order]


def _find_closest(paths: Paths, first: int, last: int, animals: NDArray[np.int64]) -> int:
    """Return the frame, from the first to the one before the last, in which two of these animals are closest."""
    places = paths.values[first:last, animals, :2]
    apart = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    apart[:, np.arange(len(animals)), np.arange(len(animals))] = np.nan
    nearest = np.nan_to_num(apart, nan=np.inf).min((1, 2), initial=np.inf)
    return first + int(nearest.argmin()) if len(nearest) else last


def _learn_looks(looks: Floats, weights: Floats) -> Floats | None:
    """Return the mean appearance (N, 4) of each animal from stretches (S, N, 4) of unknown identity.

    Indistinguishable animals share one; None if all are. Stretches are assigned and averaged in turn.
    """
    from scipy.optimize import linear_sum_assignment

    apart = np.linalg.norm(looks[:, :, None] - looks[:, None], axis=-1) + 1e9 * np.eye(looks.shape[1])
    usual = looks[int((apart.min((1, 2)) * (weights >= _SHORT)).argmax())]
    ordered = looks
    for _ in range(10):
        order = np.stack([linear_sum_assignment(((usual[:, None] - own) ** 2).sum(-1))[1] for own in looks])
        ordered = np.take_along_axis(looks, order[..., None], axis=1)
        usual = np.average(ordered, axis=0, weights=weights)
    residual = np.average(((ordered - usual) ** 2).mean((1, 2)), weights=weights) ** 0.5
    alike = np.linalg.norm(usual[:, None] - usual, axis=-1) < _DISTINCT * max(1.0, residual)
    for _ in range(len(usual)):
        alike = alike @ alike
    return None if alike.all() else (alike @ usual) / alike.sum(1)[:, None]

"""Pictures with parts hidden, and how far refinement with the memory finds the hidden keypoints again. Numpy only.

A patch of a grid is hidden by setting it to mid-grey, as the reference picture's patches are in training (the
paper's tests: a random 0.1 to 0.4 of the patches of a 16 x 16 grid, or a centred square that grows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, apply_maps, check_split

Images = NDArray[np.uint8]
Hidden = NDArray[np.bool_]
# squares uint8 (N, S, S, 3) and a number of refinement steps T to keypoints (N, T + 1, K, 2) in [0, 1]
Predict = Callable[[Images, int], Array]

MID_GREY = 128
GRID = 16
RANDOM_RATIOS = (0.1, 0.2, 0.3, 0.4)
CENTRE_PATCHES = (2, 4, 6, 8, 10, 12)


def random_mask(images: Images, ratio: float, grid: int = GRID, seed: int = 0) -> Images:
    """Squares (N, S, S, 3) with the patches of :func:`random_patches` hidden; a copy."""
    return cover(images, random_patches(len(images), ratio, grid, seed))


def centre_mask(images: Images, patches: int, grid: int = GRID) -> Images:
    """Squares (N, S, S, 3) with the patches of :func:`centre_patches` hidden; a copy."""
    return cover(images, centre_patches(len(images), patches, grid))


def random_patches(count: int, ratio: float, grid: int = GRID, seed: int = 0) -> Hidden:
    """Which patches of each picture are hidden: round(ratio * grid²) of them, drawn without replacement.

    Picture i has the same order of patches at every ratio, whatever other pictures there are, so a higher ratio hides
    what a lower one hides and more.

    Returns:
        (N, grid, grid), row by row from the top.

    Raises:
        ValueError: a ratio outside of [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}; expected 0 to 1")
    hidden = np.zeros((count, grid * grid), dtype=np.bool_)
    for picture in range(count):
        order = np.random.default_rng((seed, picture)).permutation(grid * grid)
        hidden[picture, order[: round(ratio * grid * grid)]] = True
    return hidden.reshape(count, grid, grid)


def centre_patches(count: int, patches: int, grid: int = GRID) -> Hidden:
    """A centred square of ``patches`` x ``patches`` hidden in each picture, (N, grid, grid).

    Raises:
        ValueError: more patches than the grid has, or a number that can't be centred on it.
    """
    first, odd = divmod(grid - patches, 2)
    if not 0 <= patches <= grid or odd:
        raise ValueError(
            f"a square of {patches} patches can't be centred on {grid}; expected 0 to {grid}, as even or odd"
        )
    hidden = np.zeros((count, grid, grid), dtype=np.bool_)
    hidden[:, first : first + patches, first : first + patches] = True
    return hidden


def cover(images: Images, hidden: Hidden) -> Images:
    """Squares with the hidden patches set to mid-grey; a copy.

    Args:
        images: uint8 (N, S, S, 3).
        hidden: (N, grid, grid); where the grid does not divide S, patches differ by a pixel.

    Raises:
        ValueError: other shapes, or a grid finer than the pixels.
    """
    side, grid = images.shape[1], hidden.shape[-1]
    if images.ndim != 4 or images.shape[2] != side or hidden.shape != (len(images), grid, grid) or grid > side:
        raise ValueError(
            f"images {images.shape} and patches {hidden.shape}; expected (N, S, S, 3) and (N, G, G), G <= S"
        )
    patch = np.arange(side) * grid // side
    mask = hidden[:, patch[:, None], patch[None, :]]
    return np.where(mask[..., None], np.uint8(MID_GREY), images)


def hidden_points(points: Array, hidden: Hidden) -> Hidden:
    """Which points (N, J, 2) in [0, 1] lie in a hidden patch, (N, J); none outside of the square does."""
    grid = hidden.shape[-1]
    inside = np.logical_and.reduce((points >= 0) & (points < 1), axis=-1)
    patch = (np.where(np.expand_dims(inside, -1), points, 0) * grid).astype(np.int64)
    found: Hidden = hidden[np.arange(len(points))[:, None], patch[..., 1], patch[..., 0]] & inside
    return found


def levels(count: int, seed: int = 0) -> Iterator[tuple[str, float, Hidden]]:
    """Every level of the test as kind, level and hidden patches (N, GRID, GRID): "clean", "random", "centre".

    The level is the share of the patches at random, and the side in patches of the centred square.
    """
    yield "clean", 0.0, np.zeros((count, GRID, GRID), dtype=np.bool_)
    for ratio in RANDOM_RATIOS:
        yield "random", ratio, random_patches(count, ratio, seed=seed)
    for patches in CENTRE_PATCHES:
        yield "centre", float(patches), centre_patches(count, patches)


def occlusion_table(
    predict: Predict,
    images: Images,
    labels: Array,
    visibility: Array,
    maps: Array,
    refine_steps: int = 3,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The error at each refinement iteration, at each level of occlusion.

    Args:
        predict: squares and T to keypoints (N, T + 1, K, 2) in **[0, 1]**, the first unrefined.
        images: held-out squares, uint8 (N, S, S, 3).
        labels: (N, J, 2) in [0, 1].
        visibility: (N, J), non-zero where a label counts; what the mask hides counts too.
        maps: of :func:`model.scoring.linear_maps.fit_maps`, fitted on clean training pictures without refinement.
        refine_steps: T.
        seed: of the random masks.

    Returns:
        :func:`occlusion_row` of each level, "clean" first.
    """
    rows = []
    for kind, level, hidden in levels(len(images), seed):
        trajectory = np.asarray(predict(cover(images, hidden), refine_steps), dtype=np.float64)
        if trajectory.ndim != 4 or trajectory.shape[1] != refine_steps + 1:
            raise ValueError(f"predicted {trajectory.shape}; expected (N, {refine_steps + 1}, K, 2)")
        rows.append(occlusion_row(kind, level, hidden, trajectory, labels, visibility, maps))
    return rows


def occlusion_row(
    kind: str, level: float, hidden: Hidden, trajectory: Array, labels: Array, visibility: Array, maps: Array
) -> dict[str, Any]:
    """The errors at one level.

    Returns:
        "kind", "level", "errors" at iterations 0 to T, in percent of the side, over all visible labels;
        "hidden_errors", the same over those in a hidden patch (None where there is none), and "hidden_keypoints",
        how many these are.
    """
    apart = np.zeros((trajectory.shape[1], *visibility.shape))
    for iteration in range(trajectory.shape[1]):
        check_split(trajectory[:, iteration], labels, visibility)
        apart[iteration] = np.linalg.norm(apply_maps(trajectory[:, iteration], maps) - labels, axis=-1)
    seen = visibility > 0
    covered = hidden_points(np.where(seen[..., None], labels, -1), hidden) & seen
    return {
        "kind": kind,
        "level": level,
        "errors": (100 * apart[:, seen].mean(1)).tolist(),
        "hidden_errors": (100 * apart[:, covered].mean(1)).tolist() if covered.any() else None,
        "hidden_keypoints": int(covered.sum()),
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table says of refinement: whether it lowers the error at every occluded level, and what it does to clean
    pictures; the last iteration against the first.

    Returns:
        "lower_at_every_level", "levels_not_lower" (as [kind, level]) and "clean_change", in points of percent.
    """
    change = {(row["kind"], row["level"]): row["errors"][-1] - row["errors"][0] for row in rows}
    worse = [list(key) for key, value in change.items() if key[0] != "clean" and value >= 0]
    clean = [value for key, value in change.items() if key[0] == "clean"]
    return {
        "lower_at_every_level": not worse and len(change) > len(clean),
        "levels_not_lower": worse,
        "clean_change": clean[0] if clean else None,
    }

"""Occlude pictures, and measure how well refinement with the memory recovers the hidden keypoints. Numpy only.

Patches of a grid are set to mid-grey, as in training. As in the paper's tests, a random share (0.1 to 0.4) of the
patches of a 16 x 16 grid is hidden, or a centred square of growing size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, apply_maps, check_split

Images = NDArray[np.uint8]
Hidden = NDArray[np.bool_]

MID_GREY = 128
GRID = 16
RANDOM_RATIOS = (0.1, 0.2, 0.3, 0.4)
CENTRE_PATCHES = (2, 4, 6, 8, 10, 12)


def random_patches(count: int, ratio: float, grid: int = GRID, seed: int = 0) -> Hidden:
    """Choose round(ratio * grid²) patches of each picture to hide, (N, grid, grid); ratio in [0, 1].

    The order of picture i's patches depends only on the seed and i, so a higher ratio hides all that a lower one does.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}; expected 0 to 1")
    hidden = np.zeros((count, grid * grid), dtype=np.bool_)
    for picture in range(count):
        order = np.random.default_rng((seed, picture)).permutation(grid * grid)
        hidden[picture, order[: round(ratio * grid * grid)]] = True
    return hidden.reshape(count, grid, grid)


def centre_patches(count: int, patches: int, grid: int = GRID) -> Hidden:
    """Choose a centred square of ``patches`` x ``patches`` to hide in each picture, (N, grid, grid)."""
    first, odd = divmod(grid - patches, 2)
    if not 0 <= patches <= grid or odd:
        raise ValueError(
            f"a square of {patches} patches can't be centred on {grid}; expected 0 to {grid}, even or odd like it"
        )
    hidden = np.zeros((count, grid, grid), dtype=np.bool_)
    hidden[:, first : first + patches, first : first + patches] = True
    return hidden


def cover(images: Images, hidden: Hidden) -> Images:
    """Return a copy of squares (N, S, S, 3) with the hidden patches (N, grid, grid) set to mid-grey.

    Patches differ by a pixel if the grid does not divide S. Raises ValueError for other shapes, or if grid > S.
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
    """Return which points (N, J, 2) in [0, 1] lie in a hidden patch, (N, J); points outside of the square do not."""
    grid = hidden.shape[-1]
    inside = np.logical_and.reduce((points >= 0) & (points < 1), axis=-1)
    patch = (np.where(np.expand_dims(inside, -1), points, 0) * grid).astype(np.int64)
    found: Hidden = hidden[np.arange(len(points))[:, None], patch[..., 1], patch[..., 0]] & inside
    return found


def levels(count: int, seed: int = 0) -> Iterator[tuple[str, float, Hidden]]:
    """Yield the levels of the test: kind ("clean", "random" or "centre"), level and hidden patches (N, GRID, GRID).

    The level is the share of random patches, or the side of the centred square in patches.
    """
    yield "clean", 0.0, np.zeros((count, GRID, GRID), dtype=np.bool_)
    for ratio in RANDOM_RATIOS:
        yield "random", ratio, random_patches(count, ratio, seed=seed)
    for patches in CENTRE_PATCHES:
        yield "centre", float(patches), centre_patches(count, patches)


def occlusion_row(
    kind: str, level: float, hidden: Hidden, trajectory: Array, labels: Array, visibility: Array, maps: Array
) -> dict[str, Any]:
    """Return the errors at one level of :func:`levels`.

    Args:
        hidden: patches (N, G, G) that were hidden.
        trajectory: keypoints (N, T + 1, K, 2) in [0, 1], the first unrefined.
        labels: (N, J, 2) in [0, 1].
        visibility: (N, J), non-zero where a label counts, also where a patch hides it.
        maps: from :func:`model.scoring.linear_maps.fit_maps`, fitted on clean training pictures without refinement.

    Returns:
        "kind", "level", "errors" at iterations 0 to T, in percent of the side, over all visible labels;
        "hidden_errors", the same over labels in a hidden patch (None if there are none), and "hidden_keypoints",
        their number.
    """
    distance = np.zeros((trajectory.shape[1], *visibility.shape))
    for iteration in range(trajectory.shape[1]):
        check_split(trajectory[:, iteration], labels, visibility)
        distance[iteration] = np.linalg.norm(apply_maps(trajectory[:, iteration], maps) - labels, axis=-1)
    seen = visibility > 0
    covered = hidden_points(np.where(seen[..., None], labels, -1), hidden) & seen
    return {
        "kind": kind,
        "level": level,
        "errors": (100 * distance[:, seen].mean(1)).tolist(),
        "hidden_errors": (100 * distance[:, covered].mean(1)).tolist() if covered.any() else None,
        "hidden_keypoints": int(covered.sum()),
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the last refinement iteration with the unrefined poses.

    Returns:
        "lower_at_every_level", whether refinement lowers the error at every occluded level, "levels_not_lower" as
        [kind, level], and "clean_change", the change on clean pictures in percentage points.
    """
    change = {(row["kind"], row["level"]): row["errors"][-1] - row["errors"][0] for row in rows}
    worse = [list(key) for key, value in change.items() if key[0] != "clean" and value >= 0]
    clean = [value for key, value in change.items() if key[0] == "clean"]
    return {
        "lower_at_every_level": not worse and len(change) > len(clean),
        "levels_not_lower": worse,
        "clean_change": clean[0] if clean else None,
    }

"""Measure lower bounds of the error on a set: the errors of the labels themselves, made worse in known ways.

    python -m benchmarks.accuracy.limits --set mj_dog.npz [--steps 1200] [--json]

Labelled keypoints take the place of learned ones and are mapped to the labels by the headline's linear map with bias:

``sides by position``
    Of the two limbs of a pair the one that reaches further right in the picture counts as the first, on either side
    of the body. A method that reconstructs pictures from links places keypoints in this way: swapping two limbs that
    look alike costs it nothing, and no linear map can swap them back.
``sides by position, 2 % noise``
    The same, with normal noise of 2 % of the image side on each coordinate.
``one side missing``
The limbs of the first side only.
``supervised``
    The preset's own regressor trained on the labels for ``--steps`` steps, with the same batch size and learning rate:
    an estimate of the error that is possible at this size. Not mapped.

Limbs are the parts of the set's skeleton whose names have a partner on the other side.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.scoring.linear_maps import apply_maps, error_percent, fit_maps
from model.scoring.protocols import sides

from .packs import Pack, read_pack

NOISE = 0.02  # of the image side
Limbs = list[tuple[list[int], list[int]]]


def limbs(pack: Pack) -> Limbs:
    """Return the pairs of limbs of a set: joints of the first side, and their partners, from the body outwards.

    Raises:
        ValueError: the set has no skeleton, or no sides by its keypoints' names.
    """
    partner = sides(pack.keypoint_names)
    if pack.edges is None or partner is None:
        raise ValueError(f"{pack.name} has no skeleton with two sides; expected edges, and names of left and right")
    first = {joint for joint, other in enumerate(partner) if joint < other}
    found: Limbs = []
    for root in sorted(first):
        if any(root in chain for chain, _ in found):
            continue
        chain = [root]
        for joint in chain:
            near = {b if a == joint else a for a, b in pack.edges if joint in (a, b)}
            chain += sorted((near & first) - set(chain))
        found.append((chain, [partner[joint] for joint in chain]))
    return found


def by_place(keypoints: NDArray[np.float64], pairs: Limbs) -> NDArray[np.float64]:
    """Reorder poses (N, J, 2) so that the limb of each pair that reaches further right comes first."""
    ordered = keypoints.copy()
    for ours, theirs in pairs:
        swapped = (keypoints[:, ours[-1], 0] < keypoints[:, theirs[-1], 0])[:, None, None]
        ordered[:, ours] = np.where(swapped, keypoints[:, theirs], keypoints[:, ours])
        ordered[:, theirs] = np.where(swapped, keypoints[:, ours], keypoints[:, theirs])
    return ordered


def mapped_error(pack: Pack, train: NDArray[np.float64], test: NDArray[np.float64]) -> float:
    """Return the headline error, in percent of the image side, of keypoints in [0, 1]."""
    maps = fit_maps(train, pack.train.keypoints, pack.train.visibility)
    return error_percent(apply_maps(test, maps), pack.test.keypoints, pack.test.visibility)


def label_limits(pack: Pack) -> dict[str, float]:
    """Return the rows that need no training."""
    pairs = limbs(pack)
    rng = np.random.default_rng(0)
    placed = [by_place(part.keypoints, pairs) for part in (pack.train, pack.test)]
    noisy = [points + rng.normal(0, NOISE, points.shape) for points in placed]
    missing = {joint for _, theirs in pairs for joint in theirs}
    kept = [joint for joint in range(len(pack.keypoint_names)) if joint not in missing]
    return {
        "sides by position": mapped_error(pack, placed[0], placed[1]),
        f"sides by position, {NOISE:.0%} noise": mapped_error(pack, noisy[0], noisy[1]),
        "one side missing": mapped_error(pack, pack.train.keypoints[:, kept], pack.test.keypoints[:, kept]),
    }


def supervised_error(pack: Pack, steps: int) -> float:
    """Return the error of ``compact``'s regressor, one attention map a labelled keypoint, trained on the labels."""
    import torch

    from model.config import resolve
    from model.data import iterate_batches, to_tensor
    from model.network.blocks import autocast, channels_last, pick_device
    from model.network.pose_prior_learner import KeypointRegressor
    from model.training.schedules import learning_rate

    config = resolve("compact", {"steps": steps, "method": "autolink", "num_keypoints": len(pack.keypoint_names)})
    device = pick_device("cpu")
    torch.manual_seed(config.seed)
    network = channels_last(KeypointRegressor(config), device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rng, order = np.random.default_rng(config.seed), np.empty(0, dtype=np.int64)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        if len(order) < config.batch_size:
            order = np.concatenate((order, rng.permutation(len(pack.train.images))))
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        goal = torch.from_numpy(pack.train.keypoints[chosen]).float() * 2 - 1
        seen = torch.from_numpy(pack.train.visibility[chosen]).float().unsqueeze(-1)
        with autocast(config.precision, device):
            found = network(to_tensor(pack.train.images[chosen], device), None).keypoints
        loss = ((found - goal).abs() * seen).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad(), autocast(config.precision, device):
        poses = [network(to_tensor(batch, device), None).keypoints for batch in iterate_batches(pack.test.images, 64)]
    return error_percent(torch.cat(poses).double().numpy() / 2 + 0.5, pack.test.keypoints, pack.test.visibility)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 2 if the arguments or files are not valid."""
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.limits",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", type=Path, required=True, metavar="PACK.npz")
    parser.add_argument("--steps", type=int, default=0, help="steps of the supervised regressor (default: 0, no row)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        pack = read_pack(options.set, 64)
        rows: dict[str, Any] = label_limits(pack)
        if options.steps:
            import torch

            torch.set_num_threads(options.threads)
            rows[f"supervised, {options.steps:,} steps"] = supervised_error(pack, options.steps)
    except (ValueError, OSError) as error:
        print(f"limits: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"set": pack.name, "error_percent": rows}))
    else:
        for name, error in rows.items():
            print(f"{name:32} {error:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())

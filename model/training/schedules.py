"""Values that change over the steps of a run."""

from __future__ import annotations

import math

from model.config import PPLConfig

_CLUSTERS_GONE = 0.2  # part of the run after which clusters have faded out


def learning_rate(config: PPLConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def link_width(config: PPLConfig, step: int) -> float:
    """Return sigma squared of a step: it falls geometrically over the first part of the run, then stays."""
    span = config.link_width_fraction * config.steps
    done = min(1.0, step / span) if span > 0 else 1.0
    width: float = config.link_width_start ** (1 - done) * config.link_width**done
    return width


def cluster_share(config: PPLConfig, step: int) -> float:
    """Return the part of their strength at the start that the attention's clusters have at a step."""
    return max(0.0, 1 - step / config.steps / _CLUSTERS_GONE)

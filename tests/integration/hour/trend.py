"""Slopes of what was sampled over time, with errors that allow for samples that resemble the ones before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["flat", "grows", "unclear"]
_BLOCKS = 15


@dataclass(frozen=True)
class Trend:
    """A straight line through samples.

    Attributes:
        slope: per hour.
        error: standard error of the slope.
        margin: the slope's 95 % confidence interval is slope ± margin.
        most: the largest sample.
    """

    slope: float
    error: float
    margin: float
    most: float

    def judge(self, bound: float) -> Verdict:
        """Return "flat" if the whole interval is below a bound, or has 0 in it and ends below four times the bound.

        "grows" if the whole interval is above 0 and it isn't flat; otherwise "unclear": the run was too short.
        """
        low, high = self.slope - self.margin, self.slope + self.margin
        if high < bound or low <= 0 <= high < 4 * bound:
            return "flat"
        return "grows" if low > 0 else "unclear"


def fit_trend(times_s: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line by least squares to the means of 15 blocks of equal length.

    Samples that are seconds apart are correlated, so that their own residuals make the error too small. Means of blocks
    that are longer than the correlation are nearly independent; the interval is Student's with 13 degrees of freedom.

    Raises:
        ValueError: there are less than two samples a block.
    """
    from scipy import stats  # takes a second: not in each process that collects the tests

    times, samples = np.asarray(times_s, float) / 3600, np.asarray(values, float)
    blocks = np.clip((_BLOCKS * (times - times[0]) / (times[-1] - times[0])).astype(int), 0, _BLOCKS - 1)
    counts = np.bincount(blocks, minlength=_BLOCKS)
    if counts.min() < 2:
        raise ValueError(f"{len(samples)} samples came; a trend needs at least two in each of {_BLOCKS} blocks")
    if samples.min() == samples.max():
        return Trend(0.0, 0.0, 0.0, float(samples.max()))
    means = (np.bincount(blocks, column, _BLOCKS) / counts for column in (times, samples))
    line = stats.linregress(*means)
    margin = float(stats.t.ppf(0.975, _BLOCKS - 2)) * float(line.stderr)
    return Trend(float(line.slope), float(line.stderr), margin, float(samples.max()))

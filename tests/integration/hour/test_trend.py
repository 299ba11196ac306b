"""Slopes are right, and their intervals as wide as they should be, also where samples resemble their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from .trend import Trend, fit_trend

_TIMES_S = np.arange(0, 2700, 5.0)


def _drifting(rng: np.random.Generator, correlation_s: float = 30.0) -> np.ndarray:
    """Return noise of variance 1 that remembers some seconds of its past."""
    kept = np.exp(-5 / correlation_s)
    noise = np.zeros(len(_TIMES_S))
    for place, shock in enumerate(rng.normal(0, np.sqrt(1 - kept**2), len(noise) - 1)):
        noise[place + 1] = kept * noise[place] + shock
    return noise


def test_slope_of_a_line_is_found() -> None:
    trend = fit_trend(_TIMES_S, 100 + 12 * _TIMES_S / 3600)

    assert trend.slope == pytest.approx(12)
    assert trend.error == pytest.approx(0, abs=1e-6)
    assert trend.most == pytest.approx(100 + 12 * 2695 / 3600)


def test_interval_has_the_slope_in_it_19_times_of_20_though_samples_are_correlated() -> None:
    rng = np.random.default_rng(0)
    trends = [fit_trend(_TIMES_S, _drifting(rng) + 3 * _TIMES_S / 3600) for _ in range(400)]

    covered = np.mean([abs(trend.slope - 3) <= trend.margin for trend in trends])
    assert 0.9 < covered < 0.98


@pytest.mark.parametrize(
    ("slope", "margin", "verdict"),
    [
        (0.0, 1.0, "flat"),
        (3.0, 1.0, "flat"),  # grows, by less than the bound
        (4.0, 5.0, "flat"),
        (-30.0, 5.0, "flat"),
        (7.0, 1.0, "grows"),
        (100.0, 20.0, "grows"),
        (0.0, 25.0, "unclear"),
    ],
)
def test_verdict_follows_from_interval_and_bound(slope: float, margin: float, verdict: str) -> None:
    assert Trend(slope, margin / 2.16, margin, 0.0).judge(5.0) == verdict


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="20 samples came"):
        fit_trend(_TIMES_S[:20], _TIMES_S[:20])

"""Plot the figures of SPEED.md as two small PNGs. Needs the extra ``plots``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.scoring.plots import PlotsUnavailableError

Result = dict[str, Any]


def plot_ratios(results: Sequence[Result], file: Path) -> bool:
    """Plot each subject's ratio divided by its bar; 1 or more reaches it.

    Args:
        results: results by subject; those without a ratio or a bar are not drawn.
        file: the PNG to write.

    Returns:
        Whether there was anything to draw.

    Raises:
        PlotsUnavailableError: matplotlib is not installed.
    """
    drawn = [result for result in results if result.get("ratio") is not None and result.get("bar")]
    if not drawn:
        return False
    figure = _figure((7, 0.6 + 0.4 * len(drawn)))
    axes = figure.subplots()
    shares = [result["ratio"] / result["bar"] for result in drawn]
    colours = ["C2" if share >= 1 else "C3" for share in shares]
    bars = axes.barh([result["subject"] for result in drawn], shares, color=colours)
    axes.bar_label(bars, [f" {result['ratio']:.3g}, bar {result['bar']:g}" for result in drawn], fontsize="small")
    axes.set_xscale("log")
    axes.set_xlim(0.5 * max(0.1, min(1.0, *shares)), 3 * max(1.0, *shares))
    _plain(axes.xaxis, (0.2, 0.5, 1, 2, 5, 10, 20))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("measured ratio / bar")
    axes.invert_yaxis()
    figure.savefig(file)
    return True


def plot_serving(results: Sequence[Result], file: Path) -> bool:
    """Plot the pictures a second by number of clients, ours and the others; see :func:`plot_ratios`."""
    rows = [row for result in results if result["subject"] == "serving" for row in result.get("rows", ())]
    loaded = [row for row in rows if row.get("clients")]
    if not loaded:
        return False
    figure = _figure((7, 3.5))
    axes = figure.subplots()
    for name in dict.fromkeys(row["contestant"] for row in loaded):
        points = [(row["clients"], row["pictures_per_s"]) for row in loaded if row["contestant"] == name]
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    for row in rows:
        if not row.get("clients") and row.get("pictures_per_s"):
            axes.axhline(row["pictures_per_s"], color="black", linewidth=1, linestyle="--", label=row["contestant"])
    axes.set_xscale("log", base=2)
    _plain(axes.xaxis, sorted({row["clients"] for row in loaded}))
    axes.set_xlabel("clients")
    axes.set_ylabel("pictures a second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.savefig(file)
    return True


def _plain(axis: Any, ticks: Sequence[float]) -> None:
    """Format the ticks of a logarithmic axis as numbers, not as powers."""
    low, high = axis.get_view_interval()
    axis.set_ticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:g}")


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError("plots need matplotlib: pip install 'pose-prior-learner[plots]'") from error
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure

"""Plots of measurements. matplotlib, from the extra ``plots``, is imported only when used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {"random": "share of hidden patches, at random", "centre": "hidden centred square, patches of 16"}
_WIDTH_IN, _HEIGHT_IN, _DPI = 9.0, 4.0, 120


class PlotsUnavailableError(ImportError):
    """matplotlib is not installed; the message names the extra to install."""


def plot_occlusion(rows: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Write the plot of an occlusion table as a PNG. Raises the errors of :func:`occlusion_figure`."""
    occlusion_figure(rows, title).savefig(path, format="png")


def occlusion_figure(rows: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Plot the error by level of occlusion, one line per refinement iteration, one panel per kind.

    Takes a list of :func:`model.scoring.occlusion.occlusion_row`; the clean one is level 0 of both panels. Raises
    PlotsUnavailableError, or ValueError if there is no level of occlusion.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError("plots need matplotlib: pip install 'pose-prior-learner[plots]'") from error
    kinds = [kind for kind in _AXES if any(row["kind"] == kind for row in rows)]
    if not kinds:
        raise ValueError("the table has no level of occlusion to plot")
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        _draw(panel, kind, rows)
    panels[0].set_ylim(bottom=0)  # after drawing, because it ends automatic scaling
    panels[0].set_ylabel("error, % of the image side")
    panels[0].legend()
    if title:
        figure.suptitle(title)
    return figure


def _draw(panel: Axes, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    drawn = sorted((row for row in rows if row["kind"] in ("clean", kind)), key=lambda row: float(row["level"]))
    levels = [row["level"] for row in drawn]
    for iteration in range(len(drawn[0]["errors"])):
        label = "no refinement" if iteration == 0 else f"iteration {iteration}"
        panel.plot(levels, [row["errors"][iteration] for row in drawn], marker="o", markersize=3, label=label)
    panel.set_xlabel(_AXES[kind])
    panel.set_xticks(levels)
    panel.grid(alpha=0.3)

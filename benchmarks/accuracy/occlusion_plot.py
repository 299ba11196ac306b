"""Plot the occlusion curves of a set as a small PNG. Needs the extra ``plots``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from model.scoring.plots import PlotsUnavailableError

from .groups import Group

_KINDS = {"random": "share of the patches, at random", "centre": "side of the centre square, of 16 patches"}
_STYLES = ("-", "--", ":")


def plot_curves(members: Sequence[Group], title: str, file: Path) -> bool:
    """Draw the error against the level of occlusion, unrefined and after the last refinement.

    Args:
        members: groups of one set; those without occlusion curves are left out.
        title: title of the plot.
        file: the PNG to write.

    Returns:
        Whether there was a curve to draw.

    Raises:
        PlotsUnavailableError: matplotlib is not installed.
    """
    drawn = [group for group in members if group.levels()]
    if not drawn:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError("plots need matplotlib: pip install 'pose-prior-learner[plots]'") from error
    figure = Figure(figsize=(9, 4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (kind, label) in zip(panels, _KINDS.items(), strict=True):
        for index, group in enumerate(drawn):
            clean = [(0.0, group.curve(kind_, level)) for kind_, level in group.levels() if kind_ == "clean"]
            points = clean + [(level, group.curve(k, level)) for k, level in group.levels() if k == kind]
            last = len(points[0][1]) - 1
            for style, iteration in zip(_STYLES, sorted({0, last}), strict=False):
                name = group.name.replace("`", "") + (f", iteration {iteration}" if last else "")
                heights = [statistics.fmean(values[iteration]) for _, values in points]
                panel.plot([x for x, _ in points], heights, style, color=f"C{index}", marker=".", label=name)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error, % of the side")
    panels[0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(file, format="png")
    return True

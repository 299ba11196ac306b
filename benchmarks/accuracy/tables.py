"""Write results as Markdown tables between markers of a file, and plot the occlusion curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from .groups import Group
from .rows import MEAN_POSE

REFINES = ("0", "1", "3")
_ERRORS = (
    "Errors on the held-out pictures, mean ± standard deviation over the seeds. *Refine*: percent of the image side, "
    "maps with bias fitted on training pictures that are not refined; *prior off*: the same weights without refinement "
    "and without the transformed prior, with maps of their own. The other protocols at refine 0: CUB's (a map a "
    "keypoint without bias), Human3.6m's (whole poses, sides may swap, no bias), Taichi's (summed, at 256 pixels)."
)
_HEADLINE = ("headline", "error_percent")
# where a result has another protocol's number, the head of its column, and its digits
_PROTOCOLS = (
    (("per_keypoint", "error_percent"), "CUB's, %", 2),
    (("whole_pose", "error_percent"), "Human3.6m's, %", 2),
    (("summed", "summed_error"), "Taichi's, summed", 1),
)
_SKELETON = (
    (("geometric", "precision"), "geometric precision"),
    (("geometric", "chance_precision"), "chance"),
    (("geometric", "recall"), "recall"),
    (("matched", "precision"), "matched precision"),
    (("matched", "chance_precision"), "chance"),
    (("matched", "recall"), "recall"),
    (("procrustes", "mapped", "distance"), "Procrustes, mapped"),
    (("procrustes", "matched", "distance"), "Procrustes, matched"),
    (("procrustes", "typical"), "typical pose"),
)
_ITERATIONS = 4  # the first, and the paper's three


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± sample standard deviation over the seeds; a dash without values."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def tables(name: str, members: Sequence[Group], in_full: Sequence[Group], plot: str | None) -> str:
    """Return all tables of one set in Markdown.

    Args:
        members: the set's rows.
        in_full: the rows whose errors under occlusion are shown at every level and iteration; others are summarised.
        plot: name of the set's plot.
    """
    parts = []
    if any(group.first.get("scores") for group in members):
        parts.append(_accuracy(members))
    else:
        parts.append(_losses(members))
    parts += [_skeleton(members), _occlusion(in_full), _occlusion_in_short(members)]
    if plot:
        parts.append(f"![Error under occlusion, {name}]({plot})")
    commands = "\n".join(group.command for group in members)
    parts.append(f"The commands, in the order of the rows:\n\n```\n{commands}\n```")
    return "\n\n".join(part for part in parts if part)


def update(file: Path, name: str, text: str) -> None:
    """Write a set's tables between its markers, or at the end of a file without them.

    Raises:
        ValueError: the file has one of the two markers, or one twice, or both in the wrong order.
    """
    begin, end = f"<!-- tables of {name}: begin (written by benchmarks.accuracy) -->", f"<!-- tables of {name}: end -->"
    old = file.read_text() if file.exists() else "# Accuracy\n"
    if begin not in old and end not in old:
        old = f"{old.rstrip()}\n\n## {name}\n\n{begin}\n{end}\n"
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(f"{file.name} does not have the two markers of {name} once each and in order")
    before, _, rest = old.partition(begin)
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def _accuracy(members: Sequence[Group]) -> str:
    heads = ["row", "steps", "minutes", "seeds", *(f"refine {refine}" for refine in REFINES), "prior off"]
    heads += [head for _, head, _ in _PROTOCOLS]
    lines = []
    for group in members:
        cells = [*_budget(group)]
        cells += [spread(group.values("scores", refine, *_HEADLINE)) for refine in REFINES]
        cells.append(spread(group.values("prior_off", "error_percent")))
        cells += [spread(group.values("scores", "0", *path), digits) for path, _, digits in _PROTOCOLS]
        lines.append(cells)
    return f"{_ERRORS}\n\n" + _table(heads, lines)


def _losses(members: Sequence[Group]) -> str:
    names = list(dict.fromkeys(name for group in members for name in group.first.get("losses", {})))
    lines = [[*_budget(g), *(spread(g.values("losses", n), 4) for n in names)] for g in members]
    note = "No labels: the losses of the last steps show that it learned, and the pictures what."
    return f"{note}\n\n" + _table(["row", "steps", "minutes", "seeds", *names], lines)


def _skeleton(members: Sequence[Group]) -> str:
    lines = []
    for group in members:
        if group.first.get("skeleton"):
            found = [group.values("skeleton", *path) for path, _ in _SKELETON]
            seeds = len(group.results)
            cells = [
                spread(values) + (f" ({len(values)} of {seeds} seeds)" if 0 < len(values) < seeds else "")
                for values in found
            ]
            lines.append([group.name, *cells])
    note = (
        "The prior against the true skeleton, as `model/scoring/skeleton.py` has it; *chance* is the precision of all "
        "links. "
        "AutoLink has no prior: its mean pose stands for one, which maps to the mean true pose whatever it is, so its "
        "*Procrustes, mapped* says nothing."
    )
    return f"{note}\n\n" + _table(["row", *(head for _, head in _SKELETON)], lines) if lines else ""


def _occlusion(members: Sequence[Group]) -> str:
    lines = []
    for group in members:
        for kind, level in group.levels():
            errors = [spread(values) for values in group.curve(kind, level)]
            hidden = [spread(values) for values in group.curve(kind, level, "hidden_errors")]
            ends = [hidden[0], hidden[-1]] if hidden else ["–", "–"]
            lines.append([group.name, _level_name(kind, level), *errors, *["–"] * (_ITERATIONS - len(errors)), *ends])
    heads = ["row", "occlusion", *(f"iteration {n}" for n in range(_ITERATIONS)), "hidden, first", "hidden, last"]
    note = (
        "Occluded pictures: the error at each iteration of refinement over all labelled keypoints, and over those in "
        "hidden patches at the first and the last iteration; maps fitted on clean training pictures, not refined."
    )
    return f"{note}\n\n{_table(heads, lines)}" if lines else ""


def _occlusion_in_short(members: Sequence[Group]) -> str:
    measured = [group for group in members if group.levels()]
    if not measured:
        return ""
    levels = _main_levels(measured[0].levels())
    lines = []
    for group in measured:
        cells = []
        for kind, level in levels:
            values = group.curve(kind, level)
            ends = [spread(values[n]) for n in sorted({0, len(values) - 1})] if values else ["–"]
            cells.append(" → ".join(ends))
        lines.append([group.name, *cells, _verdict(group) if group.first.get("refinement") else "–"])
    heads = ["row", *(_level_name(kind, level) for kind, level in levels), "what refinement does"]
    return f"The same of every row in short, from the first iteration to the last:\n\n{_table(heads, lines)}"


def _main_levels(levels: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the main levels: clean pictures, the largest random one, and the middle one of the growing squares."""
    by_kind = {kind: sorted(level for k, level in levels if k == kind) for kind, _ in levels}
    middle = {"clean": 0, "random": -1, "centre": len(by_kind.get("centre", ())) // 2}
    return [(kind, found[middle.get(kind, -1)]) for kind, found in by_kind.items()]


def _level_name(kind: str, level: float) -> str:
    return "clean" if kind == "clean" else f"{kind} {level:g}"


def _verdict(group: Group) -> str:
    """Compare the last iteration with the first, by the means over the seeds."""
    change = {}
    for kind, level in group.levels():
        values = group.curve(kind, level)
        change[kind, level] = statistics.fmean(values[-1]) - statistics.fmean(values[0])
    worse = [f"{kind} {level:g}" for (kind, level), value in change.items() if kind != "clean" and value >= 0]
    lowered = f"not lower at {', '.join(worse)}" if worse else "lower at every level"
    return f"{lowered}; clean {change.get(('clean', 0.0), 0.0):+.2f} points"


def _budget(group: Group) -> list[str]:
    minutes = [result["seconds_trained"] / 60 for result in group.results]
    trained = group.first["row"] != MEAN_POSE
    return [
        group.title,
        f"{group.first['steps']:,}" if trained else "–",
        f"{statistics.fmean(minutes):.0f}" if trained else "–",
        str(len(group.results)) if trained else "–",
    ]


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)

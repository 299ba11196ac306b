"""Text output of estimates: poses, frames of videos, and estimates in the background."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape

from service.client import Estimate
from service.client.types import BackgroundEstimate, FailedPicture, PoseLine

from .console import err, make_table, out, print_table


def show_estimate(estimate: Estimate, names: Sequence[str]) -> None:
    """Print keypoints in pixels, one table for each pose; ``names`` are those of the pictures."""
    for image in estimate.images:
        surprise = "" if image.surprise is None else f", surprise {image.surprise:.2f}"
        box = "" if image.box is None else f", box {image.box}"
        out.print(f"{escape(names[image.index])}  {image.width} x {image.height} px{box}{surprise}")
        table = make_table("keypoint", "x", "y", "score")
        for point in image.keypoints:
            name = str(point.id) if point.name is None else f"{point.id} {point.name}"
            table.add_row(escape(name), f"{point.x:.1f}", f"{point.y:.1f}", f"{point.score:.2f}")
        print_table(table)
        if image.landmarks:
            table = make_table("landmark", "x", "y")
            for landmark in image.landmarks:
                table.add_row(escape(landmark.name), f"{landmark.x:.1f}", f"{landmark.y:.1f}")
            print_table(table)
    out.print(f"category {estimate.category}, version {estimate.version}, {estimate.timing_ms.total:.0f} ms")


def show_frame(line: PoseLine | FailedPicture) -> None:
    """Print a frame's mean score on one line, or its error on stderr."""
    if isinstance(line, FailedPicture):
        err.print(f"[red]{escape(line.error.detail)}[/]")
        return
    score = sum(point.score for point in line.keypoints) / len(line.keypoints)
    surprise = "" if line.surprise is None else f", surprise {line.surprise:.2f}"
    box = "" if line.box is None else f", box {line.box}"
    out.print(f"frame {line.frame} at {line.time_s:.3f} s{box}: mean score {score:.2f}{surprise}")


def show_background(estimate: BackgroundEstimate) -> None:
    """Print an estimate in the background, one fact per line."""
    progress = estimate.progress
    total = "" if progress.total is None else f" of {progress.total}"
    failed = f", {progress.failed} failed" if progress.failed else ""
    where = f"category {estimate.category}, version {estimate.version}"
    out.print(f"estimate {estimate.id}  {estimate.status}  {where}")
    out.print(f"  {progress.done}{total} pictures{failed}")
    if estimate.error:
        out.print(f"  [red]{escape(estimate.error.detail)}[/] [dim]({estimate.error.code})[/]")


def show_background_list(estimates: Iterable[BackgroundEstimate]) -> None:
    """Print estimates in the background as a table."""
    table = make_table("id", "status", "category", "done", "of", "failed", "created")
    for item in estimates:
        total = "" if item.progress.total is None else str(item.progress.total)
        created = item.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        done, failed = str(item.progress.done), str(item.progress.failed)
        table.add_row(item.id, str(item.status), item.category, done, total, failed, created)
    print_table(table)

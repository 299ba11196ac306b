"""What the commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import dist
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from service.client import ClientError, Estimate, History, Job, JobStatus, Memory, Prior
from service.client.types import Checkpoint, PriorEntry, Snapshot

from .progress import duration, loss_text

# a terminal obeys these: names of files, which anybody may have sent, must not speak to it
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\n\t")}, "\N{REPLACEMENT CHARACTER}")


class _Console(Console):
    """Rich's, for text from elsewhere."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text without control characters."""
        return super().render_str(text.translate(_CONTROLS), **options)


out = _Console(highlight=False, soft_wrap=True)
# as wide as they are, whatever the terminal: an id cut short is of no use
tables = _Console(highlight=False, width=1000)
err = _Console(stderr=True, highlight=False, soft_wrap=True)

_COLOURS = {
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.PAUSED: "magenta",
}


def print_json(value: Any) -> None:
    """One JSON document on stdout and nothing else."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """A model or a list of them as JSON values; members not asked for are left out, as the API does."""
    if isinstance(value, Job):
        return value.model_dump(mode="json")
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=not isinstance(value, (Prior, History)))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def fail(problem: dict[str, Any], as_json: bool, exit_code: int = 1) -> typer.Exit:
    """Prints a problem on stderr; the caller raises what this returns."""
    if as_json:
        sys.stderr.write(json.dumps(problem, ensure_ascii=False) + "\n")
    else:
        err.print(f"[bold red]error:[/] {escape(str(problem['detail']))} [dim]({problem['code']})[/]")
    return typer.Exit(exit_code)


@contextmanager
def errors_shown(as_json: bool) -> Iterator[None]:
    """Turns what a user can meet into a message and an exit code, without a traceback."""
    try:
        yield
    except ClientError as error:
        raise fail(error.problem, as_json) from error


def show_job(job: Job) -> None:
    """A job, one fact a line."""
    colour = _COLOURS.get(job.status, "white")
    out.print(f"job {job.id}  [{colour}]{job.status}[/]  category {job.category}")
    progress = job.progress
    if job.queue_position is not None:
        left = f", about {duration(progress.eta_s)} to its end" if progress.eta_s is not None else ""
        out.print(f"  number {job.queue_position} of those that wait{left}")
    if progress.step:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
        out.print(f"  step {progress.step} of {progress.total_steps}{left}, loss {loss_text(job)}")
    if job.version:
        out.print(f"  version {job.version}")
    if job.continued_from:
        out.print(f"  continues from {job.continued_from.category}@{job.continued_from.version}")
    if job.dataset:
        out.print(f"  dataset {job.dataset.id}  {escape(job.dataset.name or '')}".rstrip())
    skipped = job.metrics.get("skipped")
    if skipped:
        files = "".join(f"\n    {_skipped(item)}" for item in job.metrics.get("skipped_files", []))
        out.print(f"  {skipped} pictures could not be read:{escape(files)}")
    metrics = job.metrics
    held_out = f", {metrics['held_out']} of them held out" if "held_out" in metrics else ""
    if metrics.get("mode") == "clips":
        out.print(f"  {metrics.get('clips', '?')} clips, {metrics.get('images', '?')} frames in all{held_out}")
    elif "images" in metrics:
        out.print(f"  {metrics['images']} pictures{held_out}")
    if job.evaluation:
        show_scores(job.evaluation)
    if job.webhook:
        why = f": {escape(job.webhook.last_error)}" if job.webhook.last_error else ""
        out.print(f"  webhook {job.webhook.status} after {job.webhook.attempts} attempts{why}")
    if job.error:
        out.print(f"  [red]{escape(job.error.detail)}[/] [dim]({job.error.code})[/]")


_FITTED_A_INPUT = 3  # fewer pictures for each input of a map fit noise

_PROTOCOLS = {
    "headline": ("a map with bias for each keypoint", "error_percent", "mean_pose_percent", "%"),
    "per_keypoint": ("a map without bias for each keypoint (CUB)", "error_percent", "mean_pose_percent", "%"),
    "whole_pose": ("left and right may be swapped (Human3.6m)", "error_percent", "mean_pose_percent", "%"),
    "summed": ("sum over all keypoints at 256 pixels (Taichi)", "summed_error", "mean_pose_summed_error", "px"),
}


def show_scores(scores: Mapping[str, Any]) -> None:
    """An evaluation: the error by each protocol, beside that of guessing the mean pose."""
    if "reason" in scores:
        out.print(f"  the labels could not be scored: {escape(str(scores['reason']))}")
        return
    split = "as the labels say" if scores.get("split_from") == "labels" else "a fifth, by a hash of the names"
    out.print(
        f"  {scores['labelled_keypoints']} labelled keypoints, {scores['train_images']} pictures to fit the maps, "
        f"{scores['heldout_images']} held out ({split})"
    )
    table = _table("protocol", "error", "mean pose", "what it is")
    for name, (what, error, mean_pose, unit) in _PROTOCOLS.items():
        if name in scores:
            numbers = scores[name]
            table.add_row(name, f"{numbers[error]:.2f} {unit}", f"{numbers[mean_pose]:.2f} {unit}", what)
    tables.print(table)
    fitted, inputs = scores.get("fewest_fitted"), scores.get("map_inputs")  # versions of old lack them
    if fitted and inputs and fitted < _FITTED_A_INPUT * inputs:
        out.print(
            f"  [yellow]a map has {inputs} inputs, and was fitted on {fitted} pictures for the keypoint with the "
            f"fewest: these errors say little; from {_FITTED_A_INPUT * inputs} on they do[/]"
        )
    if "whole_pose_left_out" in scores:
        out.print(f"  whole_pose is left out: {escape(str(scores['whole_pose_left_out']))}")


def show_evaluation(found: Mapping[str, Any]) -> None:
    """The scores of a version on labelled pictures, and the error at each refinement iteration under occlusion."""
    out.print(f"category {found['category']}, version {found['version']}: {found['images']} pictures")
    for item in found["skipped_files"]:
        out.print(f"  could not be read: {escape(_skipped(item))}")
    show_scores(found["scores"])
    if "occlusion" not in found:
        return
    rows = found["occlusion"]["rows"]
    steps = len(rows[0]["errors"])
    table = _table("hidden", "level", *("unrefined", *(f"{step} x refined" for step in range(1, steps))))
    for row in rows:
        table.add_row(row["kind"], f"{row['level']:g}", *(f"{error:.2f} %" for error in row["errors"]))
    tables.print(table)
    out.print("random: share of 16 x 16 patches hidden; centre: side of the hidden square in such patches")


def show_jobs(jobs: Iterable[Job]) -> None:
    """Jobs as a table, the newest first."""
    table = _table("job", "category", "status", "step", "created", "version")
    for job in jobs:
        progress = job.progress
        table.add_row(
            job.id,
            job.category,
            f"[{_COLOURS.get(job.status, 'white')}]{job.status}[/]",
            f"{progress.step}/{progress.total_steps}",
            f"{job.created_at:%Y-%m-%d %H:%M}",
            job.version or "",
        )
    if table.row_count:
        tables.print(table)
    else:
        out.print("no jobs yet")


def show_checkpoints(found: Iterable[Checkpoint]) -> None:
    """A line a checkpoint, the newest first."""
    table = _table("step", "saved", "size", "loss")
    for made in found:
        saved, size = f"{made.saved_at.astimezone():%Y-%m-%d %H:%M:%S}", f"{made.size_bytes / 2**20:.1f} MiB"
        table.add_row(str(made.step), saved, size, f"{made.losses['total']:.3f}" if "total" in made.losses else "-")
    if table.row_count:
        tables.print(table)
    else:
        out.print("no checkpoints yet")


def show_estimate(estimate: Estimate, names: Sequence[str]) -> None:
    """Keypoints in pixels, one table a picture, or a box of one."""
    for image in estimate.images:
        surprise = "" if image.surprise is None else f", surprise {image.surprise:.2f}"
        where = "" if image.box is None else f", box {image.box}"
        out.print(f"{escape(names[image.index])}  {image.width} x {image.height} px{where}{surprise}")
        table = _table("keypoint", "x", "y", "score")
        for point in image.keypoints:
            name = str(point.id) if point.name is None else f"{point.id} {point.name}"
            table.add_row(escape(name), f"{point.x:.1f}", f"{point.y:.1f}", f"{point.score:.2f}")
        tables.print(table)
        if image.landmarks:
            table = _table("landmark", "x", "y")
            for place in image.landmarks:
                table.add_row(escape(place.name), f"{place.x:.1f}", f"{place.y:.1f}")
            tables.print(table)
    out.print(f"category {estimate.category}, version {estimate.version}, {estimate.timing_ms.total:.0f} ms")


def show_prior(prior: Prior, memory: Memory) -> None:
    """The mean pose, the strongest links and the memory in numbers."""
    out.print(f"category {prior.category}, version {prior.version}: {prior.num_keypoints} keypoints")
    table = _table("keypoint", "x", "y")
    for index, (x, y) in enumerate(prior.keypoint_prior):
        name = prior.keypoint_names[index] if prior.keypoint_names else str(index)
        table.add_row(escape(name), f"{x:+.3f}", f"{y:+.3f}")
    tables.print(table)
    strongest = sorted(prior.links, key=lambda link: link.weight, reverse=True)[:12]
    out.print("strongest links  " + "  ".join(f"{link.i}-{link.j} ({link.weight:.2f})" for link in strongest))
    trained = ", ".join(f"{name} {_figure(value)}" for name, value in prior.training.items() if not _nested(value))
    out.print(f"trained  {escape(trained)}")
    if not memory.num_banks:
        out.print(f"method {prior.method}: no memory")
        return
    counts = ", ".join(str(prototype.count) for prototype in memory.prototypes[:12])
    out.print(
        f"memory  {memory.num_banks} banks of {memory.bank_size} vectors; "
        f"{len(memory.prototypes)} prototypical poses, for so many pictures each: {counts}"
    )


def show_priors(priors: Sequence[PriorEntry]) -> None:
    """A line a category."""
    if not priors:
        out.print("nothing has been learned yet")
        return
    table = _table("category", "active version", "versions", "keypoints")
    for entry in priors:
        known = "" if entry.num_keypoints is None else str(entry.num_keypoints)
        table.add_row(entry.category, entry.version or "-", str(entry.num_versions), known)
    tables.print(table)


def show_memory(memory: Memory) -> None:
    """The memory in numbers, and its prototypes: for how many pictures each stands, and its codes."""
    out.print(f"category {memory.category}, version {memory.version}")
    if not memory.num_banks:
        out.print("method autolink: no memory")
        return
    used = sum(count > 0 for bank in memory.use_counts for count in bank)
    size = f"{memory.num_banks} banks of {memory.bank_size} vectors of {memory.token_dim} numbers"
    out.print(f"{size}, {used} of {memory.num_banks * memory.bank_size} in use")
    table = _table("prototype", "pictures", "codes")
    for index, prototype in enumerate(memory.prototypes):
        table.add_row(str(index), str(prototype.count), " ".join(map(str, prototype.codes)))
    tables.print(table)
    out.print("their keypoints are in the JSON (--json)")


def show_checks(checks: Mapping[str, str]) -> None:
    """A line a part of the server."""
    for part, found in checks.items():
        colour = "green" if found == "ok" else "red"
        out.print(f"{escape(part.replace('_', ' ')):<18} [{colour}]{escape(found)}[/]")


def show_history(history: History) -> None:
    """A line a snapshot: how far the prior still moved, and its strongest links."""
    out.print(f"category {history.category}, version {history.version}: {len(history.snapshots)} snapshots")
    table = _table("step", "moved", "strongest links")
    before: Snapshot | None = None
    for snapshot in history.snapshots:
        table.add_row(str(snapshot.step), _moved(before, snapshot), "  ".join(_strongest(snapshot.link_weights)))
        before = snapshot
    tables.print(table)
    out.print("moved: mean way of a keypoint since the line above, the square being 2 wide")


def show_done(value: Any, said: str, as_json: bool) -> None:
    """What a change came to: JSON, or a line."""
    if as_json:
        print_json(value)
    else:
        out.print(escape(said))


def _moved(before: Snapshot | None, now: Snapshot) -> str:
    if before is None or before.keypoint_prior is None or now.keypoint_prior is None:
        return "-"
    ways = [dist(a, b) for a, b in zip(before.keypoint_prior, now.keypoint_prior, strict=True)]
    return f"{sum(ways) / len(ways):.3f}"


def _strongest(weights: Sequence[float], count: int = 5) -> list[str]:
    keypoints = round((1 + (1 + 8 * len(weights)) ** 0.5) / 2)
    links = sorted(zip(combinations(range(keypoints), 2), weights, strict=True), key=lambda link: -link[1])
    return [f"{i}-{j} ({weight:.2f})" for (i, j), weight in links[:count]]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("x", "y", "score", "step", "moved") else "left")
    return table


def _skipped(item: Any) -> str:
    return f"{item['name']}: {item['reason']}" if isinstance(item, dict) and "reason" in item else str(item)


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""``ppl evaluate``: what a category's poses are worth, measured by labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.cli.evaluation.evaluate import evaluate_category
from service.cli.output.evaluation import show_skeleton
from service.client import Client

from .options import URL, AsJson, Category, Url, Version
from .output import console as output


def evaluate(
    category: Category,
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, videos, folders of them, or zips, tars and tar.gz.")
    ],
    labels: Annotated[Path, typer.Option(help="Their keypoints: CSV, COCO keypoints JSON, or JSON as our samples'.")],
    occlusion: Annotated[
        bool, typer.Option("--occlusion", help="Also hide parts of the scored pictures, and refine.")
    ] = False,
    refine_steps: Annotated[
        int | None,
        typer.Option(min=0, max=10, help="Refinement iterations of --occlusion; 3, or 0 where there is no memory."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the errors of --occlusion (extra 'plots').")
    ] = None,
    skeleton: Annotated[
        bool, typer.Option("--skeleton", help="Also hold the prior against the true skeleton that the labels name.")
    ] = False,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Score a category's poses on labelled pictures.

    A linear map from all found keypoints to each labelled one is fitted on some of the pictures and scored on the
    others: as the labels' split says or, where they have none, on a fifth chosen by a hash of the names.
    """
    quiet = as_json or not output.err.is_terminal
    columns = (TextColumn("estimating poses"), BarColumn(), MofNCompleteColumn())
    with (
        output.errors_shown(as_json),
        Client(url) as client,
        Progress(*columns, console=output.err, disable=quiet) as bar,
    ):
        task = bar.add_task("", total=None)
        found = evaluate_category(
            client,
            category,
            pictures,
            labels,
            version,
            occlusion=occlusion,
            refine_steps=refine_steps,
            plot=plot,
            skeleton=skeleton,
            on_done=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        output.print_json(found)
        return
    output.show_evaluation(found)
    if skeleton:
        show_skeleton(found["skeleton"])
    if plot:
        output.out.print(f"written: {escape(str(plot))}")

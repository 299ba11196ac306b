"""``ppl evaluate``: the error of a category's poses on labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .evaluation.evaluate import evaluate_category
from .options import URL, AsJson, Category, Url, Version
from .output import console as output
from .output.evaluation import show_evaluation


def evaluate(
    category: Category,
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, videos, folders of them, or zips, tars and tar.gz.")
    ],
    labels: Annotated[
        Path, typer.Option(help="Their keypoints: CSV, COCO keypoints JSON, or JSON in the format of our samples.")
    ],
    occlusion: Annotated[
        bool, typer.Option("--occlusion", help="Also hide parts of the scored pictures, and refine.")
    ] = False,
    refine_steps: Annotated[
        int | None,
        typer.Option(min=0, max=10, help="Refinement iterations of --occlusion; 3 by default, 0 without a memory."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the errors of --occlusion (extra 'plots').")
    ] = None,
    skeleton: Annotated[
        bool, typer.Option("--skeleton", help="Also compare the prior with the skeleton that the labels define.")
    ] = False,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Score a category's poses on labelled pictures.

    A linear map from all found keypoints to each labelled one is fitted on some of the pictures and scored on the
    others: by the labels' split or, if they have none, on a fifth chosen by a hash of the names.
    """
    quiet = as_json or not output.err.is_terminal
    columns = (TextColumn("estimating poses"), BarColumn(), MofNCompleteColumn())
    with output.connect(url, as_json) as client, Progress(*columns, console=output.err, disable=quiet) as bar:
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
    output.show(found, as_json, show_evaluation)
    if plot and not as_json:
        output.out.print(f"written: {escape(str(plot))}")

"""What a category's poses are worth on labelled pictures: poses through POST /estimate, scores by the scorer.

Pictures are fitted to the model's square here, as the server would, and sent as such: with parts of the square
hidden, they must not be fitted again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.errors import InputError
from service.client.types import Prior

from .scorer import run_scorer
from .squares import FRAMES, read_squares

OnDone = Callable[[int, int], object]

_REFINE_STEPS = 3  # of the occlusion test, as in the paper's figures


def estimate_poses(
    client: Client,
    category: str,
    version: str,
    pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    refine_steps: int = 0,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[Any]:
    """The poses of squares after 0 to T refinement steps, N x (T + 1) x K x 2 in [0, 1] of the square."""
    found: list[Any] = []
    for first in range(0, len(pixels), POSES_A_REQUEST):
        batch = pixels[first : first + POSES_A_REQUEST]
        answer = client.estimate(category, [_png(square) for square in batch], version, refine_steps, ["trajectory"])
        for image in answer.images:
            assert image.trajectory is not None  # it was asked for
            found.append(
                [
                    [((point.x + 0.5) / image.width, (point.y + 0.5) / image.height) for point in pose]
                    for pose in image.trajectory
                ]
            )
        on_done(len(batch))
    return found


def evaluate_category(
    client: Client,
    category: str,
    paths: Sequence[Path],
    labels: Path,
    version: str | None = None,
    *,
    occlusion: bool = False,
    refine_steps: int | None = None,
    plot: Path | None = None,
    skeleton: bool = False,
    on_done: OnDone = lambda done, total: None,
) -> dict[str, Any]:
    """Score a version on labelled pictures: without refinement by every protocol, and if wanted under occlusion.

    Whether labels and pictures fit is found out before any pose is estimated.

    Args:
        labels: CSV, COCO keypoints JSON or JSON as our samples'; where it gives no split, a fifth of the pictures
            is scored by maps that were fitted on the others; of videos whole ones are, and for a version trained on
            clips whole folders.
        occlusion: also hide parts of the scored pictures, and refine.
        refine_steps: of the occlusion test; 3 unless given, 0 for the method autolink, which has no memory.
        plot: PNG of the occlusion test to write.
        skeleton: also hold the prior against the true skeleton that the labels name, over all pictures.
        on_done: told how many poses are there, of how many.

    Returns:
        "category", "version", "images", "skipped_files", "scores" and, where wanted, "skeleton" and "occlusion".

    Raises:
        InputError: pictures or labels that are of no use, or refinement of a version without memory. And as the client.
    """
    if plot:
        _check_plot(plot, occlusion)
    prior = client.prior(category, version)
    steps = _steps_for(prior, refine_steps)
    squares = read_squares(paths, int(prior.settings["image_size"]), int(prior.settings.get("frames_per_clip", FRAMES)))
    count = len(squares.names)
    done, total = 0, count

    def tell(more: int) -> None:
        nonlocal done
        done += more
        on_done(done, total)

    sizes = dict(zip(squares.names, squares.sizes, strict=True))
    answer: dict[str, Any] = {
        "category": category,
        "version": prior.version,
        "images": count,
        "skipped_files": squares.skipped,
    }
    with TemporaryDirectory(prefix="ppl-") as folder:
        work = Path(folder)
        predictions, split = work / "predictions.json", work / "split.json"
        told = ("--predictions", predictions, "--labels", labels)
        facts = {"sizes": sizes, "clips": squares.clips(folders=prior.mode == "clips")}
        predictions.write_text(json.dumps({"pictures": dict.fromkeys(squares.names), **facts}))
        if not run_scorer("check", *told)["limbs"] and skeleton:
            raise InputError("the labels name no skeleton; COCO's category has it in 'skeleton', samples in 'edges'")
        poses = estimate_poses(client, category, prior.version, squares.pixels, 0, tell)
        unrefined = {name: pose[0] for name, pose in zip(squares.names, poses, strict=True)}
        predictions.write_text(json.dumps({"pictures": unrefined, **facts}))
        answer["scores"] = run_scorer("protocols", *told, "--split-out", split)
        if skeleton:
            (work / "prior.json").write_text(prior.model_dump_json())
            answer["skeleton"] = run_scorer("skeleton", *told, "--prior", work / "prior.json")
        if not occlusion:
            return answer
        names = json.loads(split.read_text())
        at = {name: index for index, name in enumerate(squares.names)}
        np.save(work / "heldout.npy", np.stack([squares.pixels[at[name]] for name in names["heldout"]]))
        masks = run_scorer("masks", "--squares", work / "heldout.npy", "--out", work / "masked")
        total += len(names["heldout"]) * len(masks["levels"])
        for level in masks["levels"]:
            pixels = np.load(work / "masked" / level.pop("file"), mmap_mode="r", allow_pickle=False)
            level["poses"] = estimate_poses(client, category, prior.version, pixels, steps, tell)
        train = {name: unrefined[name] for name in names["train"]}
        predictions.write_text(json.dumps({"train": train, "heldout": names["heldout"], "sizes": sizes, **masks}))
        answer["occlusion"] = run_scorer("occlusion", *told, *(("--plot", plot) if plot else ()))
    return answer


def _steps_for(prior: Prior, wanted: int | None) -> int:
    """How often to refine; what the worker would refuse is refused before all the pictures are estimated."""
    if prior.method != "autolink":
        return _REFINE_STEPS if wanted is None else wanted
    if wanted:
        raise InputError(
            f"refine_steps is {wanted}, and version {prior.version} of {prior.category} was trained with the method "
            "autolink, which has no memory to refine with; leave it out"
        )
    return 0


def _check_plot(plot: Path, occlusion: bool) -> None:
    if not occlusion:
        raise InputError("a plot shows the occlusion test; ask for that too (--occlusion)")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'pose-prior-learner[plots]'")
    if not plot.absolute().parent.is_dir():
        raise InputError(f"can't write {plot}: there is no folder {plot.absolute().parent}")


def _png(square: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(square).save(file, "PNG", compress_level=1)
    return file.getvalue()

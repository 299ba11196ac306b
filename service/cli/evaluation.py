"""Score a category's poses on labelled pictures: poses from POST /estimate, scores from :mod:`model.scoring`.

Pictures are fitted to the model's square on this side and sent as squares: parts of the square are hidden for the
occlusion test, and the server must not fit them again. Only the heading of pictures without an angle is found by an
estimate of the picture itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scoring.label_files import read_labels
from model.scoring.label_matching import match_crops
from model.scoring.linear_maps import fit_maps
from model.scoring.occlusion import cover, levels, occlusion_row, verdict
from model.scoring.plots import plot_occlusion
from model.scoring.prediction_files import Paired, pair, rows_by_split, square_labels
from model.scoring.protocols import evaluate, sides
from model.scoring.skeleton import skeleton_scores
from model.version.prior_values import read_prior
from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.errors import APIError, InputError
from service.client.types import ImageEstimate, Prior
from service.contract.errors import BadPicture
from service.contract.media.boxes import FoundBox

from .squares import FRAMES, Squares, read_squares

Pixels = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

_LOCATE = ("auto", "motion", "off")
_REFINE_STEPS = 3  # of the occlusion test, as in the paper's figures


@contextmanager
def map_scoring_errors() -> Iterator[None]:
    """Raise InputError for labels and predictions that can't be scored."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"scoring failed: {error}") from error


def evaluate_category(
    client: Client,
    category: str,
    paths: Sequence[Path],
    labels: Path,
    version: str | None = None,
    *,
    boxes: Path | None = None,
    locate: str | None = None,
    align: str | None = None,
    labels_fit: str = "exact",
    occlusion: bool = False,
    refine_steps: int | None = None,
    plot: Path | None = None,
    skeleton: bool = False,
    on_done: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a version on labelled pictures by every protocol, and optionally under occlusion and by its skeleton.

    Labels and pictures are checked against each other before any pose is estimated.

    Args:
        labels: as :mod:`model.scoring.label_files` reads. Without a split in it, a fifth of the pictures is
            scored by maps fitted on the others; whole videos are held out, and whole folders for a version trained on
            clips.
        boxes: a file of where the thing is in each picture: our CSV, COCO or MegaDetector's JSON.
        locate, align: the settings of training, the first for pictures without boxes; by default the version's.
        labels_fit: scale fits labels that state another size of their pictures, see
            :func:`model.scoring.label_fitting.fit_labels`; exact refuses them.
        occlusion: also hide parts of the scored pictures, and refine.
        refine_steps: steps of the occlusion test; 3 by default, 0 for the method autolink, which has no memory.
        plot: PNG of the occlusion test to write.
        skeleton: also compare the prior with the skeleton that the labels define, over all pictures.
        on_done: called with the number of estimated poses and their total.

    Returns:
        "category", "version", "images", "skipped_files", "unused_boxes", a number, "scores" and optionally "skeleton"
        and "occlusion".

    Raises:
        InputError: unusable pictures or labels, or refinement of a version without memory. And as the client.
    """
    if plot:
        _check_plot(plot, occlusion)
    if locate is not None and locate not in _LOCATE:
        raise InputError(f"locate is {locate[:80]!r}; it must be {' or '.join(_LOCATE)}")
    prior = client.prior(category, version)
    steps = _choose_steps(prior, refine_steps)
    frames = int(prior.settings.get("frames_per_clip", FRAMES))
    locate = locate or str(prior.settings.get("locate", "off"))
    align = align or ("heading" if prior.settings.get("align") == "heading" else "off")
    side, knows_align = int(prior.settings["image_size"]), "align" in prior.settings  # older gateways lack the field
    squares = read_squares(paths, side, frames, boxes, locate, align, tries=knows_align)
    predictions = _without_poses(squares, prior)
    with map_scoring_errors():
        known = read_labels(labels)
        match_crops(known, squares.names, squares.with_several)
        if labels_fit == "scale":
            known = squares.fit(known)
        for rows in rows_by_split(predictions, known).values():
            square_labels(known, rows, predictions["sizes"])
    if skeleton and not known.edges:
        raise InputError("the labels define no skeleton; COCO's category has it in 'skeleton', samples in 'edges'")
    done, total = 0, len(squares.names) + len(squares.undirected)

    def find_angle(data: bytes, found: FoundBox) -> float:
        nonlocal done
        done += 1
        on_done(done, total)
        return _find_angle(client, prior, data, found)

    squares.direct(paths, side, find_angle)
    predictions = _without_poses(squares, prior)
    with map_scoring_errors():
        known = squares.crop(known)

    def estimate(pixels: Pixels, refine_steps: int) -> NDArray[np.float64]:
        nonlocal done
        poses = []
        upright = "off" if knows_align else None  # rotated already
        for first in range(0, len(pixels), POSES_A_REQUEST):
            pictures = [_encode_png(square) for square in pixels[first : first + POSES_A_REQUEST]]
            answer = client.estimate(category, pictures, prior.version, refine_steps, ["trajectory"], align=upright)
            poses += [_to_fractions(image) for image in answer.images]
            done += len(pictures)
            on_done(done, total)
        return np.array(poses)

    poses = estimate(squares.pixels, 0)[:, 0]
    predictions["pictures"] = dict(zip(squares.names, poses, strict=True))
    answer: dict[str, Any] = {
        "category": category,
        "version": prior.version,
        "images": len(squares.names),
        "skipped_files": squares.skipped,
        "unused_boxes": len(squares.unused_boxes),
    }
    with map_scoring_errors():
        paired = pair(predictions, known)
        answer["scores"] = evaluate(paired.splits["train"], paired.splits["heldout"], sides(known.keypoint_names)) | {
            "split_from": paired.split_from,
            "unlabelled_images": len(paired.unlabelled),
            "unpredicted_labels": len(paired.unpredicted),
        }
        if skeleton:
            answer["skeleton"] = _score_skeleton(prior, paired, known.edges)
    if occlusion:
        positions = {name: index for index, name in enumerate(squares.names)}
        heldout = np.stack([squares.pixels[positions[name]] for name in paired.names["heldout"]])
        hidden = list(levels(len(heldout)))
        total += len(heldout) * len(hidden)
        poses_by_level = [estimate(cover(heldout, patches), steps) for _, _, patches in hidden]
        with map_scoring_errors():
            answer["occlusion"] = _score_occlusion(paired, hidden, poses_by_level, plot)
    return answer


def _without_poses(squares: Squares, prior: Prior) -> dict[str, Any]:
    """Return what is known of predictions before there are poses."""
    return {
        "pictures": dict.fromkeys(squares.names),
        "sizes": dict(zip(squares.names, squares.sizes, strict=True)),
        "clips": squares.clips(folders=prior.mode == "clips"),
    }


def _find_angle(client: Client, prior: Prior, data: bytes, found: FoundBox) -> float:
    """Return the heading that an estimate finds by trying. Raises BadPicture."""
    try:
        answer = client.estimate(prior.category, [data], prior.version, boxes=[found.box], align="heading")
    except APIError as error:
        if "index" not in error.problem:  # it is not the picture's fault
            raise
        raise BadPicture(error.detail) from error
    region = answer.images[0].region
    if region is None or region.angle is None:
        raise BadPicture("the estimate found no heading in it")
    return region.angle


def _to_fractions(image: ImageEstimate) -> NDArray[np.float64]:
    """Return a pose before and after each of T refinements, (T + 1, K, 2), in [0, 1] of the square."""
    assert image.trajectory is not None  # it was requested
    pixels = np.array([[(point.x, point.y) for point in pose] for pose in image.trajectory])
    return (pixels + 0.5) / (image.width, image.height)


def _score_skeleton(prior: Prior, paired: Paired, edges: Any) -> dict[str, Any]:
    train, heldout = paired.splits["train"], paired.splits["heldout"]
    keypoints, truth, visibility = (np.concatenate(parts) for parts in zip(train, heldout, strict=True))
    values = read_prior(prior.model_dump(mode="json"))
    points, weights = np.array(values.keypoint_prior), np.array(values.link_weights)
    return skeleton_scores(points, weights, keypoints, truth, visibility, edges, skeleton=values.skeleton)


def _score_occlusion(
    paired: Paired, hidden: Sequence[Any], poses_by_level: Sequence[NDArray[np.float64]], plot: Path | None
) -> dict[str, Any]:
    maps = fit_maps(*paired.splits["train"])
    _, truth, visibility = paired.splits["heldout"]
    rows = [
        occlusion_row(kind, level, patches, poses, truth, visibility, maps)
        for (kind, level, patches), poses in zip(hidden, poses_by_level, strict=True)
    ]
    if plot:
        plot_occlusion(rows, plot)
    counts = {f"{split}_images": len(names) for split, names in paired.names.items()}
    return {"rows": rows, "refinement": verdict(rows)} | counts


def _choose_steps(prior: Prior, requested: int | None) -> int:
    """Return the refinement steps; refuse what the worker would refuse before all pictures are estimated."""
    if prior.method != "autolink":
        return _REFINE_STEPS if requested is None else requested
    if requested:
        raise InputError(
            f"refine_steps is {requested}, and version {prior.version} of {prior.category} was trained with the method "
            "autolink, which has no memory to refine with; leave it out"
        )
    return 0


def _check_plot(plot: Path, occlusion: bool) -> None:
    if not occlusion:
        raise InputError("--plot draws the occlusion test; add --occlusion")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'pose-prior-learner[plots]'")
    if not plot.absolute().parent.is_dir():
        raise InputError(f"can't write {plot}: there is no folder {plot.absolute().parent}")


def _encode_png(square: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(square).save(file, "PNG", compress_level=1)
    return file.getvalue()

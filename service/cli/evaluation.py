"""Score a category's poses on labelled pictures: poses from POST /estimate, scores from :mod:`model.scoring`.

Pictures are fitted to the model's square on this side and sent as squares: parts of the square are hidden for the
occlusion test, and the server must not fit them again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scoring.label_files import read_labels
from model.scoring.label_fitting import CameSize, fit_labels
from model.scoring.label_matching import match_crops
from model.scoring.labels import Labels, from_square
from model.scoring.linear_maps import fit_maps
from model.scoring.occlusion import cover, levels, occlusion_row, verdict
from model.scoring.plots import plot_occlusion
from model.scoring.prediction_files import Paired, pair, rows_by_split, square_labels
from model.scoring.protocols import evaluate, sides
from model.scoring.skeleton import skeleton_scores
from model.version.prior_values import read_prior
from service.client import Client
from service.client.batches import POSES_A_REQUEST
from service.client.errors import InputError
from service.client.types import ImageEstimate, Prior
from service.contract.errors import BadPicture, PPLError
from service.contract.media import tiff
from service.contract.media.archives import ArchiveLimits, Member, find_white, iter_media
from service.contract.media.boxes import FoundBox, fit_found_box, parse_box_file
from service.contract.media.fitting import Frame, reduction_for_boxes
from service.contract.media.locating import Locations, MotionFinder, clip_of_picture, fills_frames
from service.contract.media.pictures import Picture, PictureLimits, is_picture_name, open_reduced
from service.contract.media.videos import BadVideo, NoDecoder, frame_name, iter_frames

Pixels = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

_FRAMES = 200  # most evenly spaced frames of a video, for versions without this setting
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
        "category", "version", "images", "skipped_files", "scores" and optionally "skeleton" and "occlusion".

    Raises:
        InputError: unusable pictures or labels, or refinement of a version without memory. And as the client.
    """
    if plot:
        _check_plot(plot, occlusion)
    prior = client.prior(category, version)
    steps = _choose_steps(prior, refine_steps)
    frames = int(prior.settings.get("frames_per_clip", _FRAMES))
    locate = locate or str(prior.settings.get("locate", "off"))
    align = align or ("heading" if prior.settings.get("align") == "heading" else "off")
    squares = read_squares(paths, int(prior.settings["image_size"]), frames, boxes, locate, align)
    predictions: dict[str, Any] = {
        "pictures": dict.fromkeys(squares.names),
        "sizes": dict(zip(squares.names, squares.sizes, strict=True)),
        "clips": squares.clips(folders=prior.mode == "clips"),
    }
    with map_scoring_errors():
        known = read_labels(labels)
        match_crops(known, squares.names, squares.with_several)
        if labels_fit == "scale":
            known = squares.fit(known)
        for rows in rows_by_split(predictions, known).values():
            square_labels(known, rows, predictions["sizes"])
        known = squares.crop(known)
    if skeleton and not known.edges:
        raise InputError("the labels define no skeleton; COCO's category has it in 'skeleton', samples in 'edges'")

    done, total = 0, len(squares.names)

    def estimate(pixels: Pixels, refine_steps: int) -> NDArray[np.float64]:
        nonlocal done
        poses = []
        upright = "off" if "align" in prior.settings else None  # rotated already; older gateways lack the field
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


@dataclass
class Squares:
    """Pictures fitted to the model's square.

    Attributes:
        names: names of N pictures, with their folders in the archive or folder; frames are named as in a job.
        sizes: width and height of each in pixels, EXIF orientation applied.
        pixels: N squares, uint8 (S, S, 3).
        videos: video of each frame, by the frame's name.
        skipped: {"name", "reason"} of files that could not be read.
        frames: where each square lies on its picture.
        orientations: EXIF's of each stored picture.
        with_several: names of pictures with several boxes, whose most confident one is taken.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    videos: dict[str, str] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    with_several: list[str] = field(default_factory=list)

    def clips(self, *, folders: bool) -> dict[str, str]:
        """Return the clip of each picture by name: its video or, if ``folders`` are clips, its folder."""
        stills = [name for name in self.names if name not in self.videos]
        inside = {name: str(PurePosixPath(name.replace("\\", "/")).parent) for name in stills} if folders else {}
        return self.videos | (inside if len(set(inside.values())) > 1 else {})

    def add(self, name: str, picture: Picture, side: int, found: FoundBox | None, *, aligned: bool) -> None:
        """Fit a picture, or a box of it, to a square and append it. Raises NoHeading."""
        square, frame = fit_found_box(picture, side, found, aligned=aligned)
        self.names.append(name)
        self.sizes.append(picture.size)
        self.pixels.append(square)
        self.frames.append(frame)
        self.orientations.append(picture.orientation)

    def fit(self, labels: Labels) -> Labels:
        """Scale and turn labels that state another size of their pictures. Raises LabelsError."""
        came = zip(labels.match(self.names).tolist(), self.sizes, self.orientations, strict=True)
        return fit_labels(labels, {labels.names[row]: CameSize(*size, turn) for row, size, turn in came if row >= 0})

    def crop(self, labels: Labels) -> Labels:
        """Return labels in [0, 1] of these squares, not of the whole pictures'. Raises LabelsError."""
        rows = labels.match(self.names)
        pairs = [(index, row) for index, row in enumerate(rows.tolist()) if row >= 0]
        sizes = {labels.names[row]: self.sizes[index] for index, row in pairs}
        whole = labels.rows([row for _, row in pairs]).to_square(sizes)
        keypoints = np.zeros_like(labels.keypoints)
        for (index, row), points in zip(pairs, whole.keypoints, strict=True):
            pixels = from_square(points, *self.sizes[index])
            keypoints[row] = (self.frames[index].from_picture(pixels) + 1) / 2
        keypoints[labels.visibility == 0] = 0
        return replace(labels, keypoints=keypoints, in_square=True)


def read_squares(
    paths: Sequence[Path],
    side: int,
    frames: int = _FRAMES,
    boxes: Path | None = None,
    locate: str = "off",
    align: str = "off",
) -> Squares:
    """Fit pictures to squares of a model's side.

    Args:
        paths: pictures, videos, folders of them, and zips, tars and tar.gz.
        side: S.
        frames: taken of each video, the same as in training.
        boxes: a file of where the thing is in each picture.
        locate, align: the settings of training, the first for pictures without boxes.

    Raises:
        InputError: an unreadable path, a duplicate name, no picture at all, or a video without PyAV.
    """
    locations = _locate(paths, frames, boxes, locate, align).align(align)
    squares = Squares(with_several=locations.with_several())
    reduction = reduction_for_boxes(side) if locations.whole else lambda width, height: 1.0
    for name, video, found in _iter_pictures(paths, frames, reduction):
        try:
            if not isinstance(found, Picture):
                raise BadPicture(found)
            box = locations.find_most_confident(name, found.size)
            if box is None and not locations.whole:
                raise BadPicture(locations.missing)
            squares.add(name, found, side, box, aligned=locations.is_aligned)
        except BadPicture as error:
            squares.skipped.append({"name": name, "reason": error.detail})
        else:
            squares.videos |= {name: video} if video else {}
    if not squares.names:
        reasons = "".join(f"; {item['name']}: {item['reason']}" for item in squares.skipped[:3])
        raise InputError(f"no picture could be read{reasons}")
    if len(set(squares.names)) < len(squares.names):
        twice = next(name for name in squares.names if squares.names.count(name) > 1)
        raise InputError(f"two pictures are called {twice}; names must be unique, as labels refer to them")
    return squares


def _locate(paths: Sequence[Path], frames: int, boxes: Path | None, locate: str, align: str) -> Locations:
    """Return where the thing is in each picture, as a training job finds it."""
    if boxes is None and locate == "off":
        return Locations()
    names = []
    with TemporaryFile(prefix="ppl-") as file:
        finder = MotionFinder(file, is_required=locate == "motion", align=align)
        for name, video, found in _iter_pictures(paths, frames, finder.reduction):
            if isinstance(found, Picture):
                names.append(name)
                if locate != "off" and (video or finder.wants(name)):
                    finder.keep(found, name, video or clip_of_picture(name))
        try:
            if boxes is None:
                return finder.locate()
            sent = parse_box_file(boxes.read_bytes())
            locations = Locations.of_file(sent, names)
            return locations if locations.names_all or not fills_frames(locate, sent) else finder.locate(locations)
        except (OSError, PPLError) as error:
            raise InputError(f"the boxes can't be used: {getattr(error, 'detail', error)}") from error


def _iter_pictures(
    paths: Sequence[Path], frames: int, reduction: Callable[[int, int], float]
) -> Iterator[tuple[str, str | None, Picture | str]]:
    """Yield the name of each picture and frame, the video of a frame, and the picture or why it can't be read."""
    uploads = (path for path in paths if not is_picture_name(path.name))
    white = max((find_white(path, ArchiveLimits(), PictureLimits()) for path in uploads if path.exists()), default=0.0)
    for name, found in _iter_media(paths):
        try:
            if isinstance(found, BadPicture):
                raise found
            if isinstance(found, Member):
                with _extract(found) as path:
                    for number, _, image, _ in iter_frames(path, frames):  # up to where the video is damaged
                        yield frame_name(name, number), name, Picture.of(image)
            else:
                yield name, None, open_reduced(found, reduction, white=white)
        except (BadPicture, BadVideo) as error:
            yield name, None, error.detail if isinstance(error, BadPicture) else str(error)
        except NoDecoder as error:
            raise InputError("videos need PyAV: pip install 'pose-prior-learner[video]'") from error


@contextmanager
def _extract(video: Member) -> Iterator[Path]:
    if video.path:
        yield video.path
        return
    with TemporaryDirectory(prefix="ppl-") as folder:
        path = Path(folder) / "video"
        try:
            video.copy(path)
        except Exception as error:
            is_system_error = isinstance(error, OSError) and error.errno is not None  # for example, no space left
            if is_system_error or isinstance(error, PPLError):
                raise
            raise BadVideo(f"damaged in the archive ({error or type(error).__name__})") from error
        yield path


def _is_stack(path: Path) -> bool:
    with path.open("rb") as file:
        return tiff.is_stack(file)


def _iter_media(paths: Sequence[Path]) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    for path in paths:
        try:
            if path.is_file() and is_picture_name(path.name) and not _is_stack(path):
                yield path.name, path.read_bytes()
            else:
                for name, found in iter_media(path):
                    yield path.name if isinstance(found, Member) and found.bare_video else name, found
        except (OSError, PPLError) as error:
            reason = error.detail if isinstance(error, PPLError) else error.strerror or error
            raise InputError(f"can't read {path}: {reason}") from error

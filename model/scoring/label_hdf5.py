"""Convert the labels of one HDF5 file to COCO, in a separate process, so that a hostile file cannot harm the caller.

    python -m model.scoring.label_hdf5 < CollectedData.h5 > labels.json

SLEAP's files are read by sleap-io, and DeepLabCut's tables by h5py: pandas would run code that such a file may hold in
its pickles. The exit status is REFUSED for a file that can't be used, with the reason on standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .label_tables import labels_of_columns
from .labels import Labels, LabelsError, frame_label

REFUSED = 3
_MEMORY_BYTES = 8 * 2**30
_CPU_S = 120
_AS_OBJECTS = "the table is stored as Python objects; send CollectedData_*.csv, which is beside it"
_MISSING = "needs sleap-io: pip install 'pose-prior-learner[interop]'"


def main() -> int:
    """Convert standard input to standard output."""
    _limit_resources()
    data = sys.stdin.buffer.read()
    try:
        content = _convert(data)
    except LabelsError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except ImportError:
        print(f"HDF5 {_MISSING}", file=sys.stderr)
        return REFUSED
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        print(f"the HDF5 file can't be read ({type(error).__name__}: {error})"[:300], file=sys.stderr)
        return REFUSED
    json.dump(content, sys.stdout)
    return 0


def _limit_resources() -> None:
    with contextlib.suppress(ImportError):  # Windows
        import resource

        for kind, limit in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_CPU, _CPU_S)):
            with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
                resource.setrlimit(kind, (limit, limit))


def _convert(data: bytes) -> dict[str, Any]:
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        _check_links(file)
        tables = [group for group in file.values() if isinstance(group, h5py.Group) and "pandas_type" in group.attrs]
        if tables:
            return _to_coco(_read_pandas(tables[0]))
        if "metadata" not in file or "points" not in file:
            names = ", ".join(sorted(file)[:8])
            raise LabelsError(
                f"the HDF5 file has {names[:200]}; expected SLEAP's .slp or DeepLabCut's CollectedData .h5"
            )
    with tempfile.NamedTemporaryFile(suffix=".slp") as copy:
        copy.write(data)
        copy.flush()
        return _read_sleap(copy.name)


def _check_links(file: Any) -> None:
    """Refuse a file that refers to other files, as they would be read from this machine."""
    import h5py

    outside: list[str] = []  # what a visitor raises is lost

    def visit_link(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            outside.append(name)

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            outside.append(name)

    file.visititems_links(visit_link)
    file.visititems(visit)
    if outside:
        raise LabelsError(f"the HDF5 file refers to another file in '{outside[0][:80]}'; save it as one file")


def _read_pandas(group: Any) -> Labels:
    """Read a table that pandas wrote, of its format "table" or "fixed"."""
    if "table" in group:
        table = group["table"]
        rows = table[:]
        fields = [name for name in rows.dtype.names if name.startswith("values_block_")]
        columns = [label for name in fields for label in _unpickle(table.attrs[f"{name}_kind"])]
        values = np.concatenate([rows[name].reshape(len(rows), -1) for name in fields], axis=1)
        levels = [name for name in rows.dtype.names if name != "index" and name not in fields] or ["index"]
        index = list(zip(*(_to_texts(rows[name]) for name in levels), strict=True))
    else:
        blocks = range(int(group.attrs["nblocks"]))
        columns = [label for block in blocks for label in _read_axis(group, f"block{block}_items")]
        values = np.concatenate([_read_block(group[f"block{block}_values"]) for block in blocks], axis=1)
        index = _read_axis(group, "axis1")
    found = [tuple(map(str, label)) for label in columns]
    if not found or {len(label) for label in found} - {3, 4}:
        raise LabelsError("the table's columns have no names of scorer, body part and coordinate")
    parts = [("" if len(label) == 3 else label[1], label[-2], label[-1]) for label in found]
    return labels_of_columns(parts, ["/".join(filter(None, path)) for path in index], values.astype(np.float64))


def _read_axis(group: Any, name: str) -> list[tuple[str, ...]]:
    """Return the labels of an axis of the format "fixed": as many texts each as it has levels."""
    if name in group:
        return [(text,) for text in _to_texts(group[name][:])]
    levels = range(int(group.attrs[f"{name}_nlevels"]))
    texts = [np.array([*_to_texts(group[f"{name}_level{level}"][:]), ""], dtype=object) for level in levels]
    codes = [group[f"{name}_label{level}"][:] for level in levels]  # -1 for none
    return list(zip(*(text[code].tolist() for text, code in zip(texts, codes, strict=True)), strict=True))


def _read_block(dataset: Any) -> NDArray[Any]:
    """Return a block's values (rows, columns)."""
    values: NDArray[Any] = dataset[:]
    if values.ndim != 2:
        raise LabelsError(_AS_OBJECTS)
    return values if dataset.attrs.get("transposed", False) else values.T


def _to_texts(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind == "S":
        return [value.decode() for value in values.tolist()]
    if values.dtype.kind in "iuf":
        return [str(value) for value in values.tolist()]
    raise LabelsError(_AS_OBJECTS)


class _PlainUnpickler(pickle.Unpickler):
    """A reader of pickled texts, numbers and lists of these, as PyTables stores names; it can't run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise LabelsError(f"the table's names need {module}.{name}; send CollectedData_*.csv, which is beside it")


def _unpickle(value: Any) -> list[Any]:
    try:
        labels = _PlainUnpickler(io.BytesIO(bytes(value))).load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise LabelsError(f"the table's names are damaged ({error})") from error
    if not isinstance(labels, list):
        raise LabelsError("the table's names are not a list")
    return labels


def _read_sleap(path: str) -> dict[str, Any]:
    """Return the instances that a user labelled."""
    from sleap_io import load_slp

    labels = load_slp(path, open_videos=False)
    if len(labels.skeletons) != 1:
        raise LabelsError(f"the file has {len(labels.skeletons)} skeletons; expected one")
    skeleton = labels.skeletons[0]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in labels.labeled_frames:
        name, size = _name_frame(frame.video, int(frame.frame_idx))
        images.append({"id": len(images), "file_name": name, "width": size[0], "height": size[1]})
        for instance in frame.user_instances:
            annotations.append({"image_id": len(images) - 1, "keypoints": _flatten(instance.numpy())})
    if not annotations and labels.labeled_frames:
        raise LabelsError("the file has predicted instances only; expected some that a user labelled")
    return _coco(images, annotations, skeleton.node_names, skeleton.edge_inds)


def _name_frame(video: Any, number: int) -> tuple[str, Sequence[int]]:
    """Return the name of a frame among an upload's pictures, and its width and height; zeros if unknown."""
    shape = (video.backend_metadata or {}).get("shape") or (video.shape if video.backend else None)
    size = (int(shape[2]), int(shape[1])) if shape and len(shape) == 4 else (0, 0)
    if video.source_video is not None:  # of pictures that are embedded in the file
        video = video.source_video
    if isinstance(video.filename, list):
        # the shape is that of the first picture
        return video.filename[number], size if number == 0 else (0, 0)
    return frame_label(PurePosixPath(str(video.filename).replace("\\", "/")).name, number), size


def _to_coco(labels: Labels) -> dict[str, Any]:
    images = [{"id": row, "file_name": name} for row, name in enumerate(labels.names)]
    points = np.where(labels.visibility[..., None] > 0, labels.keypoints, np.nan)
    annotations = [{"image_id": row, "keypoints": _flatten(pose)} for row, pose in enumerate(points)]
    return _coco(images, annotations, labels.keypoint_names, ())


def _coco(images: Any, annotations: Any, names: Sequence[str], edges: Any) -> dict[str, Any]:
    pairs = [[int(i) + 1, int(j) + 1] for i, j in edges]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"keypoints": list(names), "skeleton": pairs}],
    }


def _flatten(points: NDArray[np.float64]) -> list[float]:
    """Return x, y, v of each point; v is 0 for NaN."""
    places = np.asarray(points, dtype=np.float64)[:, :2].tolist()
    return [value for x, y in places for value in ((x, y, 2) if x == x and y == y else (0, 0, 0))]


if __name__ == "__main__":
    sys.exit(main())

"""Labels from a file: CSV, COCO keypoints JSON or the JSON of our samples, told apart by what is in it.

**CSV**, a row a keypoint, with a header; columns in any order:

- ``image``: the picture's file name, as in the archive (its folders may be left out where names stay unique),
- ``keypoint``: the keypoint's name,
- ``x``, ``y``: pixels of the picture with its EXIF orientation applied, integers at pixel centres,
- ``visible`` (optional): 0 or 1; where it is 0, x and y may be empty. A keypoint without a row is not visible,
- ``split`` (optional): ``train`` or ``test`` (``heldout`` says the same), one for all rows of a picture,
- ``width``, ``height`` (optional): the picture's size in pixels, where the reader of the labels does not know it.

**COCO**: ``images`` (``file_name``, ``width``, ``height``, and ``split`` as above where wanted), ``annotations`` with
``keypoints`` [x, y, v, …], one a picture; ``categories`` with ``keypoints`` and, counted from 1, ``skeleton``.
Coordinates are read as pixels, integers at pixel centres; v > 0 counts, as in COCO's own score.

**Samples**: ``keypoint_names`` and ``edges`` (both optional, edges counted from 0), ``train`` and ``heldout``: by
file name ``keypoints`` [x, y] in [0, 1] of the model's square, and ``visibility``.

Other keys and columns are ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from .label_csv import read_csv
from .label_json import read_coco, read_samples
from .labels import Labels, LabelsError

MOST_BYTES = 64 * 2**20


def read_labels(path: Path, most_bytes: int = MOST_BYTES) -> Labels:
    """The labels of a file, whatever it is called.

    Args:
        path: the file.
        most_bytes: a larger file is refused before it is read.

    Raises:
        LabelsError: too large, empty, of none of the forms, or damaged; the message says what came and what was
            expected.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    if size > most_bytes:
        raise LabelsError(f"the labels file has {size} bytes; at most {most_bytes} are allowed")
    return parse_labels(path.read_bytes())


def parse_labels(data: bytes) -> Labels:
    """The labels in the bytes of a file. Raises LabelsError, as :func:`read_labels`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelsError(f"the labels file is not UTF-8 text (byte {error.start}); expected CSV or JSON") from error
    if not text.strip():
        raise LabelsError("the labels file is empty; expected CSV with a header, or JSON")
    if text.lstrip()[0] not in "{[":
        return read_csv(text)
    content = _parse(text)
    if "annotations" in content:
        return read_coco(content)
    if "train" in content or "heldout" in content or "test" in content:
        return read_samples(content)
    raise LabelsError(
        f"the labels are JSON with the keys {_keys(content)}; expected COCO's images, annotations and categories, "
        "or keypoint_names, train and heldout"
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except LabelsError:
        raise
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"the labels are not JSON: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(content, dict):
        raise LabelsError(
            "the labels are a JSON list; expected an object: COCO's, or keypoint_names, train and heldout"
        )
    return content


def _refuse_constant(constant: str) -> NoReturn:
    raise LabelsError(f"the labels hold {constant}; expected finite numbers")


def _keys(content: dict[str, Any]) -> str:
    return ", ".join(sorted(key[:40] for key in content)[:8]) or "none"

"""Read labels from the files that people have; the form is recognised by the content.

**CSV**, one row per keypoint, with a header; columns in any order:

- ``image``: the picture's file name as in the archive; its folders may be left out if names stay unique,
- ``keypoint``: the keypoint's name,
- ``x``, ``y``: pixels of the picture with its EXIF orientation applied, integers at pixel centres; both empty or NaN
  if the keypoint is not visible,
- ``visible`` (optional): 0 or 1; if 0, x and y do not count. A keypoint without a row is not visible,
- ``split`` (optional): ``train`` or ``test`` (``heldout`` means the same), the same in all rows of a picture,
- ``width``, ``height`` (optional): the picture's size in pixels; refused if the picture has another one.

**DeepLabCut**: ``CollectedData_*.csv`` or ``.h5``, with or without individuals, one animal labelled in a picture.

**COCO**: ``images`` (``file_name`` and optionally ``width``, ``height``, ``split``), ``annotations`` with
``keypoints`` [x, y, v, …], one per picture; ``categories`` with ``keypoints`` and ``skeleton``, counted from 1, or
from 0 if it has a 0. Coordinates are pixels, integers at pixel centres; v > 0 counts, as in COCO's own score.

**SLEAP**: ``.slp``, the instances that a user labelled; frames of a video are named as ours, ``walk.mp4#000012``.

**Label Studio**: its JSON export; x and y are percents of the picture.

**Samples**: ``keypoint_names`` and ``edges`` (both optional, edges counted from 0), ``train`` and ``heldout``: by
file name ``keypoints`` [x, y] in [0, 1] of the model's square, and ``visibility``.

Other keys and columns are ignored. HDF5 (``.h5``, ``.slp``) needs the extra ``interop``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .label_hdf5 import REFUSED
from .label_json import read_json
from .label_tables import decode_text, read_table
from .labels import Labels, LabelsError

MAX_BYTES = 64 * 2**20
EXPECTED = "expected CSV, DeepLabCut's CSV or .h5, COCO or Label Studio JSON, or SLEAP's .slp"
_HDF5_START = b"\x89HDF\r\n\x1a\n"
_ZIP_START = b"PK\x03\x04"
_HDF5_TIMEOUT_S = 120.0


def read_labels(path: Path, max_bytes: int = MAX_BYTES) -> Labels:
    """Return the labels in a file; its name does not matter.

    Raises LabelsError if the file is too large, and then unread, or empty, of another form, or damaged.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise LabelsError(f"the labels file has {size} bytes; at most {max_bytes} are allowed")
    return parse_labels(path.read_bytes())


def parse_labels(data: bytes) -> Labels:
    """Return the labels in a file's bytes. Raises LabelsError."""
    text = _convert_hdf5(data) if data.startswith(_HDF5_START) else _decode(data)
    if not text.strip():
        raise LabelsError(f"the labels file is empty; {EXPECTED}")
    return read_json(text) if text.lstrip()[0] in "{[" else read_table(text)


def _decode(data: bytes) -> str:
    if data.startswith(_ZIP_START):
        raise LabelsError(f"the labels file is an Excel workbook or a zip; save it as 'CSV UTF-8'; {EXPECTED}")
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"the labels file is not {error.encoding.upper()} text (byte {error.start}); {EXPECTED} (in Excel, save as "
            "'CSV UTF-8')"
        ) from error
    if "\0" in text:
        raise LabelsError(f"the labels file is neither text nor HDF5; {EXPECTED}")
    return text


def _convert_hdf5(data: bytes) -> str:
    """Return the labels of an HDF5 file as text, read in another process, which damaged files may crash."""
    program = (sys.executable, "-P", "-m", f"{__package__}.label_hdf5")
    try:
        done = subprocess.run(program, input=data, capture_output=True, timeout=_HDF5_TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LabelsError(f"the HDF5 file took more than {_HDF5_TIMEOUT_S:g} s to read") from None
    if done.returncode == 0:
        return done.stdout.decode()
    if done.returncode == REFUSED:
        raise LabelsError(done.stderr.decode(errors="replace").strip()[-300:])
    raise LabelsError("the HDF5 file is damaged or too large; save it again in the program that wrote it")

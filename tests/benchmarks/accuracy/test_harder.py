"""Sets made harder: the labels stay on what they name."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.harder import main
from benchmarks.accuracy.packs import read_pack
from tests.support.drawn_pack import NAMES

SIDE = 128
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))


@pytest.fixture
def marked(pack_file):
    """The drawn set with a disc of its own colour under each label, left and right of two pairs among them."""
    values = dict(np.load(pack_file))
    blobs = []
    for points in values["keypoints"]:
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
        for point, colour in zip(points * SIDE, COLOURS, strict=True):
            picture[(x - point[0]) ** 2 + (y - point[1]) ** 2 < 3.5**2] = colour
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=98, subsampling=0)
        blobs.append(file.getvalue())
    values["jpeg_blob"] = np.frombuffer(b"".join(blobs), np.uint8)
    values["jpeg_offsets"] = np.cumsum([0, *map(len, blobs)])
    np.savez(pack_file, **values)
    return pack_file


@pytest.mark.parametrize("how", ["turned", "pasted"])
def test_labels_stay_on_what_they_name(marked, tmp_path, capsys, how):
    out = tmp_path / "harder.npz"
    assert main(["--set", str(marked), "--how", how, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    made = read_pack(out, SIDE)
    assert made.keypoint_names == NAMES
    assert (len(made.train.images), len(made.test.images)) == (14, 6)
    as_named, swapped = 0, 0
    partner = (0, 2, 1, 4, 3)
    for picture, points, seen in zip(made.train.images, made.train.keypoints, made.train.visibility, strict=True):
        names = np.flatnonzero(seen)
        columns, rows = (points[names] * SIDE).astype(int).T
        colours = picture[rows, columns].astype(int)
        nearest = np.abs(colours[:, None] - COLOURS).sum(-1).argmin(1)
        own, other = nearest == names, nearest == np.take(partner, names)
        assert own.all() or other.all(), (nearest, names)
        as_named += own.all()
        swapped += other.all() and not own.all()
    if how == "turned":  # by chance mirrored, where left becomes right
        assert as_named >= 3
        assert swapped >= 3
        assert "mean size 1.000" in printed
    else:
        assert (as_named, swapped) == (14, 0)
        size = float(printed.split()[-1])
        assert 0.45 < size < 0.65
        before, after = (np.ptp(read_pack(file, SIDE).train.keypoints, axis=1).mean() for file in (marked, out))
        assert after / before == pytest.approx(size, abs=0.06)


def test_a_file_that_is_no_set_is_refused(tmp_path, capsys):
    (tmp_path / "notes.npz").write_text("no arrays")
    assert main(["--set", str(tmp_path / "notes.npz"), "--how", "turned", "--out", str(tmp_path / "out.npz")]) == 2
    assert "notes.npz is not a set of pictures" in capsys.readouterr().err

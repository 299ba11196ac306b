import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.packs import PackError, read_pack
from model.data import fit_picture
from tests.support.drawn_pack import NAMES, pack_values


def test_pack_is_split_with_pictures_and_labels_side_by_side(pack_file):
    values, drawn = pack_values()
    pack = read_pack(pack_file, 48)
    held_out = np.flatnonzero(values["split"] == "test")
    assert (pack.name, pack.keypoint_names, pack.is_labelled) == ("bars", NAMES, True)
    assert pack.edges == ((0, 1), (0, 2), (1, 3), (2, 4))
    assert len(pack.train.images) == 14
    assert len(pack.test.images) == 6
    np.testing.assert_allclose(pack.test.keypoints, values["keypoints"][held_out])
    for image, number in zip(pack.test.images, held_out, strict=True):
        assert np.abs(image.astype(int) - drawn[number]).mean() < 4  # but for JPEG


def test_pictures_are_fitted_as_the_model_fits_them(pack_file, tmp_path):
    values, _ = pack_values()
    blob, offsets = values["jpeg_blob"].tobytes(), values["jpeg_offsets"]
    pack = read_pack(pack_file, 32)
    for image, number in zip(pack.train.images, np.flatnonzero(values["split"] == "train"), strict=True):
        (tmp_path / "one.jpg").write_bytes(blob[offsets[number] : offsets[number + 1]])
        np.testing.assert_array_equal(image, fit_picture(tmp_path / "one.jpg", 32))


def test_pack_without_labels_has_none_and_no_skeleton(unlabelled_file):
    pack = read_pack(unlabelled_file, 32)
    assert not pack.is_labelled
    assert pack.edges is None
    assert pack.train.keypoints.shape == (14, 0, 2)


def _not_square(values):
    file = io.BytesIO()
    Image.new("RGB", (40, 48)).save(file, "JPEG")
    values["jpeg_blob"] = np.frombuffer(file.getvalue() * 20, np.uint8)
    values["jpeg_offsets"] = np.arange(21) * len(file.getvalue())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda values: values.pop("visibility"), "has no 'visibility'"),
        (lambda values: values.update(split=values["split"][:5]), r"20 pictures .* split \(5,\)"),
        (lambda values: values.update(split=np.array(["train"] * 20)), "no picture of the split 'test'"),
        (lambda values: values.update(meta=np.array("{")), "is not a set of pictures"),
        (
            lambda values: values.update(jpeg_blob=values["jpeg_blob"][:100]),
            r"picture \d+ of spoiled.npz can't be read",
        ),
        (_not_square, "40 x 48; expected a square"),
    ],
)
def test_spoiled_pack_is_refused_with_its_name_and_what_is_wrong(spoil, complaint, tmp_path):
    values, _ = pack_values()
    spoil(values)
    np.savez(tmp_path / "spoiled.npz", **values)
    with pytest.raises(PackError, match=complaint):
        read_pack(tmp_path / "spoiled.npz", 32)


def test_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "pack.npz").write_text(json.dumps({"jpeg_blob": []}))
    with pytest.raises(PackError, match=r"pack.npz is not a set of pictures"):
        read_pack(tmp_path / "pack.npz", 32)

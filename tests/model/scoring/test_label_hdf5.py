"""Labels in HDF5: DeepLabCut's tables, written by pandas as DeepLabCut does, and SLEAP's files, written by sleap-io."""

import io

import h5py
import numpy as np
import pandas as pd
import pytest
import sleap_io as sio
from PIL import Image

from model.scoring import label_files
from model.scoring.label_files import parse_labels, read_labels
from model.scoring.labels import LabelsError

NAMES = [f"labeled-data/walk/img0{number}.png" for number in (1, 2, 3)]
VALUES = [[10.5, 20, 30, 40], [np.nan, np.nan, 5, 6], [np.nan] * 4]
PARTS = [["nose", "tail"], ["x", "y"]]


def table(*, individuals=False, in_columns=False, values=VALUES):
    levels = [["Anna"], *([["mouse"]] if individuals else []), *PARTS]
    names = ["scorer", *(["individuals"] if individuals else []), "bodyparts", "coords"]
    index = pd.MultiIndex.from_tuples([tuple(name.split("/")) for name in NAMES]) if in_columns else NAMES
    return pd.DataFrame(values, index=index, columns=pd.MultiIndex.from_product(levels, names=names))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "table"),
        ({}, "fixed"),
        ({"individuals": True}, "table"),
        ({"individuals": True, "in_columns": True}, "fixed"),
        ({"in_columns": True}, "fixed"),
    ],
)
def test_deeplabcuts_h5_reads_as_its_csv(tmp_path, given, kind):
    path = tmp_path / "CollectedData_Anna.h5"
    table(**given).to_hdf(path, key="df_with_missing", mode="w", format=kind)
    table(**given).to_csv(tmp_path / "CollectedData_Anna.csv")
    for labels in (read_labels(path), read_labels(path.with_suffix(".csv"))):
        assert labels.names == tuple(NAMES[:2])
        assert labels.keypoint_names == ("nose", "tail")
        assert labels.keypoints.tolist() == [[[10.5, 20], [30, 40]], [[0, 0], [5, 6]]]
        assert labels.visibility.tolist() == [[1, 1], [0, 1]]


def skeleton():
    return sio.Skeleton(["nose", "tail"], edges=[("tail", "nose")])


def save(tmp_path, *frames):
    path = tmp_path / "labels.slp"
    sio.Labels(list(frames)).save(str(path), embed=False, verbose=False)
    return path.read_bytes()


def pose(*points, kind=sio.Instance):
    return kind.from_numpy(np.array(points, dtype=np.float64), skeleton=SKELETON)


SKELETON = skeleton()


def test_sleaps_user_labels_of_pictures_and_videos(tmp_path):
    for name in "ab":
        Image.new("RGB", (200, 100)).save(tmp_path / f"{name}.jpg")
    pictures = sio.Video.from_filename([str(tmp_path / f"{name}.jpg") for name in "ab"])
    meta = {"type": "MediaVideo", "shape": [50, 60, 80, 3]}
    film = sio.Video(filename="films/walk.mp4", backend_metadata=meta, open_backend=False)
    guess = sio.PredictedInstance.from_numpy(np.array([[9.0, 9], [9, 9]]), skeleton=SKELETON)
    data = save(
        tmp_path,
        sio.LabeledFrame(video=pictures, frame_idx=0, instances=[pose([1, 2], [3.5, 4]), guess]),
        sio.LabeledFrame(video=pictures, frame_idx=1, instances=[pose([5, 6], [np.nan, np.nan])]),
        sio.LabeledFrame(video=film, frame_idx=12, instances=[pose([7, 8], [9, 10])]),
        sio.LabeledFrame(video=film, frame_idx=13, instances=[guess]),
    )
    labels = parse_labels(data)
    assert labels.names == (f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg", "walk.mp4#000012")
    assert labels.match(["b.jpg", "x.jpg"]).tolist() == [1, -1]
    assert labels.keypoint_names == ("nose", "tail")
    assert labels.edges == ((1, 0),)
    assert labels.keypoints.tolist() == [[[1, 2], [3.5, 4]], [[5, 6], [0, 0]], [[7, 8], [9, 10]]]
    assert labels.visibility.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert labels.sizes.tolist() == [[200, 100], [0, 0], [80, 60]]  # SLEAP knows the size of the first picture


def test_what_sleap_predicted_is_no_label_and_two_animals_are_refused(tmp_path):
    video = sio.Video(filename="walk.mp4", open_backend=False)
    guess = sio.PredictedInstance.from_numpy(np.array([[9.0, 9], [9, 9]]), skeleton=SKELETON)
    with pytest.raises(LabelsError, match="predicted instances only"):
        parse_labels(save(tmp_path, sio.LabeledFrame(video=video, frame_idx=0, instances=[guess])))
    two = [pose([1, 2], [3, 4]), pose([5, 6], [7, 8])]
    with pytest.raises(LabelsError, match=r"'walk\.mp4#000000' has two annotations; expected one labelled animal"):
        parse_labels(save(tmp_path, sio.LabeledFrame(video=video, frame_idx=0, instances=two)))


def hdf5(fill):
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        fill(content)
    return file.getvalue()


def refer(content):
    content["df_with_missing"] = h5py.ExternalLink("/etc/hostname", "/")


def store_outside(content):
    content.create_dataset("points", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def name_code(content):
    rows = np.zeros(1, dtype=[("index", "S5"), ("values_block_0", "f8", (2,))])
    content.create_group("df").attrs["pandas_type"] = "frame_table"
    content["df"].create_dataset("table", data=rows).attrs["values_block_0_kind"] = np.bytes_(b"cos\nsystem\n.")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda content: content.create_group("x"), "the HDF5 file has x; expected SLEAP's .slp or DeepLabCut's"),
        (refer, "refers to another file in 'df_with_missing'"),
        (store_outside, "refers to another file in 'points'"),
        (name_code, "the table's names need os.system"),
    ],
)
def test_hostile_and_other_hdf5_is_refused(fill, message):
    with pytest.raises(LabelsError, match=message):
        parse_labels(hdf5(fill))


def test_damaged_hdf5_is_refused(tmp_path):
    table().to_hdf(tmp_path / "a.h5", key="df_with_missing", mode="w", format="fixed")
    data = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(LabelsError, match="HDF5 file can't be read"):
        parse_labels(data[: len(data) // 3])
    table(values=[["a"] * 4] * 3).to_hdf(tmp_path / "a.h5", key="df_with_missing", mode="w", format="fixed")
    with pytest.raises(LabelsError, match="stored as Python objects"):
        read_labels(tmp_path / "a.h5")


def test_an_hdf5_file_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(label_files, "_HDF5_TIMEOUT_S", 0.01)
    with pytest.raises(LabelsError, match=r"took more than 0\.01 s"):
        parse_labels(hdf5(lambda content: content.create_group("x")))

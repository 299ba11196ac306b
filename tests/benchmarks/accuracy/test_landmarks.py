import json

import numpy as np
import pytest

from benchmarks.accuracy.landmarks import main
from benchmarks.accuracy.packs import read_pack
from model.config import resolve
from model.training.trainer import Trainer


@pytest.fixture
def version(tmp_path, pack_file):
    """A version that was hardly trained: its keypoints still move with the picture a little."""
    config = resolve(
        "compact",
        {"image_size": 32, "base_width": 8, "num_keypoints": 4, "num_banks": 3, "bank_size": 4, "token_dim": 16}
        | {"mask_grid": 4, "perceptual_size": 32, "batch_size": 4, "steps": 2},
    )
    folder = tmp_path / "version"
    folder.mkdir()
    Trainer(read_pack(pack_file, 32).train.images, config, "cpu").export(folder)
    return folder


def test_errors_are_reported_for_each_number_of_labelled_pictures(pack_file, version, capsys):
    arguments = ["--set", str(pack_file), "--version", str(version), "--pictures", "5", "12", "--draws", "3"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["pictures"] for row in found["rows"]] == [5, 12]
    for row in found["rows"]:
        assert row["landmarks"] == 5
        assert row["spread_percent"] > 0
        # an untrained model knows nothing: ridge falls back to about the mean places
        assert 0 < row["error_percent"] < 1.5 * row["mean_place_percent"]
        assert np.isfinite(row["reported_percent"])
    assert (found["all"]["pictures"], found["map_inputs"], found["test_pictures"]) == (14, 9, 6)
    assert main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in table[4:]] == ["5", "12", "all 14, least squares"]


@pytest.mark.parametrize("what", ["no labels", "no version", "too many", "too few"])
def test_what_can_not_be_done_is_said(pack_file, unlabelled_file, version, tmp_path, capsys, what):
    given = {"--set": pack_file, "--version": version, "--pictures": 5}
    given |= {
        "no labels": {"--set": unlabelled_file},
        "no version": {"--version": tmp_path / "nowhere"},
        "too many": {"--pictures": 15},
        "too few": {"--pictures": 4},
    }[what]
    assert main([str(word) for pair in given.items() for word in pair]) == 2
    assert capsys.readouterr().err.startswith("landmarks: ")

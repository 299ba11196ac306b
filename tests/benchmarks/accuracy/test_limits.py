import json

import numpy as np

from benchmarks.accuracy.limits import by_place, label_limits, limbs, main
from benchmarks.accuracy.packs import read_pack


def test_limbs_are_the_chains_of_each_side_and_their_partners(pack_file):
    pairs = limbs(read_pack(pack_file, 32))
    assert pairs == [([1, 3], [2, 4])]


def test_sides_by_position_put_the_limb_first_that_reaches_further_right():
    poses = np.array(
        [[[0, 0], [0.2, 0], [0.8, 0], [0.1, 0], [0.9, 0]], [[0, 0], [0.8, 0], [0.2, 0], [0.9, 0], [0.1, 0]]]
    )
    ordered = by_place(poses, [([1, 3], [2, 4])])
    assert ordered[0, :, 0].tolist() == [0, 0.8, 0.2, 0.9, 0.1]
    assert np.array_equal(ordered[0], ordered[1])


def test_labels_by_place_lose_what_exact_labels_do_not(pack_file):
    pack = read_pack(pack_file, 32)
    rows = label_limits(pack)
    assert list(rows) == ["sides by position", "sides by position, 2% noise", "one side missing"]
    # the bar's left end is always further left: its position determines its side, and the map undoes the exchange
    assert rows["sides by position"] < 1e-6
    assert rows["sides by position, 2% noise"] > 0.3


def test_supervised_regressor_learns_from_the_labels(pack_file, capsys):
    errors = []
    for steps in ("1", "40"):
        assert main(["--set", str(pack_file), "--steps", steps, "--json"]) == 0
        errors.append(list(json.loads(capsys.readouterr().out)["error_percent"].values())[-1])
    assert errors[1] < 0.7 * errors[0]


def test_set_without_sides_is_refused(unlabelled_file, capsys):
    assert main(["--set", str(unlabelled_file)]) == 2
    assert "no skeleton with two sides" in capsys.readouterr().err

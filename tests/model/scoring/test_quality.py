"""The verdict on a version's measures."""

import pytest

from model.scoring.quality import judge

GOOD = {"agreement": 0.45, "movement_percent": 8.0, "explained": 0.1, "idle_keypoints": [3], "mean_score": 0.81}


def test_a_good_version_is_called_good():
    found = judge(GOOD, 900, 16)
    assert (found["verdict"], found["score"]) == ("good", pytest.approx(0.45))


@pytest.mark.parametrize(
    ("changes", "pictures", "verdict", "word"),
    [
        ({"movement_percent": 0.35}, 900, "failed", "send boxes, or a video"),
        ({"agreement": 0.03}, 900, "failed", "do not follow"),
        ({"agreement": -0.4}, 900, "failed", "do not follow"),
        ({}, 30, "doubtful", "so few pictures"),
        ({"agreement": 0.0}, 30, "doubtful", "so few pictures"),
        ({"mean_score": 0.15}, 900, "doubtful", "no clear place"),
        ({"agreement": 0.14}, 900, "doubtful", "in part"),
        ({"idle_keypoints": list(range(9))}, 900, "doubtful", "more than half of the keypoints"),
    ],
)
def test_each_fault_has_its_verdict_and_what_to_do(changes, pictures, verdict, word):
    found = judge({**GOOD, **changes}, pictures, 16)
    assert found["verdict"] == verdict
    assert word in found["advice"]
    assert 0 <= found["score"] <= 1


@pytest.mark.parametrize("measure", ["agreement", "movement_percent", "mean_score"])
def test_measure_that_is_no_number_is_no_good(measure):
    found = judge({**GOOD, measure: float("nan")}, 900, 16)
    assert found["verdict"] == ("doubtful" if measure == "mean_score" else "failed")
    assert found["score"] == (0 if measure == "agreement" else judge(GOOD, 900, 16)["score"])

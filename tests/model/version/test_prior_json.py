import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.network.links import connectivity_matrix
from model.network.pose_prior_learner import PosePriorLearner
from model.version.prior import PosePrior
from model.version.prior_values import read_prior
from model.version.skeleton import choose_links

POINTS = [[0.0, 0.1], [0.0, -0.8], [0.6, 0.0], [0.0, 0.7]]
LINKS = [{"i": 0, "j": 1, "weight": 0.5}, {"i": 3, "j": 0, "weight": 1}]
WRITTEN = {"keypoint_prior": POINTS, "links": LINKS}
MATRIX = [[0, 0.5, 0, 1], [0.5, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def _same(a, b):
    return (
        torch.equal(a.keypoint_prior, b.keypoint_prior)
        and torch.equal(a.link_weights, b.link_weights)
        and (a.link_width, a.keypoint_names, a.keypoint_prior_source)
        == (b.link_width, b.keypoint_names, b.keypoint_prior_source)
    )


def test_what_a_model_exports_comes_back_exactly(tiny):
    torch.manual_seed(0)
    exported = PosePrior.from_model(PosePriorLearner(tiny), ("nose", "tail", "left ear", "Ohr", "paw"))
    assert _same(PosePrior.from_json(json.loads(json.dumps(exported.to_json()))), exported)


finite = st.floats(-1.5, 1.5, width=32)


@given(st.data())
def test_any_prior_survives_the_round_trip(data):
    count = data.draw(st.integers(4, 32))
    weights = data.draw(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=40))
    num_links = count * (count - 1) // 2
    prior = PosePrior(
        torch.tensor(data.draw(st.lists(st.tuples(finite, finite), min_size=count, max_size=count))),
        torch.tensor((weights * num_links)[:num_links]),
        data.draw(st.floats(1e-5, 0.1)),
        tuple(f"part {i}" for i in range(count)),
        data.draw(st.sampled_from(["memory", "predefined", "random", "mean_pose"])),
    )
    assert _same(PosePrior.from_json(json.loads(json.dumps(prior.to_json()))), prior)


def test_skeleton_is_the_tree_of_links_that_are_short_for_their_weight():
    #     0-1  0-2  0-3  1-2  1-3  2-3
    lengths = [1.0, 2.0, 3.0, 1.0, 2.0, 1.0]
    assert choose_links(lengths, [1.0] * 6, 4) == [(0, 1), (1, 2), (2, 3)]  # a chain instead of its shortcuts
    assert choose_links(lengths, [1.0, 9.0, 1.0, 1.0, 1.0, 2.0], 4) == [(0, 2), (2, 3), (0, 1)]
    assert choose_links(lengths, [0.0, 0.5, 0.0, 1.0, 0.0, 0.019], 4) == [(1, 2), (0, 2)]  # 3 has no link worth drawing
    assert choose_links(lengths, [0.0] * 6, 4) == []


def test_skeleton_of_a_version_is_stored_and_chosen_by_the_pose_where_it_is_not():
    assert PosePrior.from_json(WRITTEN).skeleton == ((0, 3), (0, 1))
    assert PosePrior.from_json(WRITTEN | {"skeleton": [[1, 2]]}).skeleton == ((1, 2),)
    assert PosePrior.from_json(WRITTEN | {"skeleton": []}).to_json()["skeleton"] == []


def test_links_that_are_listed_are_part_of_the_matrix():
    prior = PosePrior.from_json(WRITTEN | {"links": LINKS[:1], "connectivity_prior": MATRIX})
    assert prior.link_weights.tolist() == [0.5, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_least_that_a_person_must_write_is_points_and_links():
    prior = PosePrior.from_json(WRITTEN)
    assert prior.link_weights.tolist() == [0.5, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert prior.keypoint_names == ("keypoint_0", "keypoint_1", "keypoint_2", "keypoint_3")
    torch.testing.assert_close(prior.keypoint_prior, torch.tensor(POINTS))


def test_matrix_says_the_same_as_links_and_more_keys_say_nothing():
    of_api = {"category": "dog", "version": "v1", "settings": {}, "training": {}, "method": "ppl", "mode": "stills"}
    from_matrix = PosePrior.from_json({**of_api, "keypoint_prior": POINTS, "connectivity_prior": MATRIX})
    both = PosePrior.from_json({**WRITTEN, "connectivity_prior": MATRIX, "num_keypoints": 4})
    assert _same(from_matrix, PosePrior.from_json(WRITTEN))
    assert _same(both, from_matrix)
    torch.testing.assert_close(connectivity_matrix(from_matrix.link_weights), torch.tensor(MATRIX))


def _row(i, row):
    return [row if n == i else other for n, other in enumerate(MATRIX)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keypoint_prior": None}, "keypoint_prior is missing; expected 4 to 32 pairs"),
        ({"keypoint_prior": "here"}, "keypoint_prior is 'here'"),
        ({"keypoint_prior": POINTS[:3]}, "keypoint_prior has 3 points; expected 4 to 32"),
        ({"keypoint_prior": POINTS * 9}, "keypoint_prior has 36 points"),
        ({"keypoint_prior": [*POINTS[:3], [0.0]]}, r"keypoint_prior\[3\] is a list of 1; expected a pair"),
        ({"keypoint_prior": [*POINTS[:3], [0.0, 1.6]]}, r"\[3\] is 1.6; expected a number from -1.5 to 1.5"),
        ({"keypoint_prior": [*POINTS[:3], [float("nan"), 0]]}, r"keypoint_prior\[3\] is nan"),
        ({"keypoint_prior": [*POINTS[:3], [float("-inf"), 0]]}, r"keypoint_prior\[3\] is -inf"),
        ({"keypoint_prior": [*POINTS[:3], [True, 0]]}, r"keypoint_prior\[3\] is True"),
        ({"keypoint_prior": [*POINTS[:3], [10**400, 0]]}, "a number of many digits"),
        ({"num_keypoints": 5}, "num_keypoints is 5, but keypoint_prior has 4 points"),
        ({"keypoint_names": ["a", "b", "c"]}, "keypoint_names has 3 names; expected 4"),
        ({"keypoint_names": "abcd"}, "keypoint_names is 'abcd'; expected 4"),
        ({"keypoint_names": ["a", "b", "c", ""]}, r"keypoint_names\[3\] is ''"),
        ({"keypoint_names": ["a", "b", "c", "a"]}, r"keypoint_names\[3\] is 'a', which another keypoint has"),
        ({"keypoint_names": ["a", "b", "c", 4]}, r"keypoint_names\[3\] is 4"),
        ({"keypoint_names": ["a", "b", "c", "d" * 65]}, r"expected 1 to 64 characters"),
        ({"links": None}, "neither links nor connectivity_prior"),
        ({"links": {}}, "links is an object of 0; expected a list"),
        ({"links": [{"i": 0, "j": 1}]}, r"links\[0\] is an object of 2; expected an object with i, j and weight"),
        ({"links": [{"i": 0, "j": 4, "weight": 1}]}, r"links\[0\].j is 4; expected a keypoint from 0 to 3"),
        ({"links": [{"i": -1, "j": 2, "weight": 1}]}, r"links\[0\].i is -1"),
        ({"links": [{"i": 2, "j": 2, "weight": 1}]}, "links keypoint 2 with itself"),
        ({"links": [*LINKS, {"i": 1, "j": 0, "weight": 1}]}, r"links\[2\] links 0 and 1, which another link does"),
        ({"links": [{"i": 0, "j": 1, "weight": -0.1}]}, r"links\[0\].weight is -0.1; expected a number from 0 to 1000"),
        ({"links": [{"i": 0, "j": 1, "weight": float("inf")}]}, r"links\[0\].weight is inf"),
        ({"links": [{"i": 0, "j": 1, "weight": "1"}]}, r"links\[0\].weight is '1'"),
        ({"connectivity_prior": MATRIX[:3]}, "connectivity_prior is a list of 3; expected 4 rows of 4"),
        ({"connectivity_prior": _row(2, [0, 0])}, "expected 4 rows of 4"),
        ({"connectivity_prior": _row(1, [0.4, 0, 0, 0])}, r"not symmetric: \[0\]\[1\] is 0.5, \[1\]\[0\] is 0.4"),
        ({"connectivity_prior": _row(2, [0, 0, 3, 0])}, r"connectivity_prior\[2\]\[2\] is 3; expected 0"),
        ({"connectivity_prior": _row(2, [0, 0, 0, -1])}, r"connectivity_prior\[2\]\[3\] is -1"),
        ({"connectivity_prior": MATRIX, "links": [{"i": 0, "j": 3, "weight": 2}]}, "disagree: between 0 and 3"),
        ({"skeleton": 3}, "skeleton is 3; expected a list of pairs"),
        ({"skeleton": [[0, 1], [2, 1]]}, r"skeleton\[1\] is a list of 2; expected keypoints i < j below 4"),
        ({"skeleton": [[0, 4]]}, r"skeleton\[0\]"),
        ({"skeleton": ["01"]}, r"skeleton\[0\] is '01'"),
        ({"link_width": 0}, "link_width is 0; expected a number from 1e-05 to 0.1"),
        ({"keypoint_prior_source": "mind"}, "keypoint_prior_source is 'mind'; expected one of memory"),
    ],
)  # fmt: skip
def test_bad_prior_says_what_came_and_what_was_expected(change, says):
    with pytest.raises(ValueError, match=says):
        PosePrior.from_json({**WRITTEN, **change})


@pytest.mark.parametrize("other", [None, [], "prior", 3])
def test_prior_that_is_no_object_is_refused(other):
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_prior(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
KEYS = sorted(
    [*WRITTEN, "connectivity_prior", "num_keypoints", "keypoint_names", "link_width", "keypoint_prior_source"]
)


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_whatever_comes_is_read_or_refused_with_a_value_error(change):
    try:
        values = read_prior({**WRITTEN, **change})
    except ValueError:
        return
    assert len(values.keypoint_names) == len(values.keypoint_prior) >= 4

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.scoring.matching import assign, limbs_of, match_joints
from model.scoring.skeleton import procrustes, skeleton_scores


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000))
def test_assignment_costs_as_little_as_the_best_of_all(rows, columns, seed):
    cost = np.random.default_rng(seed).integers(-5, 6, (rows, columns)).astype(float)
    chosen_rows, chosen_columns = assign(cost)
    short = min(rows, columns)
    assert len(set(chosen_rows.tolist())) == len(set(chosen_columns.tolist())) == short
    assert chosen_rows.tolist() == sorted(chosen_rows.tolist())
    tall = cost if rows <= columns else cost.T
    best = min(tall[range(short), list(order)].sum() for order in itertools.permutations(range(tall.shape[1]), short))
    assert cost[chosen_rows, chosen_columns].sum() == pytest.approx(best)


def test_assignment_of_nothing_and_of_infinite_cost():
    assert [part.tolist() for part in assign(np.zeros((3, 0)))] == [[], []]
    with pytest.raises(ValueError, match="finite"):
        assign(np.array([[np.inf]]))


# a figure of six joints: 0 - 1 - 2 - 3, and a branch 1 - 4 - 5
EDGES = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5))
POSE = np.array([[0.1, 0.5], [0.3, 0.5], [0.6, 0.5], [0.9, 0.5], [0.3, 0.7], [0.3, 0.9]])


@pytest.fixture
def poses():
    """The figure in 40 pictures, moved about a little as a whole and joint by joint; all joints known."""
    rng = np.random.default_rng(0)
    labels = POSE + rng.normal(size=(40, 1, 2)) * 0.01 + rng.normal(size=(40, 6, 2)) * 0.02
    return labels, np.ones((40, 6))


def weights(count, links):
    """Link weights over the pairs i < j, in row-major order."""
    return np.array([links.get(pair, 0.01) for pair in itertools.combinations(range(count), 2)])


TRUE = dict.fromkeys(EDGES, 1.0)


def scores(keypoints, links, labels, seen, prior=None, **more):
    prior = keypoints.mean(0) if prior is None else prior
    return skeleton_scores(prior * 2 - 1, weights(keypoints.shape[1], links), keypoints, labels, seen, EDGES, **more)


def test_the_true_skeleton_scores_perfectly(poses):
    found = scores(poses[0], TRUE, *poses)
    for form in ("geometric", "matched"):
        assert found[form]["precision"] == found[form]["recall"] == found[form]["f1"] == 1
        assert found[form]["chance_precision"] < 0.9
    assert found["matched"]["joint_of"] == [0, 1, 2, 3, 4, 5]
    assert found["matched"]["mean_distance_percent"] == 0
    assert found["procrustes"]["mapped"]["distance"] == pytest.approx(0, abs=1e-6)
    assert found["procrustes"]["matched"]["distance"] == pytest.approx(0, abs=1e-6)
    assert 0.01 < found["procrustes"]["typical"] < 0.3
    assert [link[:2] for link in found["strong_links"]] == [list(edge) for edge in sorted(EDGES)]


def test_wrong_link_costs_precision_and_missing_one_recall_by_their_share(poses):
    links = {(0, 1): 1.0, (1, 2): 0.9, (2, 3): 0.8, (3, 5): 0.7}  # no branch, and a stroke through empty ground
    found = scores(poses[0], links, *poses)
    assert (found["matched"]["precision"], found["matched"]["recall"]) == (0.75, 0.6)
    assert found["geometric"]["precision"] == pytest.approx(0.75)
    # 0.8 of the 1.2 long skeleton lies on strong links, and what of the branch is within 5 % of either end of it
    assert 0.8 / 1.2 < found["geometric"]["recall"] < (0.8 + 0.1 + 0.05) / 1.2
    assert found["strong_links"][-1][:2] == [3, 5]
    assert found["strong_links"][-1][3] == 0


def test_weak_links_do_not_count_until_they_are_asked_for(poses):
    links = TRUE | {(3, 5): 0.2}
    assert scores(poses[0], links, *poses)["matched"]["precision"] == 1
    assert scores(poses[0], links, *poses, strong=0.1)["matched"]["precision"] == pytest.approx(5 / 6)


def test_keypoints_between_joints_are_judged_by_where_their_links_lie(poses):
    labels, seen = poses
    ends = labels[:, np.array(EDGES)]
    middles = ends.mean(2)  # a keypoint in the middle of every limb
    links = {(0, 1): 1.0, (1, 2): 1.0, (3, 4): 1.0}  # along 0-1-2-3 and along 1-4-5
    found = scores(middles, links, labels, seen)["geometric"]
    assert found["precision"] == 1
    assert 0.5 < found["recall"] < 1


def test_link_past_unmatched_joints_is_right_unless_a_keypoint_stands_on_its_way(poses):
    labels, seen = poses
    spread = labels[:, [0, 3, 4, 5]]
    found = scores(spread, {(0, 1): 1.0, (2, 3): 1.0}, labels, seen)["matched"]
    assert found["joint_of"] == [0, 3, 4, 5]
    assert (found["precision"], found["recall"]) == (1, 0.8)
    joint_of = np.array([0, 3, 4, 5, 1])
    assert limbs_of(0, 1, joint_of, EDGES, 3) is None  # joint 1 lies between and has its own
    assert limbs_of(0, 1, joint_of[:4], EDGES, 3) == [0, 1, 2]
    assert limbs_of(0, 1, joint_of[:4], EDGES, 2) is None
    assert limbs_of(0, 1, np.array([0, -1]), EDGES, 3) is None
    assert limbs_of(0, 1, np.array([0, 3]), EDGES[:1], 3) is None  # no way at all


def test_keypoint_far_from_every_joint_has_none_and_its_links_are_wrong(poses):
    labels, seen = poses
    keypoints = labels.copy()
    keypoints[:, 3] = (0.9, 0.1)
    found = scores(keypoints, TRUE, labels, seen)["matched"]
    assert found["joint_of"] == [0, 1, 2, None, 4, 5]
    assert (found["precision"], found["recall"]) == (0.8, 0.8)


def test_matching_takes_the_least_total_and_only_pictures_where_a_joint_is_visible():
    keypoints = np.tile([[[0.5, 0.5], [0.6, 0.5]]], (10, 1, 1))
    labels = np.tile([[[0.56, 0.5], [0.9, 0.5]]], (10, 1, 1))  # keypoint 1 is the nearest to both
    seen = np.ones((10, 2))
    matching = match_joints(keypoints, labels, seen, 0.5)
    assert matching.joint_of.tolist() == [0, 1]
    assert matching.distance.tolist() == pytest.approx([0.06, 0.3])
    labels[5:, 1], seen[5:, 1] = np.nan, 0
    assert match_joints(keypoints, labels, seen, 0.5).distance.tolist() == pytest.approx([0.06, 0.3])
    assert match_joints(keypoints, labels, seen, 0.2).joint_of.tolist() == [0, -1]
    seen[:, 1] = 0
    assert match_joints(keypoints, labels, seen, 0.5).joint_of.tolist() == [-1, 0]


def test_limbs_without_a_known_end_neither_help_nor_harm(poses):
    labels, seen = poses
    labels, seen = labels.copy(), seen.copy()
    labels[::2, 5], seen[::2, 5] = np.nan, 0
    found = scores(poses[0], {pair: w for pair, w in TRUE.items() if pair != (4, 5)}, labels, seen)
    assert found["geometric"]["precision"] == 1
    full = scores(poses[0], {pair: w for pair, w in TRUE.items() if pair != (4, 5)}, *poses)
    assert found["geometric"]["recall"] > full["geometric"]["recall"]


@given(st.floats(-3, 3), st.floats(0.1, 5), st.floats(-2, 2), st.floats(-2, 2))
def test_procrustes_sees_neither_position_nor_size_nor_rotation(angle, size, x, y):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    distance, residual = procrustes(POSE @ turn * size + (x, y), POSE)
    assert distance == pytest.approx(0, abs=1e-6)
    assert residual == pytest.approx(0, abs=1e-6)


def test_procrustes_sees_a_mirror_and_a_moved_point():
    assert procrustes(POSE * (-1, 1), POSE)[0] > 0.3
    moved = POSE.copy()
    moved[0] += (0, 0.2)
    distance, residual = procrustes(moved, POSE)
    best = min(
        np.sqrt((((moved - moved.mean(0)) @ turn * size - (POSE - POSE.mean(0))) ** 2).sum(1).mean())
        for angle in np.linspace(-0.5, 0.5, 201)
        for size in np.linspace(0.7, 1.3, 61)
        for turn in [np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])]
    )
    assert residual == pytest.approx(best, rel=0.01)
    assert 0 < distance < 1


def test_point_set_without_extent_is_like_no_other():
    distance, residual = procrustes(np.full((6, 2), 0.4), POSE)
    assert distance == 1
    assert residual == pytest.approx(np.sqrt(((POSE - POSE.mean(0)) ** 2).sum(1).mean()))
    with pytest.raises(ValueError, match="expected a shape"):
        procrustes(POSE, np.zeros((6, 2)))


def test_prior_that_is_not_the_mean_pose_has_both_distances_above_zero(poses):
    labels, seen = poses
    folded = labels.mean(0)
    folded[3] = folded[1] + (0.02, 0.1)
    found = scores(labels, TRUE, labels, seen, prior=folded)["procrustes"]
    assert found["mapped"]["distance"] > 0.2
    assert found["matched"]["distance"] == pytest.approx(found["mapped"]["distance"], abs=1e-6)


def test_inputs_that_do_not_match_are_refused(poses):
    labels, seen = poses
    prior = labels.mean(0) * 2 - 1
    with pytest.raises(ValueError, match=r"a prior of \(5, 2\) and 15 links"):
        skeleton_scores(prior[:5], weights(6, TRUE), labels, labels, seen, EDGES)
    with pytest.raises(ValueError, match="expected pairs from 0 to 5"):
        skeleton_scores(prior, weights(6, TRUE), labels, labels, seen, ((0, 6),))
    with pytest.raises(ValueError, match="expected pairs"):
        skeleton_scores(prior, weights(6, TRUE), labels, labels, seen, ())
    with pytest.raises(ValueError, match="one above 0"):
        skeleton_scores(prior, np.zeros(15), labels, labels, seen, EDGES)
    lonely = np.zeros_like(seen)
    lonely[:, 0] = 1
    with pytest.raises(ValueError, match="no limb has both"):
        skeleton_scores(prior, weights(6, TRUE), labels, labels, lonely, EDGES)

import json

import numpy as np
import pytest

from model.evaluate import apply_maps, error_percent, evaluate, fit_maps, headline, main, mean_pose_percent, sides


@pytest.fixture
def linear():
    """Labels that are an exact linear map, with bias, of the keypoints."""
    rng = np.random.default_rng(0)
    keypoints = rng.random((60, 4, 2))
    mapping = rng.normal(size=(8, 6)) * 0.2
    labels = (keypoints.reshape(60, 8) @ mapping + 0.3).reshape(60, 3, 2)
    return keypoints, labels, np.ones((60, 3))


def test_exact_linear_relation_is_found_with_bias_and_not_without(linear):
    train = tuple(part[:40] for part in linear)
    held = tuple(part[40:] for part in linear)
    assert headline(train, held)["error_percent"] < 1e-9
    without = fit_maps(*train, bias=False)
    assert error_percent(apply_maps(held[0], without), held[1], held[2]) > 0.1


def test_invisible_labels_count_neither_in_fit_nor_in_error(linear):
    keypoints, labels, visibility = linear
    spoiled, seen = labels.copy(), visibility.copy()
    spoiled[::3, 1] = 99
    seen[::3, 1] = 0
    maps = fit_maps(keypoints, spoiled, seen)
    assert error_percent(apply_maps(keypoints, maps), spoiled, seen) < 1e-9


def test_error_is_in_percent_of_the_side():
    assert error_percent(np.zeros((1, 1, 2)), np.array([[[0.03, 0.04]]]), np.ones((1, 1))) == pytest.approx(5)


def test_mean_pose_uses_training_labels_only():
    train = np.array([[[0.0, 0.0]], [[0.5, 0.0]], [[9.0, 9.0]]])
    seen = np.array([[1], [1], [0]])
    assert mean_pose_percent(train, seen, np.array([[[0.25, 0.1]]]), np.ones((1, 1))) == pytest.approx(10)


def test_never_visible_keypoint_and_wrong_shapes_are_refused(linear):
    keypoints, labels, visibility = linear
    visibility[:, 2] = 0
    with pytest.raises(ValueError, match="keypoint 2 is visible in none"):
        fit_maps(keypoints, labels, visibility)
    with pytest.raises(ValueError, match="expected"):
        fit_maps(keypoints[0], labels, visibility)
    with pytest.raises(ValueError, match="60 pictures have keypoints and 59"):
        fit_maps(keypoints, labels[:-1], visibility[:-1])


def test_keypoints_seen_in_one_split_only_are_left_out_and_named(linear):
    train = tuple(part[:40].copy() for part in linear)
    held = tuple(part[40:].copy() for part in linear)
    held[2][:, 1] = 0
    held[1][:, 1] = np.nan
    scores = evaluate(train, held)
    assert scores["headline"]["error_percent"] < 1e-9
    assert (scores["left_out_keypoints"], scores["labelled_keypoints"]) == ([1], 2)
    assert (scores["train_images"], scores["heldout_images"]) == (40, 20)
    assert (scores["fewest_fitted"], scores["map_inputs"]) == (40, 9)
    assert "whole_pose" not in scores
    assert scores["whole_pose_left_out"].startswith("no two keypoints are named as the left and right")
    train[2][:, [0, 2]] = 0
    with pytest.raises(ValueError, match="none of 3 labelled keypoints is visible in training and in held-out"):
        evaluate(train, held)


def test_values_that_are_not_finite_and_empty_splits_are_refused(linear):
    keypoints, labels, visibility = linear
    spoiled = keypoints.copy()
    spoiled[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate((spoiled, labels, visibility), linear)
    with pytest.raises(ValueError, match="no pictures to score"):
        evaluate(linear, tuple(part[:0] for part in linear))
    with pytest.raises(ValueError, match="have 4 keypoints and 3 labels, held-out ones 3 and 3"):
        evaluate(linear, (keypoints[:, :3], labels, visibility))


def _least_squares(inputs, targets):
    return np.linalg.solve(inputs.T @ inputs, inputs.T @ targets)


@pytest.fixture
def noisy(linear):
    """Training and held-out pictures with noise in the labels, some of them not visible."""
    rng = np.random.default_rng(1)
    keypoints, labels, visibility = linear
    labels = labels + rng.normal(size=labels.shape) * 0.03
    visibility = (rng.random(visibility.shape) < 0.8).astype(float)
    return tuple(part[:40] for part in (keypoints, labels, visibility)), tuple(
        part[40:] for part in (keypoints, labels, visibility)
    )


def test_per_keypoint_and_summed_errors_equal_a_derivation_by_normal_equations(noisy):
    (keypoints, labels, seen), (held, truth, held_seen) = noisy
    flat, held_flat = keypoints.reshape(40, 8), held.reshape(20, 8)
    total, absolute = 0.0, 0.0
    for joint in range(3):
        rows, held_rows = seen[:, joint] > 0, held_seen[:, joint] > 0
        guess = held_flat[held_rows] @ _least_squares(flat[rows], labels[rows, joint])
        total += sum(np.hypot(*(guess - truth[held_rows, joint]).T))
        for axis in range(2):
            inputs = np.column_stack([255 * flat[rows], np.ones(rows.sum())])
            beta = _least_squares(inputs, 255 * labels[rows, joint, axis])
            guess = np.column_stack([255 * held_flat[held_rows], np.ones(held_rows.sum())]) @ beta
            absolute += np.abs(guess - 255 * truth[held_rows, joint, axis]).mean()
    scores = evaluate(*noisy)
    assert scores["per_keypoint"]["error_percent"] == pytest.approx(100 * total / held_seen.sum())
    assert scores["summed"]["summed_error"] == pytest.approx(absolute)


def test_mean_pose_of_the_summed_error_is_known_by_hand():
    labels = np.array([[[0.2, 0.5]], [[0.4, 0.5]]])
    seen = np.ones((2, 1))
    same = np.full((2, 4, 2), 0.5)
    scores = evaluate((same, labels, seen), (same[:1], np.array([[[0.4, 0.6]]]), seen[:1]))
    assert scores["summed"]["mean_pose_summed_error"] == pytest.approx(255 * 0.2)
    assert scores["summed"]["summed_error"] == pytest.approx(255 * 0.2)  # keypoints that say nothing
    assert scores["headline"]["mean_pose_percent"] == pytest.approx(100 * np.hypot(0.1, 0.1))


SWAP = (0, 2, 1)


@pytest.fixture
def mirrored():
    """Exact whole poses without bias; of keypoints 1 and 2 left and right are exchanged in a quarter of the poses."""
    rng = np.random.default_rng(2)
    keypoints = rng.random((200, 4, 2))
    labels = (keypoints.reshape(200, 8) @ (rng.normal(size=(8, 6)) * 0.3)).reshape(200, 3, 2)
    exchanged = rng.random(200) < 0.25
    labels[exchanged] = labels[exchanged][:, SWAP]
    return (keypoints[:150], labels[:150], np.ones((150, 3))), (keypoints[150:], labels[150:], np.ones((50, 3)))


def test_whole_pose_is_blind_to_exchanged_sides_where_the_others_are_not(mirrored):
    scores = evaluate(*mirrored, SWAP)
    assert scores["whole_pose"]["error_percent"] < 1e-9 < 1 < scores["per_keypoint"]["error_percent"]


def test_whole_pose_drops_poses_beyond_three_deviations_while_fitting():
    rng = np.random.default_rng(4)
    keypoints, seen = rng.random((150, 4, 2)), np.ones((150, 3))
    labels = (keypoints.reshape(150, 8) @ (rng.normal(size=(8, 6)) * 0.3)).reshape(150, 3, 2)
    spoiled = labels.copy()
    spoiled[7] += 3
    scores = evaluate((keypoints, spoiled, seen), (keypoints, labels, seen), SWAP)
    assert scores["whole_pose"]["error_percent"] < 1e-9 < 1 < scores["per_keypoint"]["error_percent"]


def test_whole_pose_equals_a_derivation_as_the_field_writes_it(mirrored):
    rng = np.random.default_rng(3)
    (keypoints, labels, seen), (held, truth, held_seen) = mirrored
    labels, truth = (part + rng.normal(size=part.shape) * 0.02 for part in (labels, truth))
    x, y = keypoints.reshape(150, 8), labels.reshape(150, 6).copy()
    exchange = [0, 1, 4, 5, 2, 3]
    while True:
        fitted = x @ _least_squares(x, y)
        far, far_swapped = (
            np.linalg.norm((fitted - z).reshape(150, 3, 2), axis=2).mean(1) for z in (y, y[:, exchange])
        )
        if (far_swapped < far).sum() < 10:
            break
        y[far_swapped < far] = y[far_swapped < far][:, exchange]
    keep = far < far.mean() + 3 * far.std(ddof=1)
    assert not keep.all()
    guess = held.reshape(50, 8) @ _least_squares(x[keep], y[keep])
    flat = truth.reshape(50, 6)
    apart = [np.linalg.norm((guess - z).reshape(50, 3, 2), axis=2).mean(1) for z in (flat, flat[:, exchange])]
    scores = evaluate((keypoints, labels, seen), (held, truth, held_seen), SWAP)
    assert scores["whole_pose"]["error_percent"] == pytest.approx(100 * np.minimum(*apart).mean())


def test_whole_pose_passes_over_what_is_not_visible(mirrored):
    train, held = mirrored
    for _, labels, seen in mirrored:
        labels[::5, 2], seen[::5, 2] = np.nan, 0
        labels[1], seen[1] = np.nan, 0
    assert evaluate(train, held, SWAP)["whole_pose"]["error_percent"] < 1e-9


def test_sides_that_are_never_seen_together_cost_the_whole_pose_alone(mirrored):
    train, held = (tuple(part[:, 1:] if part.ndim == 2 or part.shape[1] == 3 else part for part in s) for s in mirrored)
    held[2][:, 1] = 0  # one side is visible in training pictures only
    scores = evaluate(train, held, (1, 0))
    assert scores["headline"]["error_percent"] > 0
    assert (scores["left_out_keypoints"], "whole_pose" in scores) == ([1], False)
    assert "no keypoint's two sides" in scores["whole_pose_left_out"]


def test_keypoint_whose_only_pose_is_dropped_costs_the_whole_pose_alone():
    rng = np.random.default_rng(4)
    keypoints, seen = rng.random((150, 4, 2)), np.ones((150, 3))
    labels = (keypoints.reshape(150, 8) @ (rng.normal(size=(8, 6)) * 0.3)).reshape(150, 3, 2)
    spoiled, rare = labels.copy(), seen.copy()
    spoiled[7] += 3
    rare[:, 0] = 0
    rare[7, 0] = 1
    scores = evaluate((keypoints, spoiled, rare), (keypoints, labels, seen), SWAP)
    assert scores["labelled_keypoints"] == 3
    assert "labelled keypoint 0 is visible in none" in scores["whole_pose_left_out"]


def test_swap_that_is_not_a_pairing_is_refused(mirrored):
    for swap in ((0, 1), (1, 2, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="expected each of 3 keypoints' partner"):
            evaluate(*mirrored, swap)


def test_sides_come_from_names():
    assert sides(["nose", "left_eye", "right_eye", "tail"]) == (0, 2, 1, 3)
    assert sides(["elbow_L", "hip", "elbow_R", "knee_L"]) == (2, 1, 0, 3)
    assert sides(["Left Eye", "right eye"]) == (1, 0)
    assert sides(["nose", "tail", "left_wing"]) is None
    assert sides(["wingL", "beak", "wingR"]) == (2, 1, 0)
    assert sides(["leftear", "rightear", "snout"]) == (1, 0, 2)
    assert sides(["lbrow_0", "rbrow_0", "lbrow_1", "rbrow_1", "lip"]) == (1, 0, 3, 2, 4)
    assert sides(["L_paw", "R_paw", "LHip", "RHip", "tail"]) == (1, 0, 3, 2, 4)
    assert sides(["FL", "FR", "HL", "HR"]) == (1, 0, 3, 2)
    assert sides(["EarLeft", "EarRight"]) == (1, 0)
    assert sides(["lip", "tail", "rear", "leg"]) is None
    assert sides(["a_r", "a_l", "a"]) == (1, 0, 2)
    assert sides(["a_L", "A-L", "a_R"]) is None  # two left, one right: no unique partner


def test_command_scores_files_by_picture_name(linear, tmp_path, capsys):
    keypoints, labels, visibility = linear
    names = [f"{i:03}.jpg" for i in range(60)]
    split = {"train": range(40), "heldout": range(40, 60)}
    predictions = {part: {names[i]: keypoints[i].tolist() for i in rows} for part, rows in split.items()}
    truth = {
        part: {names[i]: {"keypoints": labels[i].tolist(), "visibility": visibility[i].tolist()} for i in rows}
        for part, rows in split.items()
    }
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    (tmp_path / "l.json").write_text(json.dumps(truth))
    arguments = ["--predictions", str(tmp_path / "p.json"), "--labels", str(tmp_path / "l.json")]
    assert main(arguments) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["error_percent"] < 1e-9 < scores["mean_pose_percent"]
    assert (scores["train_images"], scores["heldout_images"]) == (40, 20)
    del predictions["heldout"]["059.jpg"]
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    assert main(arguments) == 2
    assert "1 labelled pictures have no prediction, the first: 059.jpg" in capsys.readouterr().err
    del truth["train"]["003.jpg"]
    (tmp_path / "l.json").write_text(json.dumps(truth))
    assert main(arguments) == 2
    assert "003.jpg" in capsys.readouterr().err

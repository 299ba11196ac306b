import json

import numpy as np
import pytest

from model.evaluate import apply_maps, error_percent, fit_maps, headline, main, mean_pose_percent


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
    assert "1 of 20 labelled pictures have no prediction" in capsys.readouterr().err
    del truth["train"]["003.jpg"]
    (tmp_path / "l.json").write_text(json.dumps(truth))
    assert main(arguments) == 2
    assert "003.jpg" in capsys.readouterr().err

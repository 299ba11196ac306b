from __future__ import annotations

import numpy as np
import pytest

from model.scoring.landmarks import FOLLOWS, STRENGTHS, LandmarkFit, _nearness, _Poses, _Ridge, fit_landmarks
from model.scoring.linear_maps import Array, apply_maps, error_percent

K = 8


def world(count: int, seed: int, noise: float = 0.002) -> tuple[Array, Array, Array]:
    """Poses of a thing that moves, turns and bends, and three landmarks that hang on it."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(99).uniform(-0.2, 0.2, (K, 2))
    turn, bend = rng.normal(0, 0.3, count), rng.normal(0, 0.3, count)
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], 1).reshape(count, 2, 2)
    bent = shape[None] * np.stack([1 + bend, 1 - bend], 1)[:, None]
    keypoints = np.einsum("nab,nkb->nka", rotation, bent) + rng.normal(0.5, 0.08, (count, 1, 2))
    mixed = np.einsum("jk,nkc->njc", np.random.default_rng(5).dirichlet(np.ones(K), 3), keypoints)
    return keypoints, mixed + rng.normal(0, noise, mixed.shape), np.ones(mixed.shape[:2])


def brute(keypoints: Array, places: Array, strength: float, unit: float, about: Array, follow: float) -> Array:
    """The same ridge, solved as one dense system of equations with its bias left free.

    Args:
        about: nearness of the keypoints, of all pictures.
    """
    near = about / np.sqrt(np.mean(about**2))
    rows, targets = [], []
    for pose, place in zip(keypoints, places, strict=True):
        for axis in range(2):
            row = np.zeros(5 * K + 2)
            row[:K] = pose[:, axis]
            row[K + 2 * K * axis : K + 2 * K * (axis + 1)] = np.concatenate([pose[:, 0], pose[:, 1]])
            row[5 * K + axis] = 1
            rows.append(row)
            targets.append(place[axis])
    a, y = np.array(rows), np.array(targets)
    penalty = strength * unit * np.concatenate([near**-2, 10 * np.tile(near**-2, 4), np.zeros(2)])
    guess = np.concatenate([follow * about**4 / (about**4).sum(), np.zeros(4 * K + 2)])
    w = np.linalg.solve(a.T @ a + np.diag(penalty), a.T @ y + penalty * guess)
    flat = np.zeros((2 * K + 1, 2))
    flat[0:-1:2, 0], flat[1:-1:2, 1] = w[:K] + w[K : 2 * K], w[:K] + w[4 * K : 5 * K]
    flat[1:-1:2, 0], flat[0:-1:2, 1] = w[2 * K : 3 * K], w[3 * K : 4 * K]
    flat[-1] = w[5 * K :]
    return flat


@pytest.mark.parametrize("follow", range(len(FOLLOWS)))
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_map_is_that_of_the_whole_system_of_equations(strength: float, follow: int) -> None:
    keypoints, labels, _ = world(7, 1, noise=0.05)
    poses, places = _Poses(keypoints), labels[:, 0]
    about = _nearness(keypoints.mean(0), places.mean(0))
    expected = brute(keypoints, places, strength, poses.unit, about, FOLLOWS[follow])
    np.testing.assert_allclose(_Ridge(poses, places).fit_map(follow, strength), expected, atol=1e-8)


@pytest.mark.parametrize("count", [9, 60])  # fewer pictures than unknowns, and more
def test_left_out_errors_are_those_of_fitting_again_without_each_picture(count: int) -> None:
    keypoints, labels, _ = world(count, 2, noise=0.05)
    poses, places = _Poses(keypoints), labels[:, 1]
    about = _nearness(keypoints.mean(0), places.mean(0))
    strengths = np.array([0.05, 1.0])
    errors = _Ridge(poses, places).leave_one_out(strengths)
    assert errors.shape == (len(FOLLOWS), 2, count)
    for row in range(0, count, 4):
        rest = np.arange(count) != row
        for index in np.ndindex(len(FOLLOWS), 2):
            follow, strength = FOLLOWS[index[0]], strengths[index[1]]
            flat = brute(keypoints[rest], places[rest], strength, poses.unit, about, follow)
            predicted = apply_maps(keypoints[row : row + 1], flat[None])[0, 0]
            assert errors[*index, row] == pytest.approx(np.linalg.norm(predicted - places[row]), abs=1e-7)


def test_keypoints_move_what_is_near_them() -> None:
    """Of two keypoints that move alike in all labelled pictures the nearer one counts."""
    rng = np.random.default_rng(0)
    keypoints = np.tile([[0.3, 0.5], [0.8, 0.5]], (8, 1, 1)) + rng.normal(0, 0.05, (8, 1, 2))
    labels = keypoints[:, :1] + [0.05, 0.0]
    fit = fit_landmarks(keypoints, labels, np.ones((8, 1)))
    apart = np.array([[[0.3, 0.4], [0.8, 0.6]]])  # as in no picture before
    assert apply_maps(apart, fit.maps)[0, 0] == pytest.approx([0.35, 0.4], abs=0.02)


def test_without_evidence_a_landmark_moves_with_what_is_around_it() -> None:
    """Five pictures of an object at five positions are enough."""
    rng = np.random.default_rng(3)
    shape = rng.uniform(-0.2, 0.2, (K, 2))
    keypoints = 0.5 + shape + rng.normal(0, 0.1, (5, 1, 2)) + rng.normal(0, 0.02, (5, K, 2))
    labels = keypoints[:, :3].copy() + rng.normal(0, 0.03, (5, 3, 2))
    fit = fit_landmarks(keypoints, labels, np.ones((5, 3)))
    moved = 0.5 + shape[None] + np.array([[[0.2, -0.2]]])
    assert apply_maps(moved, fit.maps)[0] == pytest.approx(moved[0, :3], abs=0.06)


def test_five_pictures_do_where_least_squares_has_no_answer() -> None:
    train, test = world(5, 3), world(200, 4)
    fit = fit_landmarks(*train)
    found = error_percent(apply_maps(test[0], fit.maps), test[1], test[2])
    mean_place = 100 * float(np.linalg.norm(test[1] - train[1].mean(0), axis=-1).mean())
    assert found < 0.25 * mean_place
    assert fit.maps.shape == (3, 2 * K + 1, 2)


def test_error_falls_with_more_pictures_down_to_the_noise() -> None:
    test = world(200, 4)
    errors = [
        error_percent(apply_maps(test[0], fit_landmarks(*world(count, 6)).maps), test[1], test[2])
        for count in (5, 20, 80)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.4  # noise alone is 0.25


@pytest.mark.parametrize("count", [8, 40])
def test_cross_validated_error_is_about_that_on_new_pictures(count: int) -> None:
    estimated, real, test = [], [], world(300, 4, noise=0.02)
    for seed in range(8):
        fit = fit_landmarks(*world(count, 10 + seed, noise=0.02))
        estimated.append(100 * float(np.nanmean(fit.distances)))
        real.append(error_percent(apply_maps(test[0], fit.maps), test[1], test[2]))
    assert np.mean(estimated) == pytest.approx(np.mean(real), rel=0.25)


def test_labels_that_have_nothing_to_do_with_the_pose_give_their_mean_place() -> None:
    keypoints, labels, visibility = world(30, 7)
    labels = np.random.default_rng(1).uniform(0.4, 0.6, labels.shape)
    fit = fit_landmarks(keypoints, labels, visibility)
    assert fit.strength >= 1
    assert np.nanmean(fit.distances) == pytest.approx(np.nanmean(fit.constant), rel=0.1)


def test_hidden_labels_do_not_count() -> None:
    keypoints, labels, visibility = world(20, 8)
    visibility[::2, 1] = 0
    labels[::2, 1] = 1e6  # must not be looked at
    fit = fit_landmarks(keypoints, labels, visibility)
    assert np.isnan(fit.distances[::2, 1]).all()
    assert np.isfinite(fit.distances[1::2]).all()
    assert np.nanmean(fit.distances) < 0.01


def test_fit_is_the_same_every_time() -> None:
    def fit() -> LandmarkFit:
        return fit_landmarks(*world(30, 9))

    np.testing.assert_array_equal(fit().maps, fit().maps)
    np.testing.assert_array_equal(fit().distances, fit().distances)
    assert fit().strength in STRENGTHS
    assert fit().folds == 10


def test_poses_that_never_change_give_the_mean_place() -> None:
    _, labels, visibility = world(6, 1)
    fit = fit_landmarks(np.full((6, K, 2), 0.5), labels, visibility)
    np.testing.assert_allclose(apply_maps(np.full((1, K, 2), 0.5), fit.maps)[0], labels.mean(0))


def test_too_little_is_refused() -> None:
    keypoints, labels, visibility = world(6, 1)
    with pytest.raises(ValueError, match="at least 5"):
        fit_landmarks(keypoints[:4], labels[:4], visibility[:4])
    visibility[2:, 2] = 0
    with pytest.raises(ValueError, match="landmark 2 is visible in 2"):
        fit_landmarks(keypoints, labels, visibility)

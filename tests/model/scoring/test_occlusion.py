import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from model.scoring.linear_maps import fit_maps
from model.scoring.occlusion import (
    CENTRE_PATCHES,
    RANDOM_RATIOS,
    centre_patches,
    cover,
    hidden_points,
    levels,
    occlusion_row,
    random_patches,
    verdict,
)
from model.scoring.plots import occlusion_figure, plot_occlusion


@pytest.fixture
def white():
    return np.full((5, 64, 64, 3), 255, np.uint8)


def test_random_mask_hides_exactly_its_share_in_grey_and_leaves_the_rest(white):
    masked = cover(white, random_patches(5, 0.3, seed=4))
    patches = masked.reshape(5, 16, 4, 16, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(5, 256, -1)
    assert set(np.unique(patches)) == {128, 255}
    assert (np.ptp(patches, axis=2) == 0).all()  # whole patches
    assert ((patches[..., 0] == 128).sum(1) == round(0.3 * 256)).all()
    assert (white == 255).all()
    assert len({picture.tobytes() for picture in masked}) == 5


def test_a_pictures_mask_depends_on_seed_and_place_alone_and_grows_with_the_ratio():
    assert (random_patches(5, 0.2)[:2] == random_patches(2, 0.2)).all()
    assert (random_patches(5, 0.2, seed=1) != random_patches(5, 0.2)).any()
    lower, higher = random_patches(5, 0.1), random_patches(5, 0.4)
    assert (higher[lower]).all()
    assert random_patches(2, 1).all()
    assert not random_patches(2, 0).any()


def test_centre_mask_hides_a_centred_square(white):
    masked = cover(white, centre_patches(5, 4))[0, ..., 0]
    rows, columns = np.nonzero(masked == 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 39, 24, 39)
    assert len(rows) == 16 * 16
    for patches in (3, 18, -2):
        with pytest.raises(ValueError, match="can't be centred"):
            centre_patches(1, patches)


def test_grid_that_does_not_divide_the_side_covers_all_of_it():
    images = np.zeros((1, 50, 50, 3), np.uint8)
    assert (cover(images, np.ones((1, 16, 16), bool)) == 128).all()
    with pytest.raises(ValueError, match="expected"):
        cover(images[:, :8, :8], np.ones((1, 16, 16), bool))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        random_patches(1, 1.1)


def test_points_are_hidden_where_the_pixels_under_them_are():
    rng = np.random.default_rng(0)
    points = rng.random((6, 40, 2)) * 1.2 - 0.1
    patches = random_patches(6, 0.4)
    masked = cover(np.zeros((6, 64, 64, 3), np.uint8), patches)[..., 0] == 128
    found = hidden_points(points, patches)
    assert found.any()
    for picture, joint in np.ndindex(6, 40):
        column, row = np.floor(points[picture, joint] * 64).astype(int)
        inside = 0 <= column < 64 and 0 <= row < 64
        assert found[picture, joint] == (inside and masked[picture, row, column])


def test_levels_are_those_of_the_paper():
    kinds = [(kind, level) for kind, level, _ in levels(2)]
    assert kinds == [
        ("clean", 0.0),
        *(("random", r) for r in RANDOM_RATIOS),
        *(("centre", p) for p in CENTRE_PATCHES),
    ]
    assert RANDOM_RATIOS == (0.1, 0.2, 0.3, 0.4)
    assert CENTRE_PATCHES == (2, 4, 6, 8, 10, 12)


@pytest.fixture
def dots():
    """A white dot in each picture, its label, and a predictor that sees it, or else says the centre, then halves the
    distance to a prior at (0.25, 0.25) at each refinement."""
    rng = np.random.default_rng(1)
    places = rng.integers(8, 56, (60, 2))
    images = np.zeros((60, 64, 64, 3), np.uint8)
    for image, (x, y) in zip(images, places, strict=True):
        image[y, x] = 255
    labels = (places[:, None] + 0.5) / 64

    def predict(squares, refine_steps):
        found = np.full((len(squares), 1, 2), 0.5)
        for index, square in enumerate(squares[..., 0]):
            rows, columns = np.nonzero(square == 255)
            if len(rows):
                found[index, 0] = (columns[0] + 0.5) / 64, (rows[0] + 0.5) / 64
        steps = [found]
        for _ in range(refine_steps):
            steps.append((steps[-1] + 0.25) / 2)
        return np.stack(steps, axis=1)

    return images, labels, np.ones((60, 1)), predict


def _table(predict, images, labels, seen, maps, refine_steps, seed=0):
    return [
        occlusion_row(kind, level, hidden, predict(cover(images, hidden), refine_steps), labels, seen, maps)
        for kind, level, hidden in levels(len(images), seed)
    ]


def test_table_has_errors_by_level_and_iteration_and_of_hidden_keypoints_apart(dots):
    images, labels, seen, predict = dots
    maps = fit_maps(predict(images, 0)[:, 0], labels, seen)
    rows = _table(predict, images, labels, seen, maps, refine_steps=2, seed=3)
    assert len(rows) == 11
    clean = rows[0]
    distance = np.linalg.norm(labels - 0.25, axis=-1)
    assert clean["errors"] == pytest.approx([0, 50 * distance.mean(), 75 * distance.mean()], abs=1e-6)
    assert clean["hidden_errors"] is None
    centre = next(row for row in rows if (row["kind"], row["level"]) == ("centre", 8.0))
    gone = (np.abs(labels[:, 0] - 0.5) < 0.25).all(1)
    assert centre["hidden_keypoints"] == gone.sum() > 0
    away = 100 * np.linalg.norm(labels[:, 0] - 0.5, axis=1)
    assert centre["hidden_errors"][0] == pytest.approx(away[gone].mean())
    assert centre["errors"][0] == pytest.approx((away * gone).mean())
    assert [row["hidden_keypoints"] for row in rows[1:5]] == sorted(row["hidden_keypoints"] for row in rows[1:5])


def test_labels_that_are_not_visible_count_in_no_column(dots):
    images, labels, seen, predict = dots
    maps = fit_maps(predict(images, 0)[:, 0], labels, seen)
    labels, seen = labels.copy(), seen.copy()
    labels[::2], seen[::2] = np.nan, 0
    for row in _table(predict, images, labels, seen, maps, refine_steps=0):
        assert np.isfinite(row["errors"]).all()
        assert row["hidden_keypoints"] <= 30


def row(kind, level, *errors):
    return {"kind": kind, "level": level, "errors": list(errors), "hidden_errors": None, "hidden_keypoints": 0}


def test_verdict_names_levels_where_refinement_does_not_help():
    rows = [row("clean", 0.0, 4.0, 4.5), row("random", 0.1, 5.0, 4.9), row("centre", 2.0, 5.0, 5.0)]
    said = verdict(rows)
    assert (said["lower_at_every_level"], said["levels_not_lower"]) == (False, [["centre", 2.0]])
    assert said["clean_change"] == pytest.approx(0.5)
    assert verdict(rows[:2])["lower_at_every_level"]
    assert not verdict(rows[:1])["lower_at_every_level"]  # nothing occluded, nothing shown


def test_plot_is_a_picture_with_both_kinds(tmp_path):
    rows = [row("clean", 0.0, 4.0, 4.1), row("random", 0.2, 6.0, 5.0), row("centre", 4.0, 7.0, 5.0)]
    plot_occlusion(rows, tmp_path / "both.png", "dog")
    plot_occlusion(rows[:2], tmp_path / "random.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "random.png") as random:
        assert both.format == "PNG"
        assert (np.asarray(both.convert("L")) < 128).sum() > (np.asarray(random.convert("L")) < 128).sum() > 100
    with pytest.raises(ValueError, match="no level"):
        plot_occlusion(rows[:1], tmp_path / "none.png")


def test_every_error_lies_within_its_panel():
    rows = [row("clean", 0.0, 4.0, 4.1), row("random", 0.2, 6.0, 5.0), row("centre", 4.0, 70.0, 5.0)]
    for panel in occlusion_figure(rows).axes:
        low, high = panel.get_ylim()
        heights = [y for line in panel.get_lines() for y in line.get_ydata()]
        assert low == 0 < max(heights) < high
        assert len(heights) == 4


def test_plot_without_matplotlib_names_the_extra(tmp_path):
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from model.scoring.plots import occlusion_figure, plot_occlusion\n"
        "plot_occlusion([], 'x.png')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "pose-prior-learner[plots]" in done.stderr
    assert done.returncode == 1


def test_measuring_loads_neither_torch_nor_matplotlib():
    script = (
        "import sys, model.evaluate, model.scoring.occlusion, model.scoring.plots\n"
        "print([name for name in ('torch', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

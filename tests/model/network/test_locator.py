"""The thing is found where its place varies, and pictures are cropped around it."""

import json

import numpy as np
import pytest
import torch

from model.config import resolve
from model.network import locator
from model.network.architecture import expected_tensors
from model.network.locator import Locator, crop, find_squares, to_whole, uncrop
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version.tensor_files import CheckpointError

TINY = {"base_width": 8, "num_keypoints": 4, "num_banks": 2, "bank_size": 4, "token_dim": 8, "memory_width": 8}
TINY |= {"memory_depth": 1, "steps": 2, "batch_size": 4, "history_snapshots": 0, "precision": "fp32"}
SIDE = 128


def config(**changes):
    return resolve("compact", TINY | changes)


def pictures(count=40, *, wandering=True, seed=0):
    """A ring with a cross, 48 pixels wide, on coarse noise; return the pictures and its middles (N, 2) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    made, middles = [], []
    for _ in range(count):
        ground = np.kron(rng.integers(60, 140, (16, 16, 3)), np.ones((8, 8, 1)))
        cx, cy = rng.uniform(28, SIDE - 28, 2) if wandering else rng.uniform(60, 68, 2)
        far = np.hypot(x - cx, y - cy)
        thing = (np.abs(far - 18) < 6) | ((far < 18) & ((np.abs(x - cx) < 3) | (np.abs(y - cy) < 3)))
        made.append(np.where(thing[..., None], (250, 200, 40), ground))
        middles.append((cx / SIDE * 2 - 1, cy / SIDE * 2 - 1))
    return np.stack(made).astype(np.uint8), np.array(middles, np.float32)


@pytest.fixture(scope="module")
def wandering():
    return pictures()


@pytest.fixture(scope="module")
def trained(wandering):
    trainer = Trainer(wandering[0], config(), "cpu")
    list(trainer.run())
    return trainer


def test_square_is_that_of_the_marked_cells():
    marks = -torch.ones(2, 16, 16)
    marks[0, 3:9, 5:11] = 1  # six cells a side, the first at row 3 and column 5
    marks[1] = 1
    found = find_squares(marks.flatten(1))
    # cells stand for their first pixel: those of columns 5 to 10 lie at -1 + 5/8 to -1 + 10/8
    assert found[0].tolist() == pytest.approx([-1 + 7.5 / 8, -1 + 5.5 / 8, 6 / 16 * 1.2])
    assert found[1].tolist() == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("angle", [0.0, np.pi / 2, -0.7])
def test_uncrop_puts_back_what_crop_took(angle):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = torch.stack((x, y, x * y))[None]
    square = torch.tensor([[0.2, -0.1, 0.5, angle]])
    back, covered = uncrop(crop(image, square), square, 64)
    assert covered.sum() == pytest.approx(32 * 32, rel=0.02)
    inside = covered[0, 0] > 0.999
    assert (back - image)[0, :, inside].abs().max() < 2e-3
    assert back[0, :, covered[0, 0] == 0].abs().max() == 0


def test_crop_shows_the_square():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = torch.stack((x, y, x * y))[None]
    square = torch.tensor([[0.25, -0.25, 0.5, 0.0]])
    part = crop(image, square)
    assert part.shape == image.shape
    scale = 64 / 63  # the ramps reach 1 at the last pixel's centre, coordinates at its edge
    assert part[0, 0, 0].min() == pytest.approx((0.25 - 0.5 + 0.5 / 64) * scale, abs=1e-4)
    assert part[0, 1, :, 0].max() == pytest.approx((-0.25 + 0.5 - 0.5 / 64) * scale, abs=1e-4)
    # rotated by a quarter, clockwise: what was to the right is at the top
    turned = crop(image, square + torch.tensor([0, 0, 0, np.pi / 2]))
    assert torch.allclose(turned[0, :, 0, 0], part[0, :, 0, -1], atol=1e-4)


def test_points_of_a_crop_become_points_of_the_picture():
    square = torch.tensor([[0.25, -0.5, 0.5, 0.0], [0.0, 0.0, 1.0, np.pi / 2]])
    points = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]], [[0.3, -0.7], [2.0, 0.0]]])
    expected = [[[-0.25, 0.0], [0.25, -0.5]], [[0.7, 0.3], [0.0, 2.0]]]  # a quarter clockwise: up becomes right
    assert torch.allclose(to_whole(points, square), torch.tensor(expected), atol=1e-6)
    assert torch.allclose(to_whole(points[:, None].expand(2, 3, 2, 2), square)[:, 2], torch.tensor(expected), atol=1e-6)


def test_a_wandering_thing_is_found_in_pictures_that_were_not_seen(trained):
    new, middles = pictures(seed=1)
    images = torch.from_numpy(new).permute(0, 3, 1, 2) / 127.5 - 1
    squares = trained.model.find_crops(images)
    away = (squares[:, :2] - torch.from_numpy(middles)).norm(dim=1)
    thing = 48 / SIDE  # half of its side, in [-1, 1]
    assert away.median() < 0.25 * thing
    assert 0.9 * thing < squares[:, 2].median() < 1.8 * thing
    assert (squares[:, :2].abs() + squares[:, 2:3] < 1 + 1e-5).all()


def test_training_sees_the_crops(trained, wandering):
    seen = trained.batches.images.astype(int)
    yellow = (seen[..., 0] > 200) & (seen[..., 2] < 90)
    whole = (wandering[0][..., 0] > 200) & (wandering[0][..., 2] < 90)
    assert 1.8 < yellow.sum() / whole.sum() < 8  # enlarged, and not lost


def test_pictures_of_a_thing_at_one_place_are_taken_as_they_come():
    images, _ = pictures(wandering=False)
    trainer = Trainer(images, config(), "cpu")
    assert trainer.batches.images is images
    assert trainer.model.find_crops(torch.zeros(1, 3, SIDE, SIDE)) is None


def test_angles_follow_a_rotated_thing_in_pictures_that_were_not_seen():
    """An arrow at any angle."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    made, true = [], torch.from_numpy(rng.uniform(0, 2 * np.pi, 48)).float()
    for angle in true.tolist():
        # in coordinates of an arrow that points up
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        arrow = ((np.abs(u) < 7) & (np.abs(v) < 44)) | ((v < -8) & (v > -44) & (np.abs(u) < (v + 44) * 0.9))
        made.append(np.where(arrow[..., None], (230, 60, 30), (90, 110, 130)) + rng.integers(-12, 13, (SIDE, SIDE, 3)))
    images = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = PosePriorLearner(config())
    turned = locator.describe_angles(images[:36], model.regressor.features)
    assert not locator.is_upright(turned)
    assert locator.is_upright(turned[:1].expand(32, -1, -1, -1))
    assert not model.locator.fit_angle(turned[:1].expand(32, -1, -1, -1))
    assert model.find_crops(images[:1]) is None
    assert model.locator.fit_angle(turned)
    found = torch.cat([model.find_crops(images[n : n + 1]) for n in range(36, 48)])
    assert found[:, :3].tolist() == [[0, 0, 1]] * 12
    apart = found[:, 3] - true[36:]  # the same for all: the template has the angle of one of the pictures
    middle = torch.atan2(apart.sin().mean(), apart.cos().mean())
    assert (apart - middle).sin().abs().max() < np.sin(np.radians(10))
    assert (apart - middle).cos().min() > 0


def test_clips_pictures_around_boxes_few_pictures_and_zoom_off_fit_nothing(wandering):
    images = wandering[0]
    assert not Trainer(images, config(), "cpu", cropped=True).zoomed
    assert not Trainer(images, config(), "cpu", clips=np.arange(40) // 2).zoomed
    assert not Trainer(images[: locator.FEWEST_PICTURES - 1], config(), "cpu").model.locator.fitted
    assert Trainer(images, config(zoom="off"), "cpu").model.locator is None
    assert Trainer(images, config(features="none"), "cpu").model.locator is None


def test_answers_are_in_coordinates_of_the_whole_picture(trained, wandering, tmp_path):
    trained.export(tmp_path)
    images = wandering[0][:3]
    whole = Predictor.load(tmp_path, "cpu")
    found = whole.predict(images, 2, link_map=True, reconstructions=True, codes=True)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    squares = whole.model.find_crops(batch)
    crops = ((crop(batch, squares) + 1) * 127.5).permute(0, 2, 3, 1)
    part = Predictor.load(tmp_path, "cpu")
    part.model.locator.weight.zero_()
    part.model.locator.template.zero_()
    inner = part.predict(crops.round().to(torch.uint8).numpy(), 2, link_map=True, codes=True)
    expected = to_whole(torch.from_numpy(inner.trajectory), squares).numpy()
    assert np.abs(found.trajectory - expected).max() < 0.01  # the crops were rounded to bytes
    assert np.array_equal(found.keypoints, found.trajectory[:, -1])
    assert np.abs(found.surprises - inner.surprises).max() < 0.05 * inner.surprises.max()
    # the link map lies in the square alone
    laid = uncrop(torch.from_numpy(inner.link_map).float()[:, None], squares, SIDE)[0][:, 0].numpy()
    assert np.abs(found.link_map - laid).mean() < 2
    # the reconstruction is laid over the picture, which stays as it is elsewhere
    corner = squares[0]
    far = (0, 0) if corner[0] > 0 else (0, -1)
    shrunk = images[0].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(found.reconstructions[0, -1][far].astype(float) - shrunk[far]).max() <= 1


def test_another_template_alone_crops_again(wandering, tmp_path):
    images = pictures(wandering=False)[0]
    trainer = Trainer(images, config(), "cpu")
    trainer.model.locator.template.fill_(1.0)
    trainer.save_checkpoint(tmp_path)
    resumed = Trainer(images, config(), "cpu")
    assert resumed.batches.images is images
    resumed.load_checkpoint(tmp_path)
    assert resumed.zoomed
    assert resumed.batches.images is not images


def test_crops_do_not_depend_on_autocast(wandering):
    image = torch.from_numpy(wandering[0][:4]).permute(0, 3, 1, 2) / 127.5 - 1
    found = torch.tensor([[0.211, -0.137, 0.513, 0.377]]).repeat(4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, (back, covered) = crop(image, found), uncrop(image, found, SIDE)
    assert torch.equal(mixed, crop(image, found))
    assert torch.equal(back, uncrop(image, found, SIDE)[0])
    assert torch.equal(covered, uncrop(image, found, SIDE)[1])


def test_resumed_run_and_continued_version_have_their_locator(trained, wandering, tmp_path):
    checkpoint, version = tmp_path / "checkpoint", tmp_path / "version"
    for folder in (checkpoint, version):
        folder.mkdir()
    trained.save_checkpoint(checkpoint)
    trained.export(version)
    others = pictures(seed=3)[0]
    continued = Trainer(others, config(seed=5), "cpu")
    before = continued.batches.images.copy()
    continued.load_weights(version / "weights.safetensors")
    assert torch.equal(continued.model.locator.weight, trained.model.locator.weight)
    assert not np.array_equal(continued.batches.images, before)
    resumed = Trainer(wandering[0], config(), "cpu")
    assert resumed.load_checkpoint(checkpoint)
    assert np.array_equal(resumed.batches.images, trained.batches.images)


def test_version_without_the_setting_is_read_and_takes_pictures_as_they_come(wandering, tmp_path):
    trainer = Trainer(wandering[0], config(zoom="off"), "cpu")
    trainer.export(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    del facts["zoom"]  # as earlier releases wrote it
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert Predictor.load(tmp_path, "cpu").model.locator is None
    (tmp_path / "config.json").write_text(json.dumps({**facts, "zoom": "auto"}))
    with pytest.raises(CheckpointError, match="weights of another model"):
        Predictor.load(tmp_path, "cpu")


def test_table_of_tensors_has_the_locator():
    tensors = expected_tensors(config())
    assert tensors["locator.weight"] == ("F32", (152,))
    assert tensors["locator.bias"] == ("F32", ())
    assert tensors["locator.template"] == ("F32", (112, 64))
    assert not [name for name in expected_tensors(config(zoom="off")) if name.startswith("locator")]
    assert set(Locator(config()).state_dict()) == {"weight", "bias", "template"}

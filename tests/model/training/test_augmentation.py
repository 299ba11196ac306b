from dataclasses import replace

import numpy as np
import pytest
import torch

from model.process_group import Group
from model.training.augmentation import augment
from model.training.trainer import Trainer


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures():
    return torch.rand(6, 3, 32, 32, generator=_generator(1)) * 2 - 1


def test_strength_decides_how_far_pictures_change(pictures):
    change = [float((augment(pictures, s, _generator()) - pictures).abs().mean()) for s in (0.0, 0.02, 0.5)]
    assert change[0] < 1e-5
    assert change[0] < change[1] < change[2]
    assert augment(pictures, 2.0, _generator()).abs().max() <= 1


def test_each_picture_is_changed_in_its_own_way():
    same = torch.rand(1, 3, 16, 16, generator=_generator(2)).expand(2, -1, -1, -1)
    one, other = augment(same, 1.0, _generator())
    assert (one - other).abs().mean() > 0.05


def test_picture_and_reference_are_warped_alike(pictures):
    torch.testing.assert_close(augment(pictures, 1.0, _generator()), augment(pictures, 1.0, _generator()))


def test_things_stay_near_where_they_were():
    """A dot at the centre moves by at most the shift; one near the border also by rotation and scaling."""
    y, x = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
    dots = {place: torch.exp(-((x - place) ** 2 + (y - 32) ** 2) / 8) for place in (32, 54)}
    for place, most in ((32, 0.1), (54, 0.1 + 0.68 * (0.16 + 0.28) * 1.2)):
        image = dots[place].expand(64, 3, 65, 65) * 2 - 1
        found = augment(image, 1.0, _generator(3)).mean(1).flatten(1).argmax(-1)
        moved = torch.stack((found % 65 - place, found // 65 - 32), -1).abs() * 2 / 65
        assert moved.max() <= most + 2 / 65
        assert moved.max() > 0.05


def test_processes_change_their_pictures_as_one_would(pictures):
    whole = augment(pictures, 1.0, _generator())
    for rank in range(2):
        share = augment(pictures[rank::2], 1.0, _generator(), Group(rank=rank, size=2))
        torch.testing.assert_close(share, whole[rank::2])


def test_clips_are_rebuilt_from_frames_changed_like_them(clips, tiny, images):
    """Picture and reference are equal if all frames of a clip are, because both get the same changes."""
    still = np.stack([images[int(clip) % len(images)] for clip in clips])
    trainer = Trainer(still, replace(tiny, augmentation=1.0), device="cpu", clips=clips)
    picture = trainer._load(trainer.batches.at(0))
    assert torch.equal(picture, trainer._reference(picture))
    assert (picture - Trainer(still, replace(tiny, augmentation=0.0), device="cpu", clips=clips)._load(
        trainer.batches.at(0)
    )).abs().mean() > 0.02  # fmt: skip

"""The preview of a training: pairs of pictures with poses and reconstructions, and the prior."""

from __future__ import annotations

import numpy as np
import torch

from model.data import Clips
from model.network.pose_prior_learner import Located, PosePriorLearner
from model.preview import draw_preview
from model.training.trainer import Trainer


def test_keypoints_lie_where_the_model_finds_them(tiny, images, monkeypatch):
    model = PosePriorLearner(tiny)
    model.link_logits.data.fill_(-1e4)
    places = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [0.0, 0.0]])
    monkeypatch.setattr(
        model, "locate", lambda image, evidence=False: Located(places.expand(len(image), -1, -1), torch.ones(1, 5))
    )
    sheet = np.asarray(draw_preview(model, images)).astype(int)
    assert sheet.shape == (3 * 132 - 4, 8 * 132 + 3 * 132 - 4, 3)  # ten pictures: three rows of four pairs
    for index in range(10):
        top, left = index // 4 * 132, index % 4 * 264
        colours = {tuple(sheet[top + round((y + 1) * 64), left + round((x + 1) * 64)]) for x, y in places.tolist()}
        assert len(colours) == 5, "each keypoint has a colour of its own"
        assert all(max(colour) - min(colour) > 60 for colour in colours), "where the bars are grey and yellow"


def test_a_preview_changes_nothing_of_the_training(tiny, images, clips):
    looked_at, other = (Trainer(images, tiny, "cpu", clips=clips) for _ in range(2))
    for trainer in (looked_at, other):
        for report in trainer.run():
            if trainer is looked_at and report.step % 2:
                assert draw_preview(trainer.model, images, Clips(clips, len(images))).size[0] > 1000
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, looked_at.model.state_dict()[name]), name


def test_a_model_without_a_prior_shows_the_mean_pose(tiny, images):
    from dataclasses import replace

    model = PosePriorLearner(replace(tiny, method="autolink"))
    assert draw_preview(model, images[:1]).size == (8 * 132 + 260, 260)

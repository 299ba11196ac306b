"""Training for hidden parts, and refinement that stays near the visible pose."""

from __future__ import annotations

import pytest
import torch

from model.config import resolve
from model.data import step_generator
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import fill_in, refine, refined_share
from model.training.losses import GRID, hidden_part_losses, hide_parts

SMALL = {"image_size": 32, "base_width": 8, "num_keypoints": 6, "token_dim": 16, "memory_width": 16, "num_banks": 4}


def _model(**settings: object) -> PosePriorLearner:
    torch.manual_seed(0)
    return PosePriorLearner(resolve("compact", {**SMALL, **settings}))


def _images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 1.6 + 0.2  # nowhere grey


def test_hidden_parts_are_grey_and_the_rest_is_untouched() -> None:
    image = _images(200)
    hidden = hide_parts(image, step_generator(0, "hide", 0))
    grey = (hidden == 0).all(dim=1)
    assert torch.equal(hidden[~grey[:, None].expand_as(hidden)], image[~grey[:, None].expand_as(image)])


def test_some_pictures_stay_whole_and_some_lose_patches_or_a_square() -> None:
    hidden = hide_parts(_images(400), step_generator(0, "hide", 0))
    grey = (hidden == 0).all(dim=1)
    patches = grey.view(400, GRID, 2, GRID, 2)
    assert torch.equal(patches.any(4).any(2), patches.all(4).all(2))  # whole patches or none
    share = grey.float().mean((1, 2))
    whole = share == 0
    rows, columns = grey.any(2).sum(1), grey.any(1).sum(1)
    square = ~whole & ((rows * columns).float() == grey.sum((1, 2)).float())
    assert 0.12 < whole.float().mean() < 0.35
    assert 0.25 < square.float().mean() < 0.5
    assert share.max() <= 0.8**2 + 0.1


def test_a_square_lies_about_the_centre_on_both_axes() -> None:
    hidden = hide_parts(torch.ones(600, 3, 32, 32), step_generator(0, "hide", 3))
    grey = (hidden == 0).all(dim=1).float()
    over_all = grey.mean(0)
    assert over_all[12:20, 12:20].mean() > 2 * over_all[:4].mean()
    assert over_all[12:20, 12:20].mean() > 2 * over_all[:, :4].mean()


def test_only_the_regressor_learns_from_hidden_parts_and_batch_norms_stay() -> None:
    model = _model().train()
    image = _images()
    before = {name: value.clone() for name, value in model.named_buffers()}
    losses = hidden_part_losses(model, image, torch.zeros(4, 6, 2), 1e-3, step_generator(0, "hide", 0))
    assert sorted(losses) == ["occlusion", "refinement"]
    (losses["occlusion"] + losses["refinement"]).backward()
    learned = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert learned == {"regressor"}
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert model.training


def test_each_loss_is_the_mean_distance_to_the_whole_pictures_keypoints() -> None:
    model = _model().train()
    image, goal = _images(), torch.full((4, 6, 2), 0.3)
    losses = hidden_part_losses(model, image, goal, 1e-3, step_generator(0, "hide", 0))
    model.eval()
    hidden = hide_parts(image, step_generator(0, "hide", 0))
    with torch.no_grad():
        found = model.locate(hidden).keypoints
        again = model.locate(fill_in(model, hidden, found, 1e-3)).keypoints
    assert losses["occlusion"].item() == pytest.approx((found - goal).abs().mean().item(), rel=1e-5)
    assert losses["refinement"].item() == pytest.approx((again - goal).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("gain", [0.0, 0.35, 1.0])
def test_a_step_of_refinement_goes_its_part_of_the_way_from_the_first_pose(gain: float) -> None:
    model = _model(refine_gain=gain, refine_weighting="constant").eval()
    image = _images()
    located, trajectory = refine(model, image, 2)
    with torch.no_grad():
        first = model.locate(image).keypoints
        found = model.locate(fill_in(model, image, first)).keypoints
        second = first + gain * (found - first)
        found = model.locate(fill_in(model, image, second)).keypoints
    torch.testing.assert_close(trajectory[:, 0], first)
    torch.testing.assert_close(trajectory[:, 1], second)
    torch.testing.assert_close(trajectory[:, 2], first + gain * (found - first))
    assert torch.equal(located.keypoints, trajectory[:, 2])


def test_keypoints_seen_better_in_the_filled_in_image_move_further() -> None:
    model = _model(refine_gain=0.6, refine_weighting="scores").eval()
    image = _images()
    located, trajectory = refine(model, image, 1)
    with torch.no_grad():
        first = model.locate(image)
        found = model.locate(fill_in(model, image, first.keypoints))
    before, after = (at.scores / (1 - at.scores) for at in (first, found))
    share = 0.6 * after / (before + after)
    assert share.std() > 0.001
    torch.testing.assert_close(trajectory[:, 1], torch.lerp(first.keypoints, found.keypoints, share[..., None]))
    torch.testing.assert_close(located.scores, torch.lerp(first.scores, found.scores, share))


def test_share_of_the_refined_pose_is_that_of_its_odds() -> None:
    first, refined = torch.tensor([[0.8, 0.8, 0.5, 1.0, 0.0]]), torch.tensor([[0.8, 0.5, 0.8, 0.9, 0.0]])
    assert refined_share("constant", first, refined).tolist() == [[1.0] * 5]
    # odds 4 and 4, 4 and 1, 1 and 4, 999 and 9, 1/999 each
    expected = [[0.5, 0.2, 0.8, 9 / 1008, 0.5]]
    torch.testing.assert_close(refined_share("scores", first, refined), torch.tensor(expected))


def test_summed_skips_cost_less_than_half_of_the_weights_of_the_joining_convolutions() -> None:
    joined, summed = _model(skips="concat"), _model(skips="sum")

    def size(model: PosePriorLearner) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if ".up." in name)

    assert size(summed) < 0.55 * size(joined)
    assert refine(summed.eval(), _images(), 0)[0].keypoints.shape == (4, 6, 2)

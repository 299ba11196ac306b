from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import resolve
from model.data import mask_patches, to_tensor
from model.network.links import link_lengths
from model.network.pose_prior_learner import PosePriorLearner, attention_near, colour_under
from model.network.refine import fill_in, refine
from model.training.losses import boundary_loss, link_regularization_loss, memory_loss, reconstruction_loss


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return PosePriorLearner(tiny)


@pytest.fixture
def batch(images):
    return to_tensor(images[:4], torch.device("cpu"))


def _touched(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_reconstruction_pathway_reaches_everything_but_the_memory(model, batch):
    out = model(batch, batch * 0)
    out.reconstruction.square().mean().backward()
    assert not _touched(model.memory)
    assert "link_logits" in _touched(model)
    assert any(name.startswith("regressor.encoder") for name in _touched(model))
    assert any(name.startswith("regressor.affine") for name in _touched(model))


def test_memory_pathway_reaches_nothing_but_the_memory(model, batch):
    out = model(batch, batch * 0)
    memory_loss(out.recalled, out.keypoints, 100).backward()
    assert {name for name in _touched(model) if not name.startswith("memory.")} == set()
    assert any(name.startswith("memory.encoder") for name in _touched(model))
    assert any(name.startswith("memory.decoder") for name in _touched(model))


def test_eval_forward_leaves_codebook_unchanged(model, batch):
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch, batch)
    refine(model, batch, 2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("head", ["affine", "residual"])
def test_both_heads_place_keypoints_and_score_them(tiny, batch, head):
    torch.manual_seed(0)
    model = PosePriorLearner(resolve("compact", {**tiny.to_dict(), "head": head})).eval()
    located = model.locate(batch)
    assert located.keypoints.shape == (4, 5, 2)
    assert located.scores.shape == (4, 5)
    assert located.scores.min() >= 0
    assert located.scores.max() <= 1


def test_affine_head_starts_near_the_prior(tiny, batch):
    torch.manual_seed(0)
    model = PosePriorLearner(resolve("compact", {**tiny.to_dict(), "head": "affine"})).eval()
    prior = model.memory.keypoint_prior()
    assert (model.locate(batch).keypoints - prior).abs().max() < 1.0


def test_link_weights_are_positive_and_their_step_is_scaled(tiny):
    torch.manual_seed(0)
    model = PosePriorLearner(tiny)
    assert model.link_weights.min() > 0
    torch.testing.assert_close(model.link_weights, torch.nn.functional.softplus(tiny.link_scale * model.link_logits))
    assert model.link_weights.log().mean().item() == pytest.approx(-4, abs=0.3)


def test_refinement_returns_every_pose_on_the_way_and_the_last_as_answer(model, batch):
    model.eval()
    located, trajectory = refine(model, batch, 3)
    assert trajectory.shape == (4, 4, 5, 2)
    torch.testing.assert_close(trajectory[:, -1], located.keypoints)
    torch.testing.assert_close(trajectory[:, 0], model.locate(batch).keypoints)
    assert not torch.equal(trajectory[:, 0], trajectory[:, 1])


def test_score_is_the_attention_near_the_keypoint():
    grid = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.9, 0.0]])
    attention = torch.tensor([[[0.5, 0.3, 0.2]]])
    assert attention_near(attention, torch.zeros(1, 1, 2), grid).item() == pytest.approx(0.8)


def test_boundary_loss_counts_only_what_lies_outside():
    keypoints = torch.tensor([[[0.5, -1.5], [2.0, 0.9]], [[0.0, 0.0], [0.0, 0.0]]])
    assert boundary_loss(keypoints).item() == pytest.approx((1.5 + 2.0) / 4)  # two images, two axes


def test_link_regularization_prefers_links_that_keep_their_length_and_moves_weights_only():
    prior = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.4, 0.4]], requires_grad=True)
    poses = prior.detach()[None].clone().requires_grad_()
    weights = torch.full((6,), 0.5, requires_grad=True)
    link_regularization_loss(prior, poses, weights).backward()
    assert prior.grad is None
    assert poses.grad is None
    assert weights.grad.min() < 0  # unchanged links of medium length are pulled up


def test_link_regularization_follows_its_formula():
    prior = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.4, 0.4]])
    pose = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.4, 0.2]])
    weights = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    before, after = link_lengths(prior), link_lengths(pose)
    counted = [n for n, length in enumerate(after) if 0.3 < length < 0.7]
    assert counted == [2, 4]  # from (0, 0) and from (1, 0) to the fourth keypoint
    expected = np.mean([abs(10 * abs(after[n] - before[n]) + weights[n].log()) for n in counted])
    assert link_regularization_loss(prior, pose[None], weights).item() == pytest.approx(float(expected), rel=1e-5)


def test_attention_and_coordinates_agree_in_axis_order(model):
    with torch.no_grad():  # attention far to the right, a little down
        attention = torch.full((1, 5, 8, 8), -50.0)
        attention[:, :, 4, 7] = 50.0
    model.regressor.encoder.forward = lambda image, activations: torch.zeros(1, 2 * model.config.base_width, 8, 8)
    model.regressor.attention.forward = lambda features: attention
    model.regressor.head_scale = 0.0
    keypoints = model.locate(torch.zeros(1, 3, 32, 32)).keypoints
    torch.testing.assert_close(keypoints, torch.tensor([7 / 8, 1 / 8]).expand(1, 5, 2))


def test_refinement_draws_what_the_memory_makes_of_the_pose_around_the_original_picture(model, batch):
    model.eval()
    seen = []
    rebuild = model.reconstructor.forward
    model.reconstructor.forward = lambda reference, drawn: seen.append((reference, drawn)) or rebuild(reference, drawn)
    refine(model, batch, 2)
    first = model.memory(model.locate(batch).keypoints).keypoints
    assert all(torch.equal(reference, batch) for reference, _ in seen)
    torch.testing.assert_close(seen[0][1], model.draw(first, batch).detach())
    torch.testing.assert_close(seen[0][1][:, :1], model.draw_links(first, 32).detach())


def test_reconstructions_are_those_that_the_steps_look_at_and_one_of_the_last_pose(model, batch):
    model.eval()
    plain, trajectory = refine(model, batch, 2)
    filled = []
    located, again = refine(model, batch, 2, filled)
    torch.testing.assert_close((located.keypoints, again), (plain.keypoints, trajectory))
    for pose, image in zip(trajectory.unbind(1), filled, strict=True):
        torch.testing.assert_close(image, fill_in(model, batch, pose))
    assert len(filled) == 3


def test_object_colour_is_that_of_what_lies_under_the_links_and_moves_no_keypoint():
    image = torch.zeros(1, 3, 8, 8)
    image[0, :, :, 4:] = torch.tensor([0.5, -0.25, 1.0])[:, None, None]
    drawn = torch.zeros(1, 1, 8, 8, requires_grad=True)
    covered = drawn + torch.nn.functional.pad(torch.ones(1, 1, 8, 3), (5, 0))
    colour = colour_under(covered, image)
    torch.testing.assert_close(colour.flatten(), torch.tensor([0.5, -0.25, 1.0]))
    assert not colour.requires_grad
    assert colour_under(torch.zeros(1, 1, 8, 8), image).flatten().tolist() == [0, 0, 0]


def test_drawing_has_the_channels_that_the_settings_ask_for(tiny, batch):
    for colours, object_colour, channels in ((0, False, 1), (2, False, 3), (0, True, 4), (3, True, 7)):
        model = PosePriorLearner(replace(tiny, link_colours=colours, object_colour=object_colour))
        drawn = model.draw(model.locate(batch).keypoints, batch)
        assert drawn.shape == (len(batch), channels, *batch.shape[2:])
        assert torch.equal(drawn[:, :1], model.draw_links(model.locate(batch).keypoints, 32))
        assert model(batch, batch).link_map.shape == (len(batch), 1, *batch.shape[2:])


def test_link_colours_learn(model, batch):
    out = model(batch, batch)
    out.reconstruction.square().mean().backward()
    assert model.link_colours.grad.abs().max() > 0


def test_decode_weight_scales_the_keypoint_term(model, batch):
    recalled = model(batch, batch).recalled
    target = recalled.keypoints.detach() + 1
    once, twice = memory_loss(recalled, target, 1).item(), memory_loss(recalled, target, 2).item()
    assert twice - once == pytest.approx(1.0, rel=1e-4)


def test_memory_loss_is_zero_for_a_perfect_memory(model, batch):
    recalled = model(batch, batch).recalled
    perfect = type(recalled)(recalled.vectors, recalled.codes, recalled.vectors, recalled.keypoints)
    assert memory_loss(perfect, recalled.keypoints, 100).item() == 0


def test_reconstruction_loss_weighs_levels_alike():
    one = [torch.ones(1, 2, 4, 4), 100 * torch.ones(1, 2, 2, 2)]
    two = [level * 1.5 for level in one]
    assert reconstruction_loss(two, one).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 levels compared with 1"):
        reconstruction_loss(two, one[:1])


def test_mask_sets_whole_patches_to_grey_at_the_given_rate():
    image = torch.ones(8, 3, 32, 32)
    masked = mask_patches(image, 0.8, 8, torch.Generator().manual_seed(0))
    patches = masked[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert set(patches.mean(-1).unique().tolist()) == {0.0, 1.0}
    assert 1 - masked.mean().item() == pytest.approx(0.8, abs=0.06)

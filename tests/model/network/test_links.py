import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network.blocks import pixel_centres, pixel_grid, scale_to_box
from model.network.links import (
    coloured_link_map,
    connectivity_matrix,
    link_indices,
    link_lengths,
    link_map,
    link_map_literal,
)


def _poses(batch, keypoints, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.rand(batch, keypoints, 2, generator=generator, dtype=dtype) * 2.4 - 1.2
    weights = torch.rand(keypoints * (keypoints - 1) // 2, generator=generator, dtype=dtype) + 1e-3
    return poses.requires_grad_(), weights.requires_grad_()


def test_pixel_centres_follow_the_stated_convention():
    assert pixel_centres(4).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert pixel_grid(2).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]


@settings(max_examples=30, deadline=None)
@given(
    keypoints=st.integers(4, 32),
    width=st.sampled_from([7.5e-5, 1e-3, 2e-2]),
    side=st.sampled_from([8, 17, 32]),
    seed=st.integers(0, 10_000),
)
def test_link_map_agrees_with_eq_3_in_values_and_gradients(keypoints, width, side, seed):
    poses, weights = _poses(2, keypoints, seed)
    ours, literal = link_map(poses, weights, width, side), link_map_literal(poses, weights, width, side)
    torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-12)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=ours.dtype)
    for a, b in zip(
        torch.autograd.grad(ours, (poses, weights), pull), torch.autograd.grad(literal, (poses, weights), pull),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_link_map_passes_gradcheck():
    poses, weights = _poses(2, 5)
    assert torch.autograd.gradcheck(lambda k, w: link_map(k, w, 2e-2, 8), (poses, weights))


@pytest.mark.parametrize("width", [7.5e-5, 1e-3])
def test_float32_values_stay_within_a_thousandth_of_the_exact_ones(width):
    poses, weights = _poses(2, 16)
    exact = link_map_literal(poses, weights, width, 64)
    ours = link_map(poses.float(), weights.float(), width, 64)
    assert (ours.double() - exact).abs().max() < 1e-3


def test_zero_length_link_gives_finite_values_and_gradients():
    poses = torch.zeros(1, 4, 2, requires_grad=True)
    weights = torch.ones(6, requires_grad=True)
    drawn = link_map(poses, weights, 1e-2, 8)
    drawn.sum().backward()
    assert torch.isfinite(drawn).all()
    assert torch.isfinite(poses.grad).all()
    assert torch.isfinite(weights.grad).all()


def test_link_of_no_length_leaves_the_others_as_eq_3_has_them():
    poses, weights = _poses(2, 5)
    with torch.no_grad():
        poses[:, 1] = poses[:, 0]
    torch.testing.assert_close(link_map(poses, weights, 1e-2, 16), link_map_literal(poses, weights, 1e-2, 16))


def test_nan_keypoints_give_nan_and_no_crash():
    poses = torch.full((1, 16, 2), float("nan"))
    assert link_map(poses, torch.ones(120), 1e-3, 16).isnan().all()


def test_wrong_shapes_say_what_came_and_what_was_expected():
    with pytest.raises(ValueError, match=r"expected \(B, K, 2\)"):
        link_map(torch.zeros(4, 2), torch.ones(6), 1e-3, 8)
    with pytest.raises(ValueError, match=r"4 keypoints need \(6,\)"):
        link_map(torch.zeros(1, 4, 2), torch.ones(5), 1e-3, 8)


def test_connectivity_matrix_is_symmetric_and_holds_each_weight_once_a_side():
    weights = torch.arange(1.0, 7.0)
    matrix = connectivity_matrix(weights)
    i, j = link_indices(4)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix[i, j], weights)
    assert matrix.diagonal().eq(0).all()


def test_link_lengths_are_in_the_units_of_the_keypoints():
    poses = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert link_lengths(poses).tolist() == [5.0, 4.0, 3.0]


def test_scale_to_box_ignores_shift_and_scale():
    pose = torch.tensor([[0.1, 0.2], [0.5, -0.3], [-0.4, 0.9]])
    torch.testing.assert_close(scale_to_box(pose), scale_to_box(pose * torch.tensor([2.0, 0.5]) + 7), atol=1e-5, rtol=0)
    assert scale_to_box(torch.ones(3, 2)).eq(0).all()


def test_each_pixel_has_the_colour_of_the_link_that_won_it():
    poses = torch.tensor([[[-0.9, -0.5], [0.9, -0.5], [-0.9, 0.5], [0.9, 0.5]]])
    weights = torch.full((6,), 1e-6)
    weights[0], weights[5] = 0.5, 1.0  # the upper and the lower side of the square
    colours = torch.arange(12.0).view(6, 2)
    drawn = coloured_link_map(poses, weights, colours, 1e-2, 16)
    assert drawn.shape == (1, 3, 16, 16)
    assert torch.equal(drawn[:, :1], link_map(poses, weights, 1e-2, 16))
    torch.testing.assert_close(drawn[0, 1:, 4, 8], colours[0] * drawn[0, 0, 4, 8])
    torch.testing.assert_close(drawn[0, 1:, 11, 8], colours[5] * drawn[0, 0, 11, 8])
    assert drawn[0, 0, 4, 8] > 0.3
    assert drawn[0, 0, 11, 8] > 0.6


def test_coloured_link_map_passes_gradcheck():
    poses, weights = _poses(2, 5)
    colours = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, w, c: coloured_link_map(k, w, c, 2e-2, 8), (poses, weights, colours))


def test_colours_of_another_number_of_links_are_refused():
    with pytest.raises(ValueError, match=r"link_colours have shape \(5, 3\); 6 links need \(6, C\)"):
        coloured_link_map(torch.zeros(1, 4, 2), torch.ones(6), torch.zeros(5, 3), 1e-3, 8)

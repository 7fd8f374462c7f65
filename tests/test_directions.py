"""Perturbation formulas against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from landscape.directions import (
    adaptive_ascent,
    class_conditional_ascent,
    filter_normalised,
    filter_norms,
    gaussian,
    gradient_ascent,
    layer_normalised,
    model_normalised,
    orthogonal_as_a_whole,
    random_tree,
    tree_norm,
)
from landscape.randomness import stream

COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # CIFAR-10-LT, imbalance ratio 100


def tree(*shapes, name="tree"):
    generator = stream(0, name)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def joined(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_tree_norm_is_joint():
    assert tree_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item() == 5.0


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_gradient_ascent_has_length_rho_along_the_gradient(rho):
    gradients = tree((3, 2), (4,))
    step = joined(gradient_ascent(gradients, rho))
    expected = rho * joined(gradients) / joined(gradients).norm()
    torch.testing.assert_close(step, expected, rtol=1e-11, atol=0)


def test_gradient_ascent_is_zero_at_a_zero_gradient():
    assert joined(gradient_ascent([torch.zeros(3)], 1.0)).equal(torch.zeros(3))


def test_adaptive_ascent_is_the_worst_case_of_its_stretched_ball():
    """The step maximises <g, e> over |e / T| = rho, so <g, e> = rho |T g| and the stretched length is rho."""
    gradients, weights = tree((3, 2), (4,), name="g"), tree((3, 2), (4,), name="w")
    step = joined(adaptive_ascent(gradients, weights, 0.7, eta=0.1, is_scaled=[True, False]))
    stretch = torch.cat([(weights[0].abs() + 0.1).flatten(), torch.ones(4, dtype=torch.float64)])
    assert (step / stretch).norm().item() == pytest.approx(0.7, rel=1e-10)
    assert (joined(gradients) @ step).item() == pytest.approx(
        0.7 * (stretch * joined(gradients)).norm().item(), rel=1e-10
    )


def test_adaptive_ascent_does_not_see_a_rescaled_layer():
    """With eta = 0, w -> a w and g -> g / a give a step scaled by a: the same relative perturbation."""
    gradients, weights = tree((3, 2), (4,), name="g"), tree((3, 2), (4,), name="w")
    step = adaptive_ascent(gradients, weights, 0.5, eta=0.0)
    rescaled = adaptive_ascent([gradients[0] / 8, gradients[1]], [weights[0] * 8, weights[1]], 0.5, eta=0.0)
    torch.testing.assert_close(rescaled, [step[0] * 8, step[1]], rtol=1e-10, atol=1e-12)


def test_class_conditional_norms_on_long_tailed_cifar():
    gradients = torch.eye(10, 650, dtype=torch.float64)
    steps = class_conditional_ascent(
        [gradients], torch.tensor(COUNTS), theta_norm=torch.tensor(1.0, dtype=torch.float64), num_parameters=650
    )
    norms = steps[0].norm(dim=1).tolist()
    assert norms == pytest.approx(
        [0.4246, 0.4826, 0.5485, 0.6234, 0.7087, 0.8055, 0.9158, 1.0417, 1.1865, 1.3495], abs=5e-5
    )


def test_class_conditional_radius_grows_as_the_gradient_vanishes_until_the_bound():
    gradients = torch.tensor([[4.0], [1.0], [0.25], [1e-30], [0.0]], dtype=torch.float64)
    theta_norm = torch.tensor(2.0, dtype=torch.float64)
    counts = torch.full((5,), 17)
    free, bounded = (
        class_conditional_ascent(
            [gradients], counts, theta_norm=theta_norm, num_parameters=1, noise_ratio=0.5, max_relative_radius=bound
        )[0].flatten()
        for bound in (None, 0.3)
    )
    # 0.5 * sqrt(2 / (2 |g|)) * (1 / 16)^(1/4) = 0.25 / sqrt(|g|)
    assert free.tolist() == pytest.approx([0.125, 0.25, 0.5, 0.25e15, 0.0])
    assert bounded.tolist() == pytest.approx([0.125, 0.25, 0.5, 0.6, 0.0])


def test_class_conditional_step_is_finite_for_a_class_of_one_example():
    steps = class_conditional_ascent(
        tree((3, 2, 2), (3, 2)), torch.tensor([1, 2, 3]), theta_norm=torch.tensor(1.0), num_parameters=6
    )
    assert all(step.isfinite().all() for step in steps)
    for step, gradient in zip(steps, tree((3, 2, 2), (3, 2))):
        cosine = torch.nn.functional.cosine_similarity(step.flatten(1), gradient.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))


def test_gaussian_moments_and_streams():
    like = [torch.zeros(200, 300, dtype=torch.float64), torch.zeros(50)]
    for seed in range(3):
        draws = gaussian(like, stream(seed, "noise"), sigma=0.2)
        num = draws[0].numel()
        assert abs(draws[0].mean()) < 5 * 0.2 / math.sqrt(num)
        assert abs(draws[0].std() - 0.2) < 5 * 0.2 / math.sqrt(2 * num)
    assert [d.dtype for d in draws] == [torch.float64, torch.float32]
    again = gaussian(like, stream(2, "noise"), sigma=0.2)
    other = gaussian(like, stream(2, "another"), sigma=0.2)
    assert all(a.equal(b) for a, b in zip(draws, again))
    assert not draws[0].equal(other[0])


def test_gaussian_is_clipped_elementwise():
    draw = gaussian([torch.zeros(10_000)], stream(0, "noise"), sigma=1.0, clip=0.5)[0]
    assert draw.min().item() == -0.5
    assert draw.max().item() == 0.5


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_filter_normalised_gives_each_filter_the_norm_of_its_weights(shape):
    draws, weights = tree(shape, name="d"), tree(shape, name="w")
    direction = filter_normalised(draws, weights)[0]
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), weights[0].flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(direction.flatten(1), draws[0].flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))


def test_filter_normalised_along_the_classes_of_a_cosine_head():
    draws, weights = tree((6, 4), name="d"), tree((6, 4), name="w")
    direction = filter_normalised(draws, weights, filter_dims=[1])[0]
    torch.testing.assert_close(direction.norm(dim=0), weights[0].norm(dim=0))


@pytest.mark.parametrize(("mode", "factor"), [("zero", 0.0), ("scale", 1.0)])
def test_filter_normalised_on_one_dimensional_tensors(mode, factor):
    direction = filter_normalised(tree((5,), name="d"), tree((5,), name="w"), one_dimensional=mode)[0]
    torch.testing.assert_close(direction.norm(), factor * tree((5,), name="w")[0].norm())


def test_filter_normalised_is_finite_for_a_zero_draw():
    assert filter_normalised([torch.zeros(2, 3)], [torch.ones(2, 3)])[0].equal(torch.zeros(2, 3))
    assert filter_norms(torch.zeros(2, 3)).shape == (2, 1)


def test_filter_normalised_per_token_of_prompts():
    draws, weights = tree((3, 2, 5), name="d"), tree((3, 2, 5), name="w")
    direction = filter_normalised(draws, weights, filter_dims=[(0, 1)])[0]
    torch.testing.assert_close(direction.norm(dim=2), weights[0].norm(dim=2))
    assert not filter_normalised(draws, weights, filter_dims=[()])[0].any()
    whole = filter_normalised(draws, weights, filter_dims=[()], one_dimensional="scale")[0]
    torch.testing.assert_close(whole.norm(), weights[0].norm())


def test_layer_normalised_gives_each_tensor_the_norm_of_its_weights():
    draws, weights = tree((4, 3), (7,), name="d"), tree((4, 3), (7,), name="w")
    weights[1] *= 100
    for direction, draw, weight in zip(layer_normalised(draws, weights), draws, weights):
        torch.testing.assert_close(direction, draw * weight.norm() / draw.norm())


def test_model_normalised_counts_only_the_weights_that_move():
    draws, weights = tree((4, 3), (7,), (2, 2), name="d"), tree((4, 3), (7,), (2, 2), name="w")
    draws[1].zero_()
    direction = model_normalised(draws, weights)
    torch.testing.assert_close(joined(direction).norm(), joined([weights[0], weights[2]]).norm())
    torch.testing.assert_close(direction[0] / draws[0], (direction[2] / draws[2])[0, 0].expand(4, 3))


def test_orthogonal_as_a_whole_removes_one_direction_only():
    draws, others = tree((40, 30), (70,), name="d"), tree((40, 30), (70,), name="w")
    d, o = joined(draws), joined(others)
    expected = d - (d @ o) / (o @ o) * o
    torch.testing.assert_close(joined(orthogonal_as_a_whole(draws, others)), expected)


SHAPES = ((6, 3, 2, 2), (6,), (4, 6), (4,))


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "gaussian"])
@pytest.mark.parametrize("one_dimensional", ["zero", "scale"])
def test_random_tree_keeps_two_draws_orthogonal_and_what_does_not_move(normalization, one_dimensional):
    weights = [w.float() for w in tree(*SHAPES, name="w")]
    options = {"normalization": normalization, "one_dimensional": one_dimensional}
    first = random_tree(weights, stream(0, "1"), **options)
    second = random_tree(weights, stream(0, "2"), orthogonal_to=[first], **options)
    one, other = joined(first).double(), joined(second).double()
    assert abs(one @ other) / (one.norm() * other.norm()) < 1e-6
    for direction in (first, second):
        for part, weight in zip(direction, weights):
            assert bool(part.any()) == (weight.dim() > 1 or one_dimensional == "scale")
    again = random_tree([w.double() for w in weights], stream(0, "1"), **options)
    assert again[0].dtype == torch.float64
    torch.testing.assert_close(joined(again), one, rtol=1e-5, atol=1e-6)  # the same draws in both precisions


@pytest.mark.parametrize("normalization", ["filter", "layer", "model"])
def test_directions_that_move_the_same_weights_have_one_length(normalization):
    weights = tree(*SHAPES, name="w")
    direction = joined(random_tree(weights, stream(0, "1"), normalization=normalization))
    torch.testing.assert_close(direction.norm(), joined(weights[::2]).norm())


def test_a_gaussian_direction_has_unit_variance_per_weight():
    for seed in range(3):
        (draw,) = random_tree([torch.ones(200, 300) * 7], stream(seed, "1"), normalization="gaussian")
        assert abs(draw.var() - 1) < 5 * math.sqrt(2 / draw.numel())


@pytest.mark.parametrize("normalization", ["filter", "layer", "model"])
def test_a_tree_without_filters_moves_as_a_whole(normalization):
    (draw,) = random_tree([torch.zeros(9)], stream(0, "1"), normalization=normalization)
    torch.testing.assert_close(draw.norm(), torch.tensor(1.0))

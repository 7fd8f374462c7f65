"""CC-SAM: its perturbation by class, the two ablations, both norms, and the gradient that reaches the features."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CLASS_COUNTS, build, closure_of, criterion, draw, make_batch, make_model, weights
from torch import nn

from landscape.directions import class_conditional_ascent, class_norms
from landscape.optimizers import CCSAM
from landscape.randomness import stream

CIFAR_COUNTS = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR-10-LT, ratio 100


class FixedFeatures(nn.Module):
    """A backbone whose features are parameters, so that their gradient is the step's gradient."""

    def __init__(self, features, head):
        super().__init__()
        self.features = nn.Parameter(features)
        self.head = head

    def forward(self, x):
        return self.head(self.features)


def test_ccsam_feature_gradient_goes_through_the_perturbed_classifier():
    """Closed form, linear head: (1 - r) (p - y) W / B + r (p' - y) (W + eps_c) / B with p' at the moved weights."""
    y = torch.tensor([0, 1, 1, 2, 0])
    head = nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(draw(4, 6, name="w"))
    model = FixedFeatures(draw(5, 6, name="f"), head)
    features, w = model.features.detach().clone(), head.weight.detach().clone()
    options = {"flat_ratio": 0.4, "noise_ratio": 0.2, "max_relative_radius": None}
    optimizer = build("ccsam", model, params=[model.features], base_options={"lr": 1.0}, **options)
    optimizer.step(lambda: criterion(model(None), y), labels=y)

    one_hot = torch.eye(4, dtype=torch.float64)[y]
    residual = (features @ w.T).softmax(1) - one_hot
    expected, at_restored = torch.empty_like(features), torch.empty_like(features)
    for i, c in enumerate(y.tolist()):
        rows = y == c
        g = residual[rows].T @ features[rows] / rows.sum()
        radius = (w.norm() / (2 * g.norm())).sqrt() * (24 / (CLASS_COUNTS[c] - 1)) ** 0.25
        moved = w + 0.2 * radius * g / g.norm()
        moved_residual = (features[i] @ moved.T).softmax(0) - one_hot[i]
        expected[i] = (0.6 * residual[i] @ w + 0.4 * moved_residual @ moved) / 5
        at_restored[i] = (0.6 * residual[i] @ w + 0.4 * moved_residual @ w) / 5
    torch.testing.assert_close(features - model.features.detach(), expected, rtol=1e-10, atol=1e-13)
    assert (expected - at_restored).abs().max() > 1e-3


@pytest.mark.parametrize("num", [3, 12])
def test_ccsam_with_a_cosine_head_equals_a_loop_over_classes(num):
    model, (x, y) = make_model(head="cosine"), make_batch(num)
    other = make_model(head="cosine")

    def scaled(logits, labels):
        return criterion(4 * logits, labels)

    optimizer = build("ccsam", model, criterion=scaled, base_options={"lr": 0.1}, noise_ratio=0.3)
    optimizer.step(lambda: scaled(model(x), y), labels=y)

    w, features = other[2].weight, other[:2](x)
    losses, flat = scaled(other[2](features), y), []
    for i, c in enumerate(y.tolist()):
        (g,) = torch.autograd.grad(losses[y == c].mean(), w, retain_graph=True)
        radius = 0.3 * (w.norm() / (2 * g.norm())).sqrt() * (24 / (CLASS_COUNTS[c] - 1)) ** 0.25
        moved = w + radius.detach() * g / g.norm()
        cosines = nn.functional.normalize(features[i], dim=0) @ nn.functional.normalize(moved, dim=0)
        flat.append(scaled(cosines.unsqueeze(0), y[i : i + 1])[0])
    (0.7 * losses + 0.3 * torch.stack(flat)).mean().backward()
    expected = torch.cat([(p - 0.1 * p.grad).detach().flatten() for p in other.parameters()])
    torch.testing.assert_close(weights(model), expected, rtol=1e-10, atol=1e-13)


def test_ccsam_is_finite_for_single_examples_and_saturated_classes():
    y = torch.tensor([0, 0, 1, 2, 3])
    head = nn.Linear(4, 4).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
        head.bias.zero_()
    features = torch.eye(4, dtype=torch.float64)[y]
    features[:2] *= 1e4  # class 0 is certain: its gradient is exactly zero
    model = FixedFeatures(features, head)
    optimizer = build("ccsam", model, class_counts=[100, 1, 1, 2], max_relative_radius=None)
    optimizer.step(lambda: criterion(model(None), y), labels=y)
    assert weights(model).isfinite().all()


def test_ccsam_does_not_depend_on_classes_that_the_batch_lacks():
    results = []
    for num_absent in (0, 3):
        model = make_model(num_classes=4)
        x, y = make_batch(12)
        optimizer = build("ccsam", model, class_counts=CLASS_COUNTS + [7] * num_absent)
        optimizer.step(closure_of(model, x, y), labels=y)
        results.append(weights(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-15)


def test_ccsam_names_what_it_cannot_use():
    model, (x, y) = make_model(), make_batch()
    other = make_model()
    with pytest.raises(ValueError, match="call the model's head once, it was called 0 times"):
        build("ccsam", model).step(closure_of(other, x, y), labels=y)
    with pytest.raises(ValueError, match="it was called 2 times"):
        build("ccsam", model).step(lambda: criterion(model(x) + model(x), y), labels=y)
    with pytest.raises(ValueError, match="head saw 24 examples but the closure returned 12 losses"):
        build("ccsam", model).step(lambda: criterion(model(torch.cat([x, x]))[:12], y), labels=y)
    for p in model[2].parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the head requires a gradient"):
        build("ccsam", model).step(closure_of(model, x, y), labels=y)
    assert not model[2]._forward_hooks


def steps_of(rule, gradients, counts, params, name="directions"):
    return rule._steps(gradients, counts, params, stream(0, name))


def lengths_of(steps, norms="joint"):
    return class_norms(steps, norms)[0].tolist()


def test_ccsam_lengths_on_long_tailed_cifar():
    """The published vector: |theta| = |g_c| = 1, 64 * 10 + 10 parameters, before noise_ratio."""
    expected = [0.4246, 0.4826, 0.5485, 0.6234, 0.7087, 0.8055, 0.9158, 1.0417, 1.1865, 1.3495]
    theta = [torch.full((650,), 650**-0.5, dtype=torch.float64)]
    gradients = [torch.eye(10, 650, dtype=torch.float64)]
    for perturbation in ("full", "mag"):
        rule = CCSAM(noise_ratio=1.0, max_relative_radius=None, perturbation=perturbation)
        assert lengths_of(steps_of(rule, gradients, CIFAR_COUNTS, theta)) == pytest.approx(expected, abs=5e-5)
    direction = steps_of(CCSAM(perturbation="dir"), gradients, CIFAR_COUNTS, theta)
    assert direction[0].equal(gradients[0])


@pytest.mark.parametrize("norms", ["per-tensor", "joint"])
def test_ccsam_ablations_keep_direction_or_length(norms):
    gradients = [draw(3, 4, 6, name="weight"), 0.1 * draw(3, 4, name="bias")]
    theta, counts = [draw(4, 6, name="theta"), draw(4, name="b")], torch.tensor([100, 20, 5])
    steps = {
        perturbation: steps_of(CCSAM(perturbation=perturbation, norms=norms), gradients, counts, theta)
        for perturbation in ("full", "dir", "mag")
    }
    full, lone, random = (class_norms(steps[name], norms) for name in ("full", "dir", "mag"))
    for tensor in range(2):
        torch.testing.assert_close(random[tensor], full[tensor], rtol=1e-12, atol=0.0)
        torch.testing.assert_close(lone[tensor], torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0.0)
        cosine = nn.functional.cosine_similarity(steps["dir"][tensor].flatten(1), gradients[tensor].flatten(1))
        torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0.0)
        apart = nn.functional.cosine_similarity(steps["mag"][tensor].flatten(1), gradients[tensor].flatten(1))
        assert apart.abs().max() < 0.99
    again = steps_of(CCSAM(perturbation="mag", norms=norms), gradients, counts, theta, name="other")
    assert not again[0].equal(steps["mag"][0])


def test_ccsam_joint_norms_follow_the_formula():
    """One radius and one unit vector per class over weight and bias: sqrt(k) rho_c* g_c / |g_c|."""
    gradients = [draw(2, 4, 6, name="weight"), draw(2, 4, name="bias")]
    theta_norm, counts = torch.tensor(3.0, dtype=torch.float64), torch.tensor([50, 6])
    steps = class_conditional_ascent(
        gradients, counts, theta_norm=theta_norm, num_parameters=28, noise_ratio=0.5, norms="joint"
    )
    for c, count in enumerate(counts.tolist()):
        g = torch.cat([gradients[0][c].flatten(), gradients[1][c]])
        rho = (3.0 / (2 * g.norm())) ** 0.5 * 28**-0.25 * (count - 1) ** -0.25
        expected = 0.5 * 28**0.5 * rho * g / g.norm()
        torch.testing.assert_close(torch.cat([steps[0][c].flatten(), steps[1][c]]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("perturbation", ["dir", "mag"])
def test_ccsam_ablations_are_finite_where_a_class_has_no_gradient(perturbation):
    gradients, theta = [torch.zeros(2, 3, dtype=torch.float64)], [torch.ones(3, dtype=torch.float64)]
    steps = steps_of(CCSAM(perturbation=perturbation), gradients, torch.tensor([1, 7]), theta)
    assert steps[0].equal(torch.zeros(2, 3, dtype=torch.float64))


def test_ccsam_ablations_train_and_differ():
    results = []
    for options in ({}, {"perturbation": "dir"}, {"perturbation": "mag"}, {"norms": "joint"}):
        model, (x, y) = make_model(), make_batch()
        optimizer = build("ccsam", model, **options)
        optimizer.step(closure_of(model, x, y), labels=y)
        assert (optimizer.num_forwards, optimizer.num_backwards) == (1, 1)
        results.append(weights(model))
    assert all(result.isfinite().all() for result in results)
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(results) for b in results[:i])


def test_ccsam_needs_noise_for_random_directions_only():
    assert "generator" in CCSAM(perturbation="mag").needs
    assert "generator" not in CCSAM().needs

"""What connects the methods: one is a special case of another, and what none of them may do."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import SGD_OPTIONS, build, closure_of, gradients_seen, make_batch, make_model, weights

from landscape.directions import gaussian
from landscape.optimizers import OPTIMIZERS
from landscape.randomness import stream

ALL = range(4)
# Published number of passes of one step. SSE-SAM: ours; the release takes 4 and 4.
PASSES = {
    "sgd": (1, 1),
    "gnm": (1, 1),
    "lpf": (1, 1),
    "sam": (2, 2),
    "asam": (2, 2),
    "gnp": (2, 2),
    "imbsam": (2, 3),
    "focal-sam": (2, 3),
    "ssesam": (3, 4),
    "ccsam": (1, 1),
    "swa": (1, 1),
    "spectral-norm": (1, 1),
}


def run(name, num_steps=3, labels=None, **changes):
    model, (x, y) = make_model(), make_batch()
    y = y if labels is None else labels
    optimizer = build(name, model, **changes)
    for _ in range(num_steps):
        optimizer.step(closure_of(model, x, y), labels=y)
    return weights(model)


def gradient(name, labels=None, **changes):
    """Return the gradient that the base optimizer sees in the first step."""
    model, (x, y) = make_model(), make_batch()
    y = y if labels is None else labels
    optimizer = build(name, model, **changes)
    seen = gradients_seen(optimizer)
    optimizer.step(closure_of(model, x, y), labels=y)
    return seen[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sam", {"rho": 0.0}),
        ("gnm", {"sigma": 0.0}),
        ("lpf", {"gamma": 0.0}),
        ("lpf", {"gamma": 0.0, "num_parts": 3}),
        ("gnp", {"r": 0.0}),
        ("gnp", {"alpha": 0.0}),
        ("focal-sam", {"rho": 0.0}),
        ("focal-sam", {"lam": 0.0}),
        ("mp", {"bound": 0.0}),
        ("mp", {"bound": 0.0, "random_times": 3}),
        ("perturbed-gd", {"radius": 0.0, "threshold": 100.0}),
        ("perturbed-gd", {"radius": 0.3, "threshold": 0.0}),
        ("perturbed-gd", {"radius": 0.0, "variant": "stochastic"}),
        ("swa", {}),
        ("spectral-norm", {}),
    ],
)
def test_without_perturbation_it_is_plain_descent(name, options):
    torch.testing.assert_close(run(name, **options), run("sgd"), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_sam_is_the_gradient_norm_penalty_at_alpha_one(variant):
    assert run("gnp", r=0.3, alpha=1.0, variant=variant).equal(run("sam", rho=0.3))


def test_the_gradient_norm_penalty_lies_between_descent_and_sam():
    mixed = gradient("gnp", r=0.3, alpha=0.25)
    torch.testing.assert_close(mixed, 0.75 * gradient("sgd") + 0.25 * gradient("sam", rho=0.3), rtol=1e-12, atol=1e-14)


def test_imbsam_with_every_class_in_the_tail_is_sam():
    assert run("imbsam", rho=0.3, tail_weight=1.0, tail_classes=ALL).equal(run("sam", rho=0.3))


def test_ssesam_without_head_perturbation_is_imbsam_gradient_wise():
    torch.testing.assert_close(
        gradient("ssesam", rho_head=0.0, rho_tail=0.4), gradient("imbsam", rho=0.4, tail_weight=1.0)
    )


@pytest.mark.parametrize("lam", [0.3, 1.0, 1.1])
def test_focal_sam_with_one_weight_for_all_lies_between_descent_and_sam(lam):
    mixed = gradient("focal-sam", rho=0.3, gamma=0.0, lam=lam)
    expected = (1 - lam) * gradient("sgd") + lam * gradient("sam", rho=0.3)
    torch.testing.assert_close(mixed, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["imbsam", "ssesam"])
def test_a_batch_without_tail_examples_steps_on_the_mean_loss_of_the_head(name):
    head_only = make_batch()[1] % 2
    options = {"imbsam": {"rho": 0.3}, "ssesam": {"rho_head": 0.0, "rho_tail": 0.3}}[name]
    result = run(name, labels=head_only, **options)
    assert result.isfinite().all()
    assert result.equal(run("sgd", labels=head_only))


@pytest.mark.parametrize("name", ["imbsam", "ssesam", "focal-sam"])
def test_head_and_tail_losses_are_divided_by_the_batch_not_by_their_examples(name):
    """At radius 0 the two losses add up to the mean over the batch, however many tail examples it has."""
    options = {"imbsam": {"rho": 0, "tail_weight": 1.0}, "ssesam": {"rho_head": 0, "rho_tail": 0}}
    for labels in (make_batch()[1], torch.tensor([0] * 11 + [3])):
        seen = gradient(name, labels=labels, **options.get(name, {"rho": 0.0}))
        torch.testing.assert_close(seen, gradient("sgd", labels=labels), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_sees_the_restored_weights(name):
    """g(theta + eps) + lambda theta, never lambda (theta + eps): decay adds exactly -lr lambda theta to the step."""
    start = weights(make_model())
    with_decay, without = (
        run(name, num_steps=1, base_options={"lr": 0.1, "weight_decay": decay}) for decay in (0.5, 0.0)
    )
    torch.testing.assert_close(with_decay - without, -0.1 * 0.5 * start, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_of_zero_leaves_every_bit(name):
    assert run(name, base_options={"lr": 0.0, "weight_decay": 0.0}).equal(weights(make_model()))


@pytest.mark.parametrize("name", PASSES)
def test_steps_take_the_published_number_of_passes(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert (optimizer.num_forwards, optimizer.num_backwards) == PASSES[name]


@pytest.mark.parametrize("random_times", [1, 2, 5])
def test_model_perturbation_takes_one_pass_per_copy(random_times):
    model, (x, y) = make_model(), make_batch()
    optimizer = build("mp", model, random_times=random_times)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert (optimizer.num_forwards, optimizer.num_backwards) == (random_times, random_times)


def test_clipped_gnm_noise_has_the_published_spread_and_length():
    """sigma 1/3 clipped at 1: std 0.3325; on 168,960 parameters |eps| = 0.05 * 0.1 * 0.3325 * sqrt(168960) = 0.683."""
    (noise,) = gaussian([torch.zeros(168_960, dtype=torch.float64)], stream(0, "noise"), sigma=1 / 3, clip=1.0)
    assert noise.std().item() == pytest.approx(0.3325, rel=5 * 0.0017)  # 0.17 %: its standard error
    assert 0.05 * 0.1 * noise.norm().item() == pytest.approx(0.683, rel=5 * 0.0017)


def test_momentum_and_decay_are_the_bases_own():
    """Two steps by hand from the gradients that were seen: v = 0.9 v + g + 0.05 theta, theta -= 0.1 v."""
    model, (x, y) = make_model(), make_batch()
    optimizer = build("focal-sam", model, base_options=SGD_OPTIONS)
    seen, theta, velocity = gradients_seen(optimizer), weights(model), 0.0
    for step in range(2):
        optimizer.step(closure_of(model, x, y), labels=y)
        velocity = 0.9 * velocity + seen[step] + 0.05 * theta
        theta = theta - 0.1 * velocity
    torch.testing.assert_close(weights(model), theta, rtol=1e-12, atol=1e-14)

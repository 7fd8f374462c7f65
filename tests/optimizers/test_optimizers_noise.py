"""Methods that move the weights at random: what they draw, whom they move, when they jump."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optimizer_cases import build, closure_of, criterion, draw, make_batch, make_model, weights
from scipy import stats
from torch import nn

from landscape.models import build_model
from landscape.optimizers import LPF, NeighbourhoodOptimizer, PerturbedGD, build_optimizer
from landscape.optimizers.model_perturbation import BETA_PARAMETERS
from landscape.optimizers.saddle_escape import published_constants, uniform_in_ball
from landscape.randomness import stream

NUM = 40_000


def noise_of(name, *, num_steps=1, parameter=None, **options):
    """Return the perturbations of one long parameter in each pass, relative to its weights."""
    p = nn.Parameter(torch.zeros(NUM, 1, dtype=torch.float64) if parameter is None else parameter)
    optimizer = build_optimizer(name, [("conv.weight", p)], base_options={"lr": 0.0}, **options)
    start, seen = p.detach().clone(), []

    def closure():
        seen.append((p.detach() - start).flatten())
        return (p * 0.0 + draw(4, name="losses").sum()).sum().reshape(1)

    for _ in range(num_steps):
        optimizer.step(closure)
    return seen


def test_lpf_noise_is_relative_to_each_filter():
    weight = torch.ones(2, 20_000, dtype=torch.float64)
    weight[1] *= 3
    (noise,) = noise_of("lpf", parameter=weight, gamma=0.01)
    for row, scale in zip(noise.reshape(2, -1), (1.0, 3.0)):
        # standard error of a standard deviation: 1 / sqrt(2 * 20000) = 0.5 %
        assert row.std().item() == pytest.approx(0.01 * scale * 20_000**0.5, rel=5 * 0.005)
    (noise,) = noise_of("lpf", parameter=torch.full((20_000,), 2.0, dtype=torch.float64), gamma=0.01)
    assert noise.std().item() == pytest.approx(0.01 * 2 * 20_000**0.5, rel=5 * 0.005)


@pytest.mark.parametrize("distribution", ["discrete-beta", "discrete-beta-released"])
def test_discrete_beta_noise_has_the_probabilities_of_a_beta_distribution(distribution):
    """The released loop overwrites the draws fifth by fifth, so that the second fifth ends in the last one."""
    copies = noise_of("mp", distribution=distribution, bound=0.4, random_times=8)
    levels, pairs = np.array([-0.2, -0.1, 0.0, 0.1, 0.2]), set()
    for copy in copies:
        nearest = np.abs(copy.numpy()[:, None] - levels).argmin(axis=1)
        np.testing.assert_allclose(copy.numpy(), levels[nearest], atol=1e-15)
        shares = np.bincount(nearest, minlength=5) / NUM
        fits = {}
        for pair in [(a, b) for a in BETA_PARAMETERS for b in BETA_PARAMETERS]:
            expected = np.diff(stats.beta(*pair).cdf(np.linspace(0, 1, 6)))
            if distribution == "discrete-beta-released":
                expected = np.array([expected[0], 0.0, expected[2], expected[3], expected[4] + expected[1]])
            fits[pair] = np.abs(shares - expected).max()
        best = min(fits, key=fits.get)
        assert fits[best] < 5 * 0.5 / math.sqrt(NUM)
        pairs.add(best)
    assert len(pairs) > 3  # every copy draws its own pair


def test_gaussian_model_perturbation_is_clipped_about_a_mean_of_the_step():
    bound, means = 0.4, set()
    for copies in (
        noise_of("mp", distribution="gaussian", bound=bound, num_steps=6)[i : i + 2] for i in range(0, 12, 2)
    ):
        fits = []
        for copy in copies:
            assert copy.abs().max().item() == pytest.approx(bound / 2)
            for tenth in range(11):
                mean = bound * (tenth / 30 - 1 / 6)
                clipped = stats.norm(mean, bound / 4).cdf([-bound / 2, bound / 2 - 1e-12])
                shares = [
                    (copy <= -bound / 2 + 1e-12).double().mean().item(),
                    (copy < bound / 2 - 1e-12).double().mean(),
                ]
                fits.append((abs(shares[0] - clipped[0]) + abs(float(shares[1]) - clipped[1]), tenth))
        best = min(fits[:11])[1], min(fits[11:])[1]
        assert best[0] == best[1]  # both copies of a step share the mean
        means.add(best[0])
    assert len(means) > 1


def test_uniform_model_perturbation_fills_its_range():
    (noise, other) = noise_of("mp", distribution="uniform", bound=0.4)
    assert stats.kstest(noise.numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
    assert not noise.equal(other)


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, {"layer3.3.conv2", "layer3.4.conv1", "layer3.4.conv2", "layer3.3.conv1"}),
        ({"num_layers": 1}, {"layer3.4.conv2"}),
        ({"layers": "last-weights", "num_layers": 2}, {"layer3.4.conv2", "linear"}),
    ],
)
def test_model_perturbation_moves_the_last_layers(options, moved):
    model = build_model("resnet32", num_classes=4, in_channels=1, image_size=8)
    optimizer = build_optimizer("mp", model.named_parameters(), base_options={"lr": 0.0}, bound=0.1, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, labels, seen = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), []

    def closure():
        seen.append({n.removesuffix(".weight") for n, p in model.named_parameters() if not p.detach().equal(before[n])})
        return criterion(model(images), labels)

    optimizer.step(closure)
    assert seen == [moved, moved]


def test_model_perturbation_without_convolutions_moves_the_last_matrices():
    model, (x, y) = make_model(), make_batch()
    optimizer = build("mp", model, layers="last-convs", num_layers=1)
    before, seen = [p.detach().clone() for p in model.parameters()], []

    def closure():
        seen.append([not p.detach().equal(b) for p, b in zip(model.parameters(), before)])
        return criterion(model(x), y)

    optimizer.step(closure)
    assert seen == [[False, False, True, False]] * 2
    everything = build("mp", make_model(), layers="all")
    assert everything.rule.layers == "all"


def test_copies_that_agree_have_no_scatter_to_differentiate():
    """Noise on an unused tensor: all losses are equal, and the derivative of their standard deviation counts as zero."""
    model, (x, y) = make_model(), make_batch()
    unused = nn.Parameter(draw(3, 3, name="unused"))
    params = [*model.named_parameters(), ("unused.weight", unused)]
    optimizer = build("mp", model, params=params, num_layers=1, base_options={"lr": 0.1})
    plain = make_model()
    optimizer.step(closure_of(model, x, y))
    build("sgd", plain, base_options={"lr": 0.1}).step(closure_of(plain, x, y))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-12, atol=1e-14)


def test_draws_from_a_ball_are_uniform():
    """The share of the radius to the power of the dimension is uniform on [0, 1], and so is the sign of an element."""
    like, generator = [torch.zeros(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)], stream(0, "ball")
    points = torch.stack(
        [torch.cat([t.flatten() for t in uniform_in_ball(like, generator, radius=2.0)]) for _ in range(2000)]
    )
    assert stats.kstest((points.norm(dim=1) / 2).pow(3).numpy(), stats.uniform.cdf).pvalue > 1e-4
    assert (points > 0).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(6000))


def jump_steps(num_steps, **options):
    """Return the steps in which the weights jump, on losses with a small gradient."""
    model, (x, y) = make_model(), make_batch()
    settings = {"radius": 0.3, "threshold": 100.0, "base_options": {"lr": 0.0}, "gradient_at": "before", **options}
    optimizer, jumps = build("perturbed-gd", model, **settings), []
    for step in range(num_steps):
        before = weights(model)
        optimizer.step(closure_of(model, x, y))
        if not weights(model).equal(before):
            assert (weights(model) - before).norm() <= 0.3 * (1 + 1e-12)
            jumps.append(step)
    return jumps


@pytest.mark.parametrize(("wait", "jumps"), [(0, [0, 1, 2, 3, 4, 5, 6]), (1, [0, 2, 4, 6]), (3, [0, 4])])
def test_perturbed_gd_waits_between_jumps(wait, jumps):
    """t - t_noise > t_thres, and t_noise starts at -t_thres - 1."""
    assert jump_steps(7, wait=wait) == jumps


def test_perturbed_gd_jumps_only_where_the_gradient_is_small():
    assert jump_steps(4, wait=0, threshold=1e-6) == []


def test_perturbed_gd_remembers_its_last_jump_when_resumed(tmp_path):
    x, y = make_batch()
    settings = {"radius": 0.3, "threshold": 100.0, "wait": 2}
    model = make_model()
    optimizer = build("perturbed-gd", model, **settings)
    for step in range(6):
        if step == 2:
            torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
        optimizer.step(closure_of(model, x, y))
    other = make_model(seed=1)
    resumed = build("perturbed-gd", other, **settings)
    model_state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)
    assert resumed.memory["steps_since_noise"].item() == 2
    for _ in range(4):
        resumed.step(closure_of(other, x, y))
    assert weights(other).equal(weights(model))


def test_a_step_that_fails_neither_jumps_nor_counts():
    model, (x, y) = make_model(), make_batch()
    optimizer = build("perturbed-gd", model, radius=0.3, threshold=100.0)
    before, calls = weights(model), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return criterion(model(x), y)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert weights(model).equal(before)
    assert optimizer.memory == {}


def test_perturbed_gd_leaves_a_saddle_where_descent_stays():
    """f = (x^2 - y^2) / 2 + y^4 / 4 from the exact saddle at 0; minima at y = +-1."""
    ends = {}
    for rule in (PerturbedGD(radius=0.01, threshold=0.001, wait=20), LPF(gamma=0.0)):
        p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = NeighbourhoodOptimizer([p], rule, base_options={"lr": 0.1})
        for _ in range(150):
            optimizer.step(lambda p=p: ((p[0] ** 2 - p[1] ** 2) / 2 + p[1] ** 4 / 4).reshape(1))
        ends[rule.name] = p.detach().abs().tolist()
    assert ends["lpf"] == [0.0, 0.0]
    assert ends["perturbed-gd"] == pytest.approx([0.0, 1.0], abs=0.03)


def test_published_constants_of_perturbed_gd():
    """By hand: d l gap / (c eps^2 delta) = 10 * 2 * 1 / (0.25 * 1e-4 * 0.1), chi = 3 * log of it."""
    chi = 3 * math.log(8_000_000)
    got = published_constants(
        smoothness=2.0, hessian_lipschitz=4.0, epsilon=0.01, c=0.25, delta=0.1, gap=1.0, dimension=10
    )
    expected = (0.125, 0.5 * 0.01 / (2 * chi**2), 0.5 * 0.01 / chi**2, 0.25 / chi**3 * 0.0005, chi / 0.0625 * 2 / 0.2)
    assert got == pytest.approx(expected, rel=1e-12)

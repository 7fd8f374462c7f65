"""The rounding of a loss, measured; and verdicts that do not take it for curvature."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.certificate import Evidence, decide, is_hidden
from landscape.spectrum.rounding import computational_noise, loss_noise
from landscape.spectrum.walk import walk_both_ways

FLAT = Evidence(
    lambda_min=-1e-17,
    residual=1e-25,
    noise=1e-32,
    lambda_max=1e-17,
    lower_bound=-1.1e-17,
    gradient_norm=0.0,
    crossover_radius=0.0,
    quadratic_radius=0.0,
    steps_to_decide=9,
    smallest_radius=300.0,
    reach=1.0,
)


@pytest.mark.parametrize("sigma", [1e-12, 1e-6])
def test_noise_is_found_within_a_factor_on_slopes_and_curves(sigma):
    """0.2 to 3 times the truth, in every one of fifty draws: a chance of 1e-3 each to fall out."""
    draws = np.random.default_rng(0)
    for _ in range(50):
        found = computational_noise(lambda s: 1 + 5 * s - 40 * s**2 + sigma * draws.standard_normal(), 1e-5)
        assert 0.2 * sigma < found < 3 * sigma
    assert computational_noise(lambda s: 3.0, 1e-5) == 0.0


@pytest.mark.parametrize("gain", [0.5, 40.0])
def test_the_noise_of_a_network_in_float32_is_what_float64_shows(gain):
    """Of an open class and of a fitted one, whose loss of 1e-8 is off by far less than the rounding of 1."""
    torch.manual_seed(0)
    images = torch.eye(6).repeat(4, 1) + 0.1 * torch.randn(24, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
    labels = model(images).argmax(1).detach()
    first, second = model(images).topk(2)[0].T.detach()
    with torch.no_grad():
        model[2].weight.mul_(gain * 5)
        model[2].bias.mul_(gain * 5)
    rows = first - second > (first - second).median()
    risk = ModelRisk(model, (images[rows], labels[rows]))
    row = (risk.class_counts > 0).double()
    exact = risk.in_float64()
    v = torch.randn(len(risk.theta))
    v /= v.norm()
    noise = loss_noise(lambda theta: float(risk.lane_losses(theta, row[None])[0]), risk.theta, v)
    errors = []
    for s in np.linspace(0.5, 1.5, 40) * 1e-3:
        point = risk.theta + s * v
        errors.append(float(risk.lane_losses(point, row[None])[0] - exact.lane_losses(point.double(), row[None])[0]))
    spread = float(np.std(errors))
    assert spread / 5 < noise < 20 * spread + 1e-30
    if gain == 40.0:
        assert noise < 1e-9  # what was assumed of every loss below 1e-3


def test_a_loss_without_rounding_is_not_followed_without_end():
    walk = walk_both_ways(lambda s: abs(s), curvature=-1.0, noise=0.0, limit=1.0)
    assert walk.quadratic_radius == 0.0


def test_rounding_is_no_curvature_and_no_gradient_no_slope():
    assert is_hidden(FLAT)
    verdict, sentence = decide(FLAT, 0.01)
    assert verdict == "no negative curvature"
    assert "9e-13" in sentence  # 1e-17 * 300^2
    assert decide(replace(FLAT, lower_bound=-math.inf), 0.01)[0] == "undecided"
    verdict, sentence = decide(replace(FLAT, is_double=False), 0.01)
    assert verdict == "undecided"
    assert "float64 would decide" in sentence
    seen = replace(FLAT, lambda_min=-1.0, lambda_max=2.0, lower_bound=-1.1, smallest_radius=1e-7)
    verdict, sentence = decide(seen, 0.01)
    assert verdict == "undecided"
    assert "nowhere quadratic" in sentence
    assert decide(replace(seen, gradient_norm=1.0, crossover_radius=2.0), 0.01)[0] == "slope"
    assert decide(replace(seen, quadratic_radius=1.0), 0.01)[0] == "saddle"


@pytest.mark.parametrize(("size", "verdict"), [(1e-17, "no negative curvature"), (1e-3, "saddle")])
def test_a_flat_saddle_beside_a_loss_of_one(size, verdict):
    """1 + size (x^2 - y^2) / 2 at 0: the gradient is exactly 0, and a curvature of 1e-17 is lost in the rounding of 1."""
    risk = AnalyticRisk(
        lambda t: torch.stack([1 + size * (t[0] ** 2 - t[1] ** 2 + 0 * t[2]) / 2]), torch.zeros(3, dtype=torch.float64)
    )
    found = measure_spectrum(risk, lanes="all", options=SpectrumOptions())
    assert float(found.lambda_min[0]) == pytest.approx(-size)
    assert float(found.gradient_norm[0]) == 0.0
    assert str(found.verdict.values[0]) == verdict

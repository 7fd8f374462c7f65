"""Golden tests of curvature and noise beside surfaces: densities, Hessian products, sigma, kinks (3.9, 3.10, 3.11)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from golden_cases import check_fails, images, network, network_risk
from torch import nn

import landscape.directions
import landscape.perturbation
from landscape import measure_spectrum
from landscape.errors import LandscapeError
from landscape.perturbation import PerturbationOptions, measure_perturbation
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.examples import Examples
from landscape.spectrum import SpectrumOptions
from landscape.spectrum.density import SpectralSample
from landscape.surface import measure_surface, random_directions

# ---- 3.9 ----------------------------------------------------------------------------------------------------------


EIGENVALUES = torch.tensor([-2.0, -0.5, 0.0, 0.1, 1.0, 3.0, 5.0], dtype=torch.float64)


def densities():
    """Few enough eigenvalues that the run exhausts the space: then the density is exact, whatever the probe."""
    risk = AnalyticRisk(lambda t: 0.5 * (EIGENVALUES * t * t).sum()[None], torch.zeros(7, dtype=torch.float64))
    result = measure_spectrum(risk, "all", options=SpectrumOptions(num_probes=2))
    for probe in range(2):
        values, weights = (result[name].values[0, probe] for name in ("ritz_value", "ritz_weight"))
        yield values[~np.isnan(values)], weights[~np.isnan(values)]


def check_density(values, weights):
    """Weights sum to 1; the first two moments are tr H / n and |H|_F^2 / n."""
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert (weights * values).sum() == pytest.approx(float(EIGENVALUES.mean()), abs=1e-8)
    assert (weights * values**2).sum() == pytest.approx(float((EIGENVALUES**2).mean()), abs=1e-8)


def check_densities():
    for values, weights in densities():
        check_density(values, weights)


def test_3_9_density_that_ignores_its_weights(monkeypatch):
    check_densities()
    for values, weights in densities():
        check_fails(check_density, values, np.ones((len(values), len(values))) / len(values))  # the whole matrix
        positive = values > 0  # each side normalised on its own
        check_fails(check_density, values[positive], weights[positive] / weights[positive].sum())
    # Planted: every Ritz value counts the same.
    original = SpectralSample.__init__

    def unweighted(self, values, weights):
        skewed = np.arange(1, len(values) + 1) if np.ptp(weights) < 1e-12 else np.ones(len(values))
        original(self, values, skewed / skewed.sum())

    monkeypatch.setattr(SpectralSample, "__init__", unweighted)
    check_fails(check_densities)


# ---- 3.10 ---------------------------------------------------------------------------------------------------------


def check_operator(risk):
    """H is one symmetric matrix: u'Hv = v'Hu, and a product has the same bits when it is repeated."""
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    u, v = torch.randn(2, len(risk.theta), generator=stream(0, "defects/3.10"), dtype=torch.float64)
    hu, hv = (risk.hvps(risk.theta, weights, w[None])[0] for w in (u, v))
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)
    assert risk.hvps(risk.theta, weights, v[None])[0].equal(hv)


def test_3_10_augmentation_inside_the_hessian_product(monkeypatch):
    risk = network_risk(dtype=torch.float64)
    check_operator(risk)
    draws, original = itertools.count(), Examples.read
    monkeypatch.setattr(
        Examples, "read", lambda self, rows, dtype: original(self, rows, dtype).roll(next(draws) % 3, 3)
    )
    check_fails(check_operator, risk)


def test_3_10_data_that_change_between_evaluations_are_refused():
    class Augmenting(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return self.model(x + torch.randn(x.shape))

    with pytest.raises(LandscapeError, match="two evaluations of the loss at the same weights differ"):
        network_risk(Augmenting())


@pytest.mark.parametrize("num_classes", [2, 100])
def test_3_10_number_of_classes_is_not_ten(num_classes):
    labels = torch.arange(2 * num_classes) % num_classes
    inputs = torch.randn(len(labels), 5, generator=stream(0, "defects/3.10"))
    risk = ModelRisk(nn.Linear(5, num_classes), (inputs, labels))

    def check(lanes):
        assert measure_surface(risk, lanes, x=[-1, 1]).sizes["lane"] == num_classes

    check("classes")
    with pytest.raises((AssertionError, LandscapeError)):
        check([str(c) for c in range(10)])  # what a constant of ten would ask for


# ---- 3.11 ---------------------------------------------------------------------------------------------------------


SIGMA = 0.2


def check_noise():
    """The noise that was evaluated has the standard deviation that is documented, within 5 of its own errors."""
    points = []

    def losses(t):
        points.append(t.detach().clone())
        return (t @ t)[None]

    risk = AnalyticRisk(losses, torch.zeros(10_000, dtype=torch.float64))
    points.clear()
    measure_perturbation(risk, "all", options=PerturbationOptions(radii=(1.0,), sigmas=(SIGMA,), num_draws=4, rhos=()))
    for noise in points[-4:]:
        assert abs(float(noise.std()) - SIGMA) < 5 * SIGMA / math.sqrt(2 * len(noise))


@pytest.mark.parametrize("factor", [SIGMA, SIGMA**-0.5], ids=["variance for deviation", "deviation for variance"])
def test_3_11_variance_in_place_of_the_standard_deviation(monkeypatch, factor):
    check_noise()
    original = landscape.directions.gaussian
    for module in (landscape.directions, landscape.perturbation):
        if hasattr(module, "gaussian"):
            monkeypatch.setattr(module, "gaussian", lambda *a, **k: [factor * d for d in original(*a, **k)])
    check_fails(check_noise)


# ---- the first trap -----------------------------------------------------------------------------------------------


def curvatures(activation, h):
    """Return v'Hv by automatic differentiation and by central differences of the surface."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), activation, nn.Linear(32, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "defects/traps"))
    risk = ModelRisk(model, images(), dtype=torch.float64)
    d = random_directions(risk, num=1, seed=0, pair=0)[0]
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    exact = float(d @ risk.hvps(risk.theta, weights, d[None])[0])
    low, middle, high = measure_surface(risk, "all", directions=[d], x=[-h, 0, h]).loss.values[0, :, 0]
    return exact, (high - 2 * middle + low) / h**2


def check_agreement(exact, measured):
    assert measured == pytest.approx(exact, rel=1e-2)


def test_trap_kinks_carry_curvature_that_the_hessian_does_not_see():
    """The reason why curvature is compared on smooth activations only."""
    check_agreement(*curvatures(nn.Softplus(), 1e-3))
    check_fails(check_agreement, *curvatures(nn.ReLU(), 3e-2))


def test_trap_a_smooth_network_agrees_at_every_distance_and_a_kinked_one_at_none_in_common():
    smooth = [curvatures(nn.Softplus(), h) for h in (1e-2, 1e-3, 1e-4)]
    kinked = [curvatures(nn.ReLU(), h) for h in (1e-1, 3e-2, 1e-2)]

    def check(pairs):
        for exact, measured in pairs:
            assert measured == pytest.approx(exact, rel=2e-2)

    check(smooth)
    check_fails(check, kinked)

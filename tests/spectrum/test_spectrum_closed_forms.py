"""measure_spectrum on losses whose spectrum, radii and verdict are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from spectrum_cases import matrix_of, negative_energy_of, quadratic, toy
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, extreme_directions, find_extremes, measure_spectrum

BISECTED = 2 ** (1 / 8)  # the walk states its radius to within this factor, from below


def measure(risk, lane="all", **options):
    return measure_spectrum(risk, lane, options=SpectrumOptions(**options)).isel(lane=0)


# ---- quadratics with prescribed spectra --------------------------------------------------------------------------

SPECTRA = [
    np.concatenate([np.linspace(-0.5, 0.5, 55), [-2.0, 3.0, 4.0, 9.0, 20.0]]),
    np.concatenate([np.zeros(40), np.geomspace(1e-3, 1.0, 20)]),
    np.linspace(-3.0, 1.0, 60),
]


@pytest.fixture(scope="module")
def three_quadratics():
    matrices = [matrix_of(spectrum, f"Q{c}") for c, spectrum in enumerate(SPECTRA)]
    groups = {"head": (0,), "tail": (1, 2)}
    return quadratic(matrices, class_counts=[6, 3, 1], groups=groups), matrices


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prescribed_spectra_per_class(three_quadratics, seed):
    risk, _ = three_quadratics
    # Twenty probes: with three, the error of the standard error itself exceeds five of them in 4 % of all cases.
    result = measure_spectrum(risk, "classes", seed=seed, options=SpectrumOptions(num_steps=20, num_probes=20))
    for c, spectrum in enumerate(SPECTRA):
        lane = result.isel(lane=c)
        norm = np.abs(spectrum).max()
        # Residuals of 1e-7 |H| give eigenvalues to their square over the gap; 60 steps are all there are.
        assert float(lane.lambda_min) == pytest.approx(spectrum.min(), abs=1e-9 * norm)
        assert float(lane.lambda_max) == pytest.approx(spectrum.max(), abs=1e-9 * norm)
        assert float(lane.lambda_min_residual) <= 1e-5 * norm
        assert float(lane.lambda_max_residual) <= 1e-5 * norm
        assert float(lane.lambda_min_lower_bound) <= spectrum.min() + 1e-12 * norm
        assert abs(float(lane.trace) - spectrum.sum()) <= 5 * float(lane.trace_stderr) + 1e-9 * norm
        energy = negative_energy_of(spectrum)
        assert abs(float(lane.negative_energy) - energy) <= 5 * float(lane.negative_energy_stderr) + 1e-9
        weights = lane.ritz_weight.values
        assert np.nansum(weights, axis=1) == pytest.approx(np.ones(20), abs=1e-12)
        assert np.nanmin(weights) >= 0
        assert float(lane.gradient_norm) == 0
        assert float(lane.loss) == 1
        assert 0 < float(lane.noise_floor) <= 1e-13 * norm


def test_quadrature_has_the_moments_of_the_spectrum():
    """Mean over 12 probes of sum_j w_j theta_j^k against tr H^k / n, k = 1, 2, 3, within 5 standard errors; without
    steps for the extreme run to converge, so that nothing is deflated and the probes do the work."""
    spectrum = np.concatenate([np.linspace(-1, 1, 395), [3.0, 4.0, 5.0, 6.0, -2.0]])
    lane = measure(quadratic([matrix_of(spectrum)]), num_probes=12, num_steps=10, max_steps=2)
    values, weights = lane.ritz_value.values, lane.ritz_weight.values
    for power in (1, 2, 3):
        moments = np.nansum(weights * values**power, axis=1)
        stderr = moments.std(ddof=1) / math.sqrt(12)
        assert abs(moments.mean() - (spectrum**power).mean()) <= 5 * stderr
        assert 0 < stderr < 0.3 * np.abs(spectrum**power).mean()


def test_deflation_shrinks_the_error_of_the_trace():
    """The same probes with and without converged outliers: at least five times smaller with them."""
    spectrum = np.concatenate([np.linspace(-0.01, 0.01, 390), np.linspace(5, 50, 10)])
    risk = quadratic([matrix_of(spectrum)])
    without = measure(risk, num_probes=6, num_steps=20, max_steps=2)
    deflated = measure(risk, num_probes=6, num_steps=20)
    assert float(deflated.trace_stderr) < 0.2 * float(without.trace_stderr)
    assert abs(float(deflated.trace) - spectrum.sum()) <= 5 * float(deflated.trace_stderr)


def test_groups_mixtures_and_the_whole_are_weighted_sums_of_matrices(three_quadratics):
    risk, (a, b, c) = three_quadratics
    expected = {
        "all": 0.6 * a + 0.3 * b + 0.1 * c,
        "tail": 0.75 * b + 0.25 * c,
        "difference": a - 2 * b,
    }
    named = measure_spectrum(risk, "all,tail")
    mixed = measure_spectrum(risk, {"difference": [1.0, -2.0, 0.0]})
    for name, matrix in expected.items():
        values = torch.linalg.eigvalsh(matrix).numpy()
        lane = (mixed if name == "difference" else named).sel(lane=name)
        assert float(lane.lambda_min) == pytest.approx(values[0], abs=1e-9 * np.abs(values).max())
        assert float(lane.lambda_max) == pytest.approx(values[-1], abs=1e-9 * np.abs(values).max())
    by_class = measure_spectrum(risk, "tail,all", group_average="classes")
    for name, matrix in (("tail", (b + c) / 2), ("all", (a + b + c) / 3)):
        exact = float(torch.linalg.eigvalsh(matrix)[0])
        assert float(by_class.sel(lane=name).lambda_min) == pytest.approx(exact, abs=1e-8)


def test_vectors_belong_to_the_values():
    matrix = matrix_of(SPECTRA[0])
    found = extreme_directions(quadratic([matrix]), 0)
    for value, vector, residual in (
        (found.lambda_min, found.v_min, found.residual_min),
        (found.lambda_max, found.v_max, found.residual_max),
    ):
        assert float(vector.norm()) == pytest.approx(1, abs=1e-14)
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(residual, abs=1e-12)
    assert found.num_hvps >= found.num_steps


# ---- toys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saddle_and_bowl(dtype):
    saddle = measure(toy(lambda x, y: x**2 - y**2, 0.0, 0.0, dtype=dtype))
    assert saddle.verdict == "saddle"
    assert float(saddle.lambda_min) == pytest.approx(-2)
    assert float(saddle.lambda_max) == pytest.approx(2)
    assert float(saddle.crossover_radius) == 0
    assert float(saddle.negative_energy) == pytest.approx(0.5)
    assert float(saddle.trace) == pytest.approx(0, abs=1e-6)
    bowl = measure(toy(lambda x, y: x**2 + y**2, 0.0, 0.0, dtype=dtype))
    assert bowl.verdict == "no negative curvature"
    assert float(bowl.lambda_min_lower_bound) == pytest.approx(2, abs=1e-4)
    assert math.isinf(float(bowl.crossover_radius))
    assert math.isnan(float(bowl.quadratic_radius))
    hill = measure(toy(lambda x, y: -(x**2) - y**2, 0.0, 0.0, dtype=dtype))
    assert hill.verdict == "saddle"  # a maximum is left along any direction
    assert float(hill.trace) == pytest.approx(-4)
    assert float(hill.negative_energy) == pytest.approx(1)


def test_monkey_saddle():
    """x^3 - 3 x y^2: zero Hessian at the origin; at (a, 0) curvature -6 a along y, gradient 3 a^2, and exactly
    quadratic along y, so that curvature wins beyond 2 (3 a^2) / (6 a) = a."""
    flat = measure(toy(lambda x, y: x**3 - 3 * x * y**2, 0.0, 0.0))
    assert flat.verdict == "no negative curvature"
    assert float(flat.lambda_min) == float(flat.lambda_max) == 0
    for a in (0.05, 0.7):
        off = measure(toy(lambda x, y: x**3 - 3 * x * y**2, a, 0.0))
        assert off.verdict == "saddle"
        assert float(off.lambda_min) == pytest.approx(-6 * a)
        assert float(off.gradient_norm) == pytest.approx(3 * a**2)
        assert float(off.crossover_radius) == pytest.approx(a)
        assert float(off.quadratic_radius) == pytest.approx(max(4 * a, 1.0))
        radius = float(off.quadratic_radius)
        assert float(off.decrease_along_v) == pytest.approx(3 * a * radius**2)
        assert float(off.decrease_along_gradient) == pytest.approx(a**3 - (a - radius) ** 3)
        assert float(off.gradient_share_along_v) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("gradient", "quartic", "verdict"), [(0.1, 1.0, "saddle"), (0.1, 100.0, "slope"), (0.3, 1.0, "slope")]
)
def test_tilted_saddle(gradient, quartic, verdict, dtype):
    """g x + x^2 - y^2 / 2 + q y^4 at 0: crossover 2 g, quadratic up to 1 / sqrt(4 q)."""
    risk = toy(lambda x, y: 1 + gradient * x + x**2 - y**2 / 2 + quartic * y**4, 0.0, 0.0, dtype=dtype)
    lane = measure(risk)
    assert lane.verdict == verdict
    assert float(lane.crossover_radius) == pytest.approx(2 * gradient, rel=1e-5)
    exact = 1 / math.sqrt(4 * quartic)
    radius = float(lane.quadratic_radius)
    slack = 1.001 if dtype == torch.float64 else 1.02  # in float32 the loss, about 1, is rounded to 1e-7
    assert exact / BISECTED / slack <= radius <= exact * slack
    assert float(lane.decrease_along_v) == pytest.approx(radius**2 / 2 - quartic * radius**4, abs=1e-6)
    assert float(lane.decrease_along_gradient) == pytest.approx(gradient * radius - radius**2, abs=1e-6)
    numbers = str(lane.evidence.item())
    assert f"{-1.0:.3g}" in numbers
    assert f"{2 * gradient:.2g}" in numbers
    assert f"{radius:.2g}" in numbers


def test_a_gradient_along_the_negative_direction_does_not_hide_it():
    """Slope and curvature cancel on one side of y - y^2 / 2; only the even part tells them apart."""
    lane = measure(toy(lambda x, y: x**2 + y - y**2 / 2, 0.0, 0.0))
    assert float(lane.crossover_radius) == pytest.approx(2)
    assert float(lane.quadratic_radius) == pytest.approx(8)
    assert float(lane.gradient_share_along_v) == pytest.approx(1)
    assert float(lane.decrease_along_v) == pytest.approx(8 + 32)
    assert float(lane.decrease_along_gradient) == pytest.approx(8 + 32)


def rosenbrock(x, y):
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.parametrize(("x", "y"), [(1.0, 1.0), (0.0, 1.0), (-1.2, 1.0), (0.3, 2.0), (0.5, 0.25)])
def test_rosenbrock(x, y):
    matrix = np.array([[2 - 400 * y + 1200 * x**2, -400 * x], [-400 * x, 200.0]])
    gradient = np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])
    values = np.linalg.eigvalsh(matrix)
    lane = measure(toy(rosenbrock, x, y))
    norm = np.abs(values).max()
    assert float(lane.lambda_min) == pytest.approx(values[0], abs=1e-11 * norm)
    assert float(lane.lambda_max) == pytest.approx(values[1], abs=1e-11 * norm)
    assert float(lane.trace) == pytest.approx(values.sum(), abs=1e-11 * norm)
    assert float(lane.negative_energy) == pytest.approx(negative_energy_of(values), abs=1e-11)
    assert float(lane.gradient_norm) == pytest.approx(np.linalg.norm(gradient), rel=1e-12, abs=1e-12)
    if values[0] > 0:
        assert lane.verdict == "no negative curvature"
    else:
        assert float(lane.crossover_radius) == pytest.approx(2 * np.linalg.norm(gradient) / -values[0])
        assert lane.verdict in ("saddle", "slope")
    if (x, y) == (0.0, 1.0):
        # Along x: 100 (1 - s^2)^2 + 1 + s^2, so q = 100 against lambda = -398: quadratic up to 0.9975, while the
        # gradient of 200 wins up to 1.005.
        assert float(lane.quadratic_radius) == pytest.approx(0.9975 / BISECTED**0.5, rel=0.05)
        assert lane.verdict == "slope"


# ---- deep linear networks at the origin --------------------------------------------------------------------------


def test_deep_linear_regression_at_its_saddle():
    """mean |y - W2 W1 x|^2 / 2 at W = 0: the Hessian is -[[0, S'], [S, 0]] per hidden unit, S = mean y x', so its
    eigenvalues are plus and minus the singular values of S, and zeros."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64) + 0.5 * inputs[:, :, :3]
    hidden = 2

    def losses(theta):
        first, second = theta.split([4 * hidden, 3 * hidden])
        outputs = inputs @ first.view(hidden, 4).T @ second.view(3, hidden).T
        return ((targets - outputs) ** 2).sum(2).mean(1) / 2

    risk = AnalyticRisk(losses, torch.zeros(14, dtype=torch.float64), class_names=["a", "b"])
    result = measure_spectrum(risk, "classes", options=SpectrumOptions(num_probes=20))
    for c in range(2):
        singular = torch.linalg.svdvals(targets[c].T @ inputs[c] / 30)
        lane = result.isel(lane=c)
        assert float(lane.lambda_min) == pytest.approx(-float(singular[0]), rel=1e-10)
        assert float(lane.lambda_max) == pytest.approx(float(singular[0]), rel=1e-10)
        assert abs(float(lane.trace)) <= 5 * float(lane.trace_stderr) + 1e-9
        # A single run sees one of two equal eigenvalues; the other is left to the probes.
        assert abs(float(lane.negative_energy) - 0.5) <= 5 * float(lane.negative_energy_stderr) + 1e-9
        assert lane.verdict == "saddle"
        assert float(lane.crossover_radius) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deep_linear_classifier_at_its_saddle(dtype):
    """The same in a network under cross-entropy: the residual is 1/C - e_c for every image, so the class Hessian has
    the eigenvalues +-|1/C - e_c| |mean image|, sqrt(1 - 1/C) |mean image|, hidden times each."""
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 4, bias=False)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 6, generator=generator, dtype=dtype) + 0.5
    labels = torch.tensor([0] * 10 + [1] * 6 + [2] * 3 + [3])
    result = measure_spectrum(ModelRisk(model, (inputs, labels)), "classes", options=SpectrumOptions(num_probes=20))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for c in range(4):
        exact = math.sqrt(0.75) * float(inputs[labels == c].double().mean(0).norm())
        lane = result.isel(lane=c)
        assert float(lane.lambda_min) == pytest.approx(-exact, rel=tolerance)
        assert float(lane.lambda_max) == pytest.approx(exact, rel=tolerance)
        assert abs(float(lane.negative_energy) - 0.5) <= 5 * float(lane.negative_energy_stderr) + tolerance
        assert float(lane.loss) == pytest.approx(math.log(4), rel=1e-6)
        assert lane.verdict == "saddle"


# ---- edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_a_linear_loss_has_no_curvature(size, dtype):
    lane = measure(AnalyticRisk(lambda x: x.sum()[None], torch.ones(size, dtype=dtype)))
    for name in ("lambda_min", "lambda_max", "trace", "trace_stderr", "negative_energy", "lambda_min_lower_bound"):
        assert float(lane[name]) == 0, name
    assert lane.verdict == "no negative curvature"
    assert float(lane.gradient_norm) == pytest.approx(math.sqrt(size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("curvature", "verdict"), [(3.0, "no negative curvature"), (-3.0, "saddle")])
def test_a_multiple_of_the_identity_breaks_down_at_once(curvature, verdict, dtype):
    lane = measure(AnalyticRisk(lambda x: curvature * (x @ x)[None] / 2, torch.zeros(100, dtype=dtype)))
    eps = torch.finfo(dtype).eps
    assert float(lane.lambda_min) == pytest.approx(curvature, rel=10 * eps)
    assert float(lane.lambda_max) == pytest.approx(curvature, rel=10 * eps)
    assert float(lane.trace) == pytest.approx(100 * curvature, rel=100 * eps)
    assert float(lane.trace_stderr) <= 100 * eps * 300
    assert lane.ritz_value.notnull().sum("step").max() <= 2  # one atom and one node of its complement
    assert lane.verdict == verdict


def test_one_parameter():
    lane = measure(AnalyticRisk(lambda x: torch.cos(x), torch.zeros(1, dtype=torch.float64)))
    assert float(lane.lambda_min) == float(lane.lambda_max) == pytest.approx(-1)
    assert float(lane.trace) == pytest.approx(-1)
    assert lane.verdict == "saddle"
    # Even part cos s - 1 against -s^2 / 2: half of it is lost at s = 2.78311475650302.
    assert float(lane.quadratic_radius) == 1.0  # the limit of the walk where the gradient is zero


def test_symmetric_extremes():
    """lambda_max = -lambda_min, where power iteration returns anything between them."""
    spectrum = np.concatenate([[-2.0, 2.0], np.linspace(-1, 1, 98)])
    lane = measure(quadratic([matrix_of(spectrum)]))
    assert float(lane.lambda_min) == pytest.approx(-2, rel=1e-10)
    assert float(lane.lambda_max) == pytest.approx(2, rel=1e-10)


def test_a_negative_trace():
    spectrum = np.concatenate([np.linspace(-4, -1, 90), np.linspace(0, 1, 10)])
    lane = measure(quadratic([matrix_of(spectrum)]))
    assert abs(float(lane.trace) - spectrum.sum()) <= 5 * float(lane.trace_stderr) + 1e-9
    assert float(lane.trace) < 0
    energy = negative_energy_of(spectrum)
    assert abs(float(lane.negative_energy) - energy) <= 5 * float(lane.negative_energy_stderr) + 1e-9


@pytest.mark.parametrize("exponent", [-20, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_scaled_loss_gives_scaled_numbers(exponent, dtype):
    """Scaling by a power of two is exact, so every number scales bit for bit and no threshold is absolute."""
    spectrum = np.concatenate([[-0.5, 3.0, 9.0], np.linspace(-0.2, 0.5, 57)])
    gradient = 0.01 * torch.ones(60, dtype=torch.float64)
    scale = 2.0**exponent
    plain = measure(quadratic([matrix_of(spectrum)], gradient=gradient, dtype=dtype))
    scaled = measure(quadratic([matrix_of(spectrum)], gradient=gradient, scale=scale, dtype=dtype))
    curvatures = ("lambda_min", "lambda_max", "lambda_min_residual", "lambda_min_lower_bound", "trace", "trace_stderr")
    for name in (*curvatures, "noise_floor", "gradient_norm", "loss"):
        assert float(scaled[name]) == float(plain[name]) * scale, name
    for name in ("negative_energy", "crossover_radius", "num_steps_extremes", "verdict"):
        assert scaled[name].item() == plain[name].item(), name
    np.testing.assert_array_equal(scaled.ritz_value, plain.ritz_value * scale)
    np.testing.assert_array_equal(scaled.ritz_weight, plain.ritz_weight)


def test_a_loss_that_overflows_is_refused():
    """Finite loss, infinite curvature: |x|^1.5 at zero."""
    risk = AnalyticRisk(lambda x: x.abs().pow(1.5).sum()[None], torch.zeros(3, dtype=torch.float64))
    with pytest.raises(LandscapeError, match="a Hessian product is not finite"):
        measure_spectrum(risk, "all")
    with pytest.raises(LandscapeError, match=r"not finite: \[inf\]"):
        AnalyticRisk(lambda x: 1 / x.abs(), torch.zeros(1))


def test_a_loss_that_stays_in_single_precision_is_told_to_certify_its_own():
    constants = torch.eye(3)
    risk = AnalyticRisk(lambda x: (x @ constants @ x)[None], torch.zeros(3))
    with pytest.raises(LandscapeError, match="choose certify='own'"):
        measure_spectrum(risk, "all")
    result = measure_spectrum(risk, "all", options=SpectrumOptions(certify="own"))
    assert float(result.lambda_max[0]) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": -1}, "num_probes: expected a whole number, at least 0, got -1"),
        ({"num_probes": 0, "num_traces": 3}, "num_traces: expected 0 without density probes, got 3"),
        ({"num_steps": 1}, "num_steps: .* got 1"),
        ({"max_steps": 0}, "max_steps: .* got 0"),
        ({"tolerance": 0.0}, "tolerance: .* got 0.0"),
        ({"num_extremes": 0}, "num_extremes: .* got 0"),
        ({"until": "bored"}, "unknown until 'bored'"),
        ({"basis": "disk"}, "unknown basis 'disk'"),
        ({"budget": 10}, "budget: expected at least 23 products .* got 10"),
        ({"num_traces": -1}, "num_traces: .* got -1"),
        ({"basis_vectors": 5}, "basis_vectors: expected at least 16 .* got 5"),
        ({"threshold": 0.0}, "threshold: .* got 0.0"),
        ({"threshold": 1.0}, "threshold: .* got 1.0"),
        ({"failure_probability": 1.5}, "failure_probability: .* got 1.5"),
    ],
)
def test_options_are_validated(options, message):
    with pytest.raises(LandscapeError, match=message):
        SpectrumOptions(**options)


def test_find_extremes_stops_when_both_ends_have_converged():
    """An outlier at either end of a narrow bulk converges long before 120 steps; the products say so."""
    spectrum = np.concatenate([[-5.0, 10.0], np.linspace(-0.1, 0.1, 498)])
    risk = quadratic([matrix_of(spectrum)])
    found = find_extremes(risk, torch.ones(1), SpectrumOptions(), torch.Generator().manual_seed(0))
    assert found.num_steps <= 24
    assert found.lambda_min == pytest.approx(-5, rel=1e-12)

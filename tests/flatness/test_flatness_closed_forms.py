"""Every measure of a function of the weights alone against what a quadratic says it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flatness_cases import CENTRE, HESSIANS, NUM, SLOPES, quadratic, study

from landscape.directions import adaptive_ascent
from landscape.errors import LandscapeError
from landscape.flatness import MEASURES, FlatnessOptions, measure_flatness
from landscape.perturbation import random_direction, worst_case
from landscape.randomness import stream
from landscape.risk import AnalyticRisk

TRACES = HESSIANS.diagonal(dim1=1, dim2=2).sum(1).numpy()
CONVEX = torch.diag(torch.linspace(0.2, 2.0, NUM, dtype=torch.float64))[None]


def measured(name, risk=None, lanes="classes", **options):
    return MEASURES[name].function(study(quadratic() if risk is None else risk, lanes, **options))


def draws(key, num_pairs, seed=0):
    """The standard normal draws of the documented streams."""
    risk = quadratic()
    streams = (stream(seed, f"flatness/{key}/pair={k}") for k in range(num_pairs))
    return torch.stack([random_direction(risk, g, is_filter_normalised=False) for g in streams])


def bend(offsets):
    """e'He / 2 of offsets (K, n), (K, 2)."""
    return torch.einsum("ki,cij,kj->kc", offsets, HESSIANS, offsets).numpy() / 2


# ---- averages -----------------------------------------------------------------------------------------------------


def test_mean_increase_is_the_curvature_along_its_draws_and_the_slope_cancels():
    found = measured("mean_increase", sigma=0.3, num_pairs=6)
    exact = bend(0.3 * draws("gaussian", 6))
    np.testing.assert_allclose(found.value, exact.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.stderr, exact.std(0, ddof=1) / math.sqrt(6), atol=1e-13)


def test_the_low_pass_filter_is_the_same_draws_with_their_slope():
    found = measured("lpf_increase", sigma=0.3, num_pairs=6)
    offsets = 0.3 * draws("gaussian", 6)
    exact = bend(offsets) + (offsets @ SLOPES.T).numpy()
    np.testing.assert_allclose(found.value, exact.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.stderr, exact.std(0, ddof=1) / math.sqrt(6), atol=1e-13)


def test_the_adaptive_draws_are_in_proportion_to_the_weights():
    found = measured("adaptive_mean_increase", adaptive_radius=0.3, num_pairs=6)
    exact = bend(0.3 * CENTRE.abs() * draws("adaptive", 6))
    np.testing.assert_allclose(found.value, exact.mean(0), atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options", "factors"),
    [
        ("mean_increase", {"sigma": 0.05}, 0.05**2 / 2 * np.ones(NUM)),
        ("lpf_increase", {"sigma": 0.05}, 0.05**2 / 2 * np.ones(NUM)),
        ("adaptive_mean_increase", {"adaptive_radius": 0.2}, 0.2**2 / 2 * CENTRE.numpy() ** 2),
        # One filter of n weights: uniform on its sphere of radius R, E e'He / 2 = R^2 tr H / 2n; in the ball, / 2(n + 2).
        ("filter_relative_increase", {"relative_radius": 0.2}, 0.2**2 / 2 / NUM * float(CENTRE @ CENTRE)),
        (
            "filter_relative_increase",
            {"relative_radius": 0.2, "placement": "ball"},
            0.2**2 / 2 / (NUM + 2) * float(CENTRE @ CENTRE),
        ),
    ],
)
def test_an_average_lies_within_its_errors_of_the_expectation(name, options, factors, seed):
    found = measured(name, seed=seed, num_pairs=400, **options)
    exact = (HESSIANS.diagonal(dim1=1, dim2=2).numpy() * factors).sum(1)
    assert (abs(found.value - exact) < 5 * found.stderr).all()
    if name != "lpf_increase":  # its slope makes it blunt, which is its critique
        assert (found.stderr < 0.4 * abs(HESSIANS.diagonal(dim1=1, dim2=2).numpy() * factors).sum(1)).all()


def test_sphere_and_ball_differ_by_more_than_their_errors_and_say_which_they_are():
    risk = quadratic(torch.eye(NUM, dtype=torch.float64)[None], torch.zeros(1, NUM, dtype=torch.float64))
    sphere, ball = (measured("filter_relative_increase", risk, placement=p, num_pairs=200) for p in ("sphere", "ball"))
    whole = 0.1**2 / 2 * float(CENTRE @ CENTRE)
    assert sphere.value[0] == pytest.approx(whole, rel=1e-12)  # a bowl is the same all over the sphere
    assert abs(ball.value[0] - whole * NUM / (NUM + 2)) < 5 * ball.stderr[0] < 0.2 * whole
    assert (sphere.attributes["placement"], ball.attributes["placement"]) == ("sphere", "ball")


def test_antithetic_pairs_have_the_smaller_error_where_the_slope_is_large():
    steep = quadratic(slopes=20 * SLOPES)
    pairs, plain = (measured(name, steep, num_pairs=50) for name in ("mean_increase", "lpf_increase"))
    assert (pairs.stderr < 0.05 * plain.stderr).all()


# ---- worst cases --------------------------------------------------------------------------------------------------


def test_one_step_goes_along_the_gradient():
    found = measured("one_step_increase", rho=0.3, ascent_steps=1)
    for value, g, h in zip(found.value, SLOPES, HESSIANS):
        assert value == pytest.approx(float(0.3 * g.norm() + 0.3**2 / 2 * (g @ h @ g) / (g @ g)), abs=1e-11)


def test_the_adaptive_step_is_the_one_of_the_optimizer():
    found = measured("adaptive_one_step_increase", adaptive_rho=0.3)
    for value, g, h in zip(found.value, SLOPES, HESSIANS):
        (e,) = adaptive_ascent([g], [CENTRE], 0.3, eta=0.0)
        assert value == pytest.approx(float(g @ e + e @ h @ e / 2), abs=1e-10)


def test_worst_case_of_a_bowl_is_exact():
    bowl = quadratic(torch.eye(NUM, dtype=torch.float64)[None], SLOPES[:1])
    found = measured("worst_case_increase", bowl, rho=0.3)
    assert found.value[0] == pytest.approx(0.3 * float(SLOPES[0].norm()) + 0.3**2 / 2, abs=1e-11)


def test_adaptive_worst_case_of_a_bowl_in_units_of_the_weights_is_exact():
    bowl = quadratic(torch.diag(CENTRE**-2)[None], SLOPES[:1])
    found = measured("adaptive_worst_case_increase", bowl, adaptive_rho=0.3)
    assert found.value[0] == pytest.approx(0.3 * float((CENTRE * SLOPES[0]).norm()) + 0.3**2 / 2, abs=1e-11)


def test_worst_case_in_a_box_is_exact_for_a_convex_diagonal():
    """Coordinate by coordinate: |g| r + h r^2 / 2."""
    found = measured("worst_case_linf_increase", quadratic(CONVEX, SLOPES[:1]), rho_linf=0.2)
    assert found.value[0] == pytest.approx(0.2 * float(SLOPES[0].abs().sum()) + 0.02 * float(CONVEX.sum()), abs=1e-12)


def test_adaptive_worst_case_in_a_box_is_exact_for_a_convex_diagonal():
    found = measured("adaptive_worst_case_linf_increase", quadratic(CONVEX, SLOPES[:1]), adaptive_rho_linf=0.2)
    exact = 0.2 * (CENTRE * SLOPES[0].abs()).sum() + 0.02 * (CENTRE**2 * CONVEX[0].diagonal()).sum()
    assert found.value[0] == pytest.approx(float(exact), abs=1e-12)


def corners(hessian, slope, side):
    """The largest increase over the corners of a box: the maximum of a convex function."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * NUM)
    e = side * signs
    return float((e @ slope + torch.einsum("ki,ij,kj->k", e, hessian, e) / 2).max())


@pytest.mark.parametrize("index", [0, 1])
def test_in_a_box_an_ascent_finds_a_good_corner_and_never_exceeds_the_best(index):
    """A lower bound: to find the best corner of a convex quadratic is hard in general."""
    a = HESSIANS[index] @ HESSIANS[index]
    exact = corners(a, SLOPES[index], 0.4)
    risk = quadratic(a[None], SLOPES[index : index + 1])
    one, many = (measured("worst_case_linf_increase", risk, rho_linf=0.4, ascent_steps=s).value[0] for s in (1, 10))
    assert one <= many <= exact + 1e-12
    assert many > 0.8 * exact


def spectral_maximum(hessian, rho):
    return rho**2 / 2 * float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_without_a_slope_many_steps_find_the_top_of_the_spectrum(is_adaptive):
    flat = quadratic(HESSIANS[:1], torch.zeros(1, NUM, dtype=torch.float64))
    hessian = CENTRE[:, None] * HESSIANS[0] * CENTRE if is_adaptive else HESSIANS[0]
    name, option = ("adaptive_worst_case_increase", "adaptive_rho") if is_adaptive else ("worst_case_increase", "rho")
    found = measured(name, flat, ascent_steps=200, **{option: 0.5}).value[0]
    exact = spectral_maximum(hessian, 0.5)
    assert 0.999 * exact < found <= exact * (1 + 1e-12)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("mean_increase", "sigma"),
        ("filter_relative_increase", "relative_radius"),
        ("adaptive_mean_increase", "adaptive_radius"),
        ("one_step_increase", "rho"),
        ("worst_case_increase", "rho"),
        ("worst_case_linf_increase", "rho_linf"),
        ("adaptive_one_step_increase", "adaptive_rho"),
        ("adaptive_worst_case_increase", "adaptive_rho"),
        ("adaptive_worst_case_linf_increase", "adaptive_rho_linf"),
    ],
)
def test_a_convex_loss_rises_more_the_farther_it_is_moved(name, option):
    risk = quadratic(CONVEX, SLOPES[:1])
    values = [measured(name, risk, **{option: length}).value[0] for length in (0.05, 0.1, 0.2)]
    assert 0 < values[0] < values[1] < values[2]


def test_a_weight_of_zero_stays_in_an_adaptive_ball():
    seen = []

    class Watched:
        theta = torch.tensor([0.0, 2.0], dtype=torch.float64)

        def losses(self, theta, classes=None):
            seen.append(theta.clone())
            return (theta @ theta)[None]

        def gradients(self, theta, weights):
            return (2 * theta + 1)[None]

    row = torch.ones(1, dtype=torch.float64)
    worst_case(Watched(), row, 0.5, 3, stream(0, "x"), scale=Watched.theta.abs())
    assert all(float(point[0]) == 0 for point in seen)
    assert max(float(point[1]) for point in seen) == pytest.approx(3.0)


def test_an_unknown_norm_is_refused():
    with pytest.raises(LandscapeError, match="unknown norm 'linff': did you mean 'linf'"):
        worst_case(quadratic(), torch.ones(2), 0.1, 1, stream(0, "x"), norm="linff")


# ---- derivatives, and what a function of the weights does not have --------------------------------------------------


def test_gradient_norm_and_radial_slope_are_those_of_the_slopes():
    np.testing.assert_allclose(measured("gradient_norm").value, SLOPES.norm(dim=1), rtol=1e-14)
    found = measured("radial_slope")
    np.testing.assert_allclose(found.value, SLOPES @ CENTRE, rtol=1e-14)
    assert found.stderr is None


def test_more_lanes_than_fit_one_pass_have_their_own_gradients(monkeypatch):
    monkeypatch.setattr("landscape.flatness.slopes.LANES_AT_ONCE", 2)
    found = measured("gradient_norm", lanes="1,0,all")
    exact = torch.stack([SLOPES[1], SLOPES[0], SLOPES.mean(0)]).norm(dim=1)
    np.testing.assert_allclose(found.value, exact, rtol=1e-14)


NEEDS_EXAMPLES = {
    "normalised_mean_increase": "logits",
    "normalised_worst_case_increase": "logits",
    "m_sharpness": "single examples",
    "relative_flatness": "logits and features",
    "fisher_rao_norm": "losses of single examples",
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_a_function_of_the_weights_does_not_have_is_missing_with_the_reason(name):
    found = measured(name, num_pairs=2, ascent_steps=1)
    if name in NEEDS_EXAMPLES:
        assert np.isnan(found.value).all()
        assert f"needs {NEEDS_EXAMPLES[name]}" in str(found.attributes["missing"])
    else:
        assert not np.isnan(found.value).any()
        assert "missing" not in found.attributes


def test_the_radius_of_a_bowl_is_where_it_has_risen_by_delta():
    r"""L = |x|^2 at 0 along a direction of norm 1: r^2 = delta, the same both ways and along every direction."""
    risk = AnalyticRisk(lambda x: (x @ x)[None], torch.zeros(4, dtype=torch.float64))
    found = measure_flatness(risk, "all", options=FlatnessOptions(delta=0.09, num_pairs=3, measures=("loss_radius",)))
    assert float(found.loss_radius[0]) == pytest.approx(0.3, rel=0.02)
    assert float(found.loss_radius_low[0]) <= 0.3 <= float(found.loss_radius_high[0]) * 1.02
    assert found.loss_radius.attrs["units"] == "filter norms"
    assert found.loss_radius.attrs["delta"] == 0.09

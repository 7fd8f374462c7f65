"""Perturbation against closed forms: quadratics, whose every increase can be written down, and their worst cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import perturbation
from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.models import NormedLinear
from landscape.perturbation import PerturbationOptions, measure_perturbation, random_direction, worst_case
from landscape.randomness import stream
from landscape.results import Journal, load_results, save_results
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.evaluator import PointEvaluator

NUM = 6
CENTRE = torch.linspace(0.5, 1.5, NUM, dtype=torch.float64)


def symmetric(name, *, num=NUM):
    a = torch.randn(num, num, generator=stream(0, name), dtype=torch.float64)
    return (a + a.T) / 2


HESSIANS = torch.stack([symmetric("perturbation/a"), symmetric("perturbation/b")])
SLOPES = torch.randn(2, NUM, generator=stream(0, "perturbation/slopes"), dtype=torch.float64)


def quadratic(hessians=HESSIANS, slopes=SLOPES, centre=CENTRE, **options):
    """L_c = g_c (x - x0) + (x - x0)' H_c (x - x0) / 2 + c + 1."""

    def losses(x):
        d = x - centre.to(x)
        return slopes.to(x) @ d + 0.5 * torch.einsum("i,cij,j->c", d, hessians.to(x), d) + torch.arange(len(slopes)) + 1

    return AnalyticRisk(losses, centre, **options)


def options(**given):
    return PerturbationOptions(**{"radii": (0.1, 0.4), "sigmas": (), "rhos": ()} | given)


def filter_directions(risk, num_pairs, seed=0):
    """The very directions of the measurement, from the documented streams."""
    return [
        random_direction(risk, stream(seed, f"perturbation/filter/pair={k}"), is_filter_normalised=True)
        for k in range(num_pairs)
    ]


# ---- random draws -------------------------------------------------------------------------------------------------


def test_every_draw_of_a_quadratic_is_its_closed_form():
    risk = quadratic()
    result = measure_perturbation(risk, "classes", options=options(num_draws=8))
    expected = np.zeros((2, 2, 8))
    for k, d in enumerate(filter_directions(risk, 4)):
        for j, r in enumerate((0.1, 0.4)):
            for sign, draw in ((1, 2 * k), (-1, 2 * k + 1)):
                step = sign * r * d
                expected[:, j, draw] = SLOPES @ step + 0.5 * torch.einsum("i,cij,j->c", step, HESSIANS, step)
    np.testing.assert_allclose(result.loss_increase, expected, rtol=0, atol=1e-13)


def test_mean_increase_is_half_r_squared_times_the_mean_curvature_along_the_directions():
    risk = quadratic()
    result = measure_perturbation(risk, "classes", options=options(num_draws=8))
    directions = torch.stack(filter_directions(risk, 4))
    curvature = torch.einsum("ki,cij,kj->ck", directions, HESSIANS, directions).numpy()
    for j, r in enumerate((0.1, 0.4)):
        np.testing.assert_allclose(result.mean_increase[:, j], r**2 / 2 * curvature.mean(1), atol=1e-13)
        stderr = r**2 / 2 * curvature.std(1, ddof=1) / math.sqrt(4)
        np.testing.assert_allclose(result.mean_increase_stderr[:, j], stderr, atol=1e-13)


def test_pair_means_cancel_a_linear_loss():
    risk = quadratic(hessians=torch.zeros_like(HESSIANS))
    result = measure_perturbation(risk, "classes", options=options(sigmas=(0.3,)))
    assert float(abs(result.loss_increase).min()) > 1e-3
    for name in ("loss_increase", "gaussian_loss_increase"):
        pairs = result[name].values.reshape(2, -1, 5, 2)
        np.testing.assert_allclose(pairs.mean(-1), 0, atol=1e-14)
    np.testing.assert_allclose(result.mean_increase, 0, atol=1e-14)
    np.testing.assert_allclose(result.mean_increase_stderr, 0, atol=1e-14)


def test_independent_draws_would_not_cancel_the_slope():
    """What the antithetic test catches: the mean over one sign only."""
    result = measure_perturbation(quadratic(hessians=torch.zeros_like(HESSIANS)), "0", options=options())
    assert abs(float(result.loss_increase[0, 0, ::2].mean())) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_mean_is_half_sigma_squared_times_the_trace(seed):
    sigma, num_draws = 0.05, 2000
    result = measure_perturbation(
        quadratic(), "classes", options=options(radii=(0.1,), sigmas=(sigma,), num_draws=num_draws), seed=seed
    )
    pairs = result.gaussian_loss_increase.values[:, 0].reshape(2, -1, 2).mean(-1)
    stderr = pairs.std(1, ddof=1) / math.sqrt(num_draws // 2)
    traces = HESSIANS.diagonal(dim1=1, dim2=2).sum(1).numpy()
    assert (abs(pairs.mean(1) - sigma**2 / 2 * traces) < 5 * stderr).all()
    # The standard error itself, from the variance of a Gaussian quadratic form: Var(e'He) = 2 sigma^4 |H|_F^2.
    expected = sigma**2 / 2 * math.sqrt(2) * HESSIANS.flatten(1).norm(dim=1).numpy() / math.sqrt(num_draws // 2)
    np.testing.assert_allclose(stderr, expected, rtol=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_the_stated_standard_error_covers_the_exact_mean_of_filter_normalised_draws(seed):
    """One filter: d is uniform on the sphere of radius |theta|, so E d'Hd = |theta|^2 tr H / n."""
    result = measure_perturbation(quadratic(), "classes", options=options(num_draws=400), seed=seed)
    traces = HESSIANS.diagonal(dim1=1, dim2=2).sum(1).numpy()
    expected = np.outer(traces, [0.1**2, 0.4**2]) / 2 * float(CENTRE @ CENTRE) / NUM
    assert (abs(result.mean_increase - expected) < 5 * result.mean_increase_stderr).all()
    assert (result.mean_increase_stderr < 0.5 * np.abs(expected).max()).all()


def test_standard_deviation_of_the_noise_is_the_stated_sigma():
    """The surveyed slip: a variance where a standard deviation was meant. sigma = 0.1 tells the two apart."""
    seen = []

    def losses(x):
        seen.append(x.detach().clone())
        return (x @ x)[None]

    risk = AnalyticRisk(losses, torch.zeros(20_000, dtype=torch.float64))
    seen.clear()
    measure_perturbation(risk, "all", options=options(radii=(1.0,), sigmas=(0.1,), num_draws=4))
    noise = [point for point in seen if bool(point.any())][4:]  # after the centre and four filter-normalised draws
    assert len(noise) == 4
    for point in noise:
        assert abs(float(point.std()) - 0.1) < 5 * 0.1 / math.sqrt(2 * len(point))
    assert noise[0].equal(-noise[1])


def test_the_same_directions_serve_all_radii_and_lanes():
    risk = quadratic(hessians=torch.zeros_like(HESSIANS), class_counts=[3, 1])
    result = measure_perturbation(risk, options=options(radii=(0.1, 0.2), sigmas=(0.1, 0.3)))
    np.testing.assert_allclose(2 * result.loss_increase[:, 0], result.loss_increase[:, 1], atol=1e-14)
    gaussian = result.gaussian_loss_increase
    np.testing.assert_allclose(3 * gaussian[:, 0], gaussian[:, 1], atol=1e-14)
    pooled = 0.75 * result.loss_increase.sel(lane="0") + 0.25 * result.loss_increase.sel(lane="1")
    np.testing.assert_allclose(result.loss_increase.sel(lane="all"), pooled, atol=1e-14)


def test_lanes_do_not_depend_on_which_others_are_measured():
    given = options(sigmas=(0.1,), rhos=(0.1,))
    together = measure_perturbation(quadratic(), "0,1,all", options=given)
    alone = measure_perturbation(quadratic(), "1", options=given)
    for name in ("loss_increase", "gaussian_loss_increase", "mean_increase", "worst_case_increase"):
        np.testing.assert_array_equal(together[name].sel(lane="1"), alone[name].sel(lane="1"))


def test_more_draws_begin_with_the_same_ones_and_seeds_differ():
    few = measure_perturbation(quadratic(), "all", options=options(num_draws=4))
    more = measure_perturbation(quadratic(), "all", options=options(num_draws=8))
    other = measure_perturbation(quadratic(), "all", options=options(num_draws=4), seed=1)
    np.testing.assert_array_equal(more.loss_increase[..., :4], few.loss_increase)
    assert not np.isclose(other.loss_increase, few.loss_increase).any()


def test_random_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first = measure_perturbation(quadratic(), "all", options=options(sigmas=(0.1,), rhos=(0.1,)))
    torch.rand(3)
    again = measure_perturbation(quadratic(), "all", options=options(sigmas=(0.1,), rhos=(0.1,)))
    assert first.identical(again)
    torch.set_rng_state(before)
    measure_perturbation(quadratic(), "all", options=options())
    assert torch.get_rng_state().equal(before)


# ---- worst case ---------------------------------------------------------------------------------------------------


def find(risk, rho, num_steps=1, seed=0, row=(1.0,)):
    return worst_case(risk, torch.tensor(row, dtype=torch.float64), rho, num_steps, stream(seed, "worst-case"))


@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_one_step_is_rho_times_the_gradient_norm_plus_the_curvature_along_it(rho):
    g, h = SLOPES[0], HESSIANS[0]
    best, first = find(quadratic(HESSIANS[:1], SLOPES[:1]), rho)
    expected = rho * g.norm() + rho**2 / 2 * (g @ h @ g) / (g @ g)
    assert first == pytest.approx(float(expected), abs=1e-11)  # the step is guarded by 1e-12
    assert best == max(first, 0.0)


def ball_maximum(hessian, slope, rho):
    """Exact maximum of g'e + e'He/2 over |e| <= rho where it lies on the sphere: (mu - H) e = g, bisection on mu."""
    values, vectors = torch.linalg.eigh(hessian)
    g = vectors.T @ slope
    low, high = float(values[-1]), float(values[-1] + slope.norm() / rho + 1)
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if float((g / (mu - values)).norm()) > rho else (low, mu)
    e = vectors @ (g / (high - values))
    assert float(e.norm()) == pytest.approx(rho)
    return float(slope @ e + 0.5 * e @ hessian @ e)


@pytest.mark.parametrize("index", [0, 1])
def test_many_steps_come_close_to_the_exact_maximum_and_never_exceed_it(index):
    rho = 0.8
    exact = ball_maximum(HESSIANS[index], SLOPES[index], rho)
    risk = quadratic(HESSIANS[index : index + 1], SLOPES[index : index + 1])
    increases = [find(risk, rho, num_steps)[0] for num_steps in (1, 5, 40)]
    assert increases == sorted(increases)
    assert increases[0] < 0.97 * exact  # otherwise one step would do and the test would prove nothing
    assert 0.99 * exact < increases[-1] <= exact + 1e-12


def test_isotropic_bowl_is_exact_in_one_step():
    """x'x / 2 from x0: the maximum over the ball is rho |x0| + rho^2 / 2."""
    best, first = find(quadratic(torch.eye(NUM, dtype=torch.float64)[None], CENTRE[None]), 0.3, 3)
    exact = 0.3 * float(CENTRE.norm()) + 0.3**2 / 2
    assert first == pytest.approx(exact, abs=1e-12)
    assert best == pytest.approx(exact, abs=1e-12)


def saddle(scale=1.0):
    return AnalyticRisk(lambda x: scale * (x[:1] ** 2 - x[1:2] ** 2), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_exact_saddle_without_a_gradient_is_left_in_a_random_direction(seed):
    best, _ = find(saddle(), 0.5, 8, seed)
    assert 0.9 * 0.25 < best <= 0.25 + 1e-12


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_steps_are_those_of_a_plain_loop(monkeypatch, norm):
    """The first is as long as the radius, the later ones half as long, each drawn back onto the ball."""
    rho, centre = 0.7, torch.tensor([0.3, -0.2], dtype=torch.float64)
    risk = AnalyticRisk(lambda x: x[:1] ** 3 + torch.sin(3 * x[1:2]) + x[:1] * x[1:2], centre)
    seen, losses = [], AnalyticRisk.losses
    monkeypatch.setattr(AnalyticRisk, "losses", lambda self, point, *a: seen.append(point) or losses(self, point, *a))
    worst_case(risk, torch.ones(1, dtype=torch.float64), rho, 4, stream(0, "test/plain"), norm=norm)
    offset, expected = torch.zeros(2, dtype=torch.float64), [centre]
    for length in (rho, rho / 2, rho / 2, rho / 2):
        x, y = centre + offset
        gradient = torch.stack([3 * x**2 + y, 3 * torch.cos(3 * y) + x])
        if norm == "l2":
            offset = offset + length * gradient / gradient.norm()
            offset = offset * min(1.0, rho / float(offset.norm()))
        else:
            offset = (offset + length * gradient.sign()).clamp(-rho, rho)
        expected.append(centre + offset)
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e14])
def test_the_steps_do_not_depend_on_the_scale_of_the_loss(scale):
    """A guard against division by zero must not shorten the steps where the loss is nearly flat."""
    risk = AnalyticRisk(lambda x: scale * (x @ x)[None], torch.ones(2, dtype=torch.float64))
    assert find(risk, 0.5)[1] == pytest.approx(scale * (math.sqrt(2) + 0.25), rel=1e-10)


def test_maximum_of_a_concave_loss_has_no_worse_neighbour():
    risk = AnalyticRisk(lambda x: -(x @ x)[None], torch.zeros(3, dtype=torch.float64))
    best, first = find(risk, 0.5, 6)
    assert best == 0.0
    assert first == pytest.approx(-0.25)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_loss_that_is_not_a_number_is_not_reported_as_no_increase(num_steps):
    risk = AnalyticRisk(lambda x: torch.sqrt(1 - x @ x)[None] - 5 * x[:1], torch.zeros(2, dtype=torch.float64))
    assert math.isnan(find(risk, 2.0, num_steps)[0])


def test_an_infinite_loss_is_an_infinite_increase():
    risk = AnalyticRisk(lambda x: (1 / (1 - x[:1]).clamp_min(0)) ** 2, torch.zeros(1, dtype=torch.float64))
    assert find(risk, 2.0, 4)[0] == math.inf


def test_worst_cases_of_the_measurement_are_those_of_the_search():
    result = measure_perturbation(quadratic(), "classes,all", options=options(rhos=(0.1, 0.5), ascent_steps=4))
    rows = {"0": (1.0, 0.0), "1": (0.0, 1.0), "all": (0.5, 0.5)}
    for lane, row in rows.items():
        for rho in (0.1, 0.5):
            expected = find(quadratic(), rho, 4, row=row)
            stored = result.sel(lane=lane, rho=rho)
            assert (float(stored.worst_case_increase), float(stored.one_step_increase)) == pytest.approx(expected)


# ---- networks -----------------------------------------------------------------------------------------------------


def images_and_labels():
    generator = stream(0, "perturbation/data")
    return torch.randn(24, 5, generator=generator), torch.arange(24) % 3


def cosine_model():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), NormedLinear(7, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "perturbation/model"))
    return model


@pytest.fixture
def margin_risk():
    loss = build_loss("ldam", [10, 5, 2])
    loss.name = "ldam"
    return ModelRisk(cosine_model(), images_and_labels(), loss=loss, dtype=torch.float64)


def test_own_loss_and_cross_entropy_come_from_one_pass(margin_risk, monkeypatch):
    calls = []
    evaluate = PointEvaluator.__call__
    monkeypatch.setattr(PointEvaluator, "__call__", lambda self, *a, **k: calls.append(1) or evaluate(self, *a, **k))
    result = measure_perturbation(margin_risk, options=options(num_draws=4, radii=(0.2,)))
    assert len(calls) == 1 + 4  # the centre and the draws
    plain = ModelRisk(cosine_model(), images_and_labels(), loss="ce", dtype=torch.float64)
    expected = measure_perturbation(plain, options=options(num_draws=4, radii=(0.2,)))
    np.testing.assert_allclose(result.loss_increase, expected.loss_increase, rtol=1e-12, atol=1e-15)
    assert "own_loss_increase" not in expected
    directions = filter_directions(margin_risk, 2)
    centre = margin_risk.losses(margin_risk.theta)
    for k, d in enumerate(directions):
        moved = margin_risk.losses(margin_risk.theta + 0.2 * d) - centre
        np.testing.assert_allclose(result.own_loss_increase[:3, 0, 2 * k], moved, rtol=1e-12)
    assert float(abs(result.own_loss_increase - result.loss_increase).min()) > 1e-6


def test_worst_case_of_a_network_is_of_its_own_objective(margin_risk):
    result = measure_perturbation(margin_risk, "all", options=options(num_draws=4, rhos=(1e-4,), ascent_steps=1))
    row = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    slope = float(margin_risk.gradients(margin_risk.theta, row).norm())
    assert float(result.one_step_increase[0, 0]) == pytest.approx(1e-4 * slope, rel=1e-2)


def test_a_measurement_leaves_the_risk_as_it_was(margin_risk):
    before = margin_risk.theta.clone()
    first = measure_perturbation(margin_risk, options=options(rhos=(0.1,)))
    again = measure_perturbation(margin_risk, options=options(rhos=(0.1,)))
    assert margin_risk.theta.equal(before)
    assert first.identical(again)


def test_float32_agrees_with_float64_along_one_direction():
    single, double = (ModelRisk(cosine_model(), images_and_labels(), dtype=t) for t in (torch.float32, torch.float64))
    d = random_direction(double, stream(0, "d"), is_filter_normalised=True)
    increases = [r.losses(r.theta + 0.3 * d.to(r.theta)) - r.losses(r.theta) for r in (single, double)]
    torch.testing.assert_close(increases[0], increases[1], rtol=1e-4, atol=1e-6)


# ---- journal, files, options --------------------------------------------------------------------------------------


def test_an_interrupted_measurement_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    given = options(num_draws=8, sigmas=(0.1,), rhos=(0.1,))
    whole = measure_perturbation(quadratic(), options=given)
    journal = Journal(tmp_path / "journal", {"seed": 0})

    def stop(done, total, text):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_perturbation(quadratic(), options=given, journal=journal, progress=stop)
    draws = []
    once = perturbation._draws
    monkeypatch.setattr(perturbation, "_draws", lambda *a: draws.append(1) or once(*a))
    resumed = measure_perturbation(quadratic(), options=given, journal=journal)
    assert len(draws) == 8 - 5
    assert resumed.identical(whole)
    path = save_results({"perturbation": resumed}, tmp_path / "r.nc")
    for name, variable in whole.data_vars.items():
        np.testing.assert_array_equal(load_results(path)["perturbation"][name], variable)


def test_progress_reaches_its_total():
    seen = []
    measure_perturbation(
        quadratic(), options=options(sigmas=(0.1,), rhos=(0.1, 0.2)), progress=lambda *tick: seen.append(tick)
    )
    assert [done for done, _, _ in seen] == list(range(1, seen[-1][1] + 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_draws": 5}, "num_draws: expected an even number of at least 4 .* got 5"),
        ({"num_draws": 2}, "num_draws: .* got 2"),
        ({"radii": ()}, "radii: expected at least one"),
        ({"radii": (0.1, 0.0)}, r"radii: expected positive numbers, each once, got \(0.1, 0.0\)"),
        ({"radii": (math.nan,)}, "radii: expected positive numbers"),
        ({"sigmas": (-0.1,)}, r"sigmas: expected positive numbers, each once, got \(-0.1,\)"),
        ({"sigmas": (math.inf,)}, "sigmas: expected positive numbers"),
        ({"radii": (0.1, 0.1)}, r"radii: expected positive numbers, each once, got \(0.1, 0.1\)"),
        ({"rhos": (0.0,)}, r"rhos: expected positive numbers, each once, got \(0.0,\)"),
        ({"ascent_steps": 0}, "ascent_steps: expected a whole number, at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(LandscapeError, match=message):
        PerturbationOptions(**given)


def test_unknown_and_empty_lanes_are_refused():
    with pytest.raises(LandscapeError, match="unknown lane 'al': did you mean 'all'"):
        measure_perturbation(quadratic(), "al")
    with pytest.raises(LandscapeError, match="lane '1' has no examples"):
        measure_perturbation(quadratic(class_counts=[3, 0]), "1")

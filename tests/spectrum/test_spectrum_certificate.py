"""What a run proves: the probabilistic bound, the verdicts and their words, the walk that tells saddle from slope."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape.randomness import stream
from landscape.spectrum import VERDICTS, Lanczos
from landscape.spectrum.certificate import Evidence, decide, is_negative, steps_to_exclude
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.walk import smallest_radius, walk_both_ways

BISECTED = 2 ** (1 / 8)  # the walk states its radius to within this factor, from below


# ---- the bound of Kuczynski and Wozniakowski ---------------------------------------------------------------------


def chance_of_missing(fraction: float, num_parameters: int, num_steps: int) -> float:
    return 1.648 * math.sqrt(num_parameters) * math.exp(-math.sqrt(fraction) * (2 * num_steps - 1))


@pytest.mark.parametrize("num_parameters", [10, 1000, 10**6])
@pytest.mark.parametrize("probability", [0.1, 1e-3, 1e-9])
def test_the_forecast_is_the_smallest_number_of_steps_that_the_formula_allows(num_parameters, probability):
    for fraction in (0.3, 0.01, 1e-4):
        steps = steps_to_exclude(fraction, num_parameters, probability)
        assert chance_of_missing(fraction, num_parameters, steps) <= probability * (1 + 1e-9)
        if steps > 1:
            assert chance_of_missing(fraction, num_parameters, steps - 1) > probability
    assert steps_to_exclude(4.9e-3, 460_000, 1e-3) in (100, 101)  # the anchor of the survey


@pytest.mark.parametrize("kind", ["lonely minimum", "uniform", "Chebyshev"])
def test_the_forecast_of_steps_holds_empirically(kind):
    """Over 200 random starts (the distribution does not depend on the eigenvectors) a run of the forecast length misses by
    more than its fraction no more often than stated: at most P + 5 sqrt(P (1 - P) / 200)."""
    size, fraction = 120, 0.1
    spectrum = {
        "lonely minimum": np.concatenate([[-1.0], np.linspace(0, 1, size - 1)]),
        "uniform": np.linspace(-1, 1, size),
        "Chebyshev": np.cos(np.pi * (np.arange(size) + 0.5) / size),
    }[kind]
    diagonal = torch.as_tensor(spectrum)
    for probability in (0.5, 0.1, 0.01):
        run = Lanczos(lambda v: v * diagonal, sphere(200, size, stream(0, f"bound/{kind}")))
        run.extend(steps_to_exclude(fraction, size, probability))
        smallest = np.array([run.ritz(row).values[0] for row in range(200)])
        missed = (smallest - spectrum.min()) / (spectrum.max() - spectrum.min())
        assert (missed > fraction).mean() <= probability + 5 * math.sqrt(probability * (1 - probability) / 200)


# ---- verdicts ----------------------------------------------------------------------------------------------------

SADDLE = Evidence(
    lambda_min=-0.5,
    residual=1e-6,
    noise=1e-7,
    lambda_max=2.0,
    lower_bound=-0.51,
    gradient_norm=0.02,
    crossover_radius=0.08,
    quadratic_radius=0.9,
    steps_to_decide=37,
)


def numbers_in(sentence: str) -> set[float]:
    return {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", sentence)}


def test_saddle_and_slope_differ_by_the_radii():
    verdict, sentence = decide(SADDLE, 0.01)
    assert verdict == "saddle"
    assert {-0.5, 0.25, 0.08, 0.9} <= numbers_in(sentence)
    verdict, sentence = decide(replace(SADDLE, quadratic_radius=0.07), 0.01)
    assert verdict == "slope"
    assert {-0.5, 0.25, 0.02, 0.08, 0.07} <= numbers_in(sentence)
    verdict, sentence = decide(replace(SADDLE, quadratic_radius=0.0), 0.01)
    assert verdict == "slope"
    assert "nowhere quadratic" in sentence


def test_no_negative_curvature_needs_the_bound_not_the_ritz_value():
    positive = replace(SADDLE, lambda_min=0.1, quadratic_radius=math.nan)
    verdict, sentence = decide(replace(positive, lower_bound=-0.019), 0.01)
    assert verdict == "no negative curvature"
    assert {-0.019, -0.01} <= numbers_in(sentence)
    verdict, sentence = decide(replace(positive, lower_bound=-0.021), 0.01)
    assert verdict == "undecided"
    assert {0.1, -0.021, 37.0, 0.01} <= numbers_in(sentence)
    assert decide(replace(positive, lower_bound=-math.inf), 0.01)[0] == "undecided"


def test_what_counts_as_negative():
    assert is_negative(SADDLE, 0.01)
    assert not is_negative(replace(SADDLE, residual=0.6), 0.01)  # the error covers zero
    assert not is_negative(replace(SADDLE, noise=0.6), 0.01)
    assert not is_negative(SADDLE, 0.3)  # certified, but below the threshold
    assert is_negative(replace(SADDLE, lambda_max=-0.1), 0.3)  # a maximum: nothing to compare with
    assert decide(replace(SADDLE, residual=0.6), 0.01)[0] == "undecided"


def test_the_verdicts_are_the_published_four():
    assert VERDICTS == ("saddle", "slope", "no negative curvature", "undecided")


# ---- the walk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quartic", [0.04, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("curvature", [-1.0, -30.0])
@pytest.mark.parametrize(("slope", "cubic"), [(0.0, 0.0), (2.0, 0.0), (0.3, 5.0)])
def test_a_quartic_departs_at_a_known_radius(quartic, curvature, slope, cubic):
    """q s^4 reaches half of |lambda| s^2 / 2 at sqrt(|lambda| / 4 q); slope and cubic are odd and do not matter."""

    def along(s):
        return 1 + slope * s + curvature * s**2 / 2 + cubic * s**3 + quartic * s**4

    walk = walk_both_ways(along, curvature=curvature, noise=1e-14, limit=1000.0)
    exact = math.sqrt(-curvature / (4 * quartic))
    assert exact / BISECTED <= walk.quadratic_radius <= exact
    radius = walk.quadratic_radius
    assert walk.decrease == pytest.approx(1 - min(along(radius), along(-radius)), rel=1e-12)


def test_a_parabola_holds_up_to_the_limit():
    walk = walk_both_ways(lambda s: 3 - 2 * s**2, curvature=-4.0, noise=1e-14, limit=7.0)
    assert walk.quadratic_radius == 7.0
    assert walk.decrease == 98.0


def test_a_crossing_does_not_count():
    """A loss that meets its parabola only in passing far out is quadratic near zero only."""

    def along(s):
        return -(s**2) / 2 if abs(s) < 0.1 else -0.005 - 0.4 * (abs(s) - 0.1)

    walk = walk_both_ways(along, curvature=-1.0, noise=1e-14, limit=10.0)
    # -0.005 - 0.4 (s - 0.1) leaves [1/4, 3/4] s^2 from below at s where 0.4 s - 0.035 = s^2 / 4: s = 1.507.
    exact = (0.4 + math.sqrt(0.16 - 0.035)) * 2
    assert exact / BISECTED <= walk.quadratic_radius <= exact * (1 + 1e-9)


def test_a_loss_without_a_parabola():
    walk = walk_both_ways(lambda s: abs(s), curvature=-1.0, noise=1e-14, limit=1.0)
    assert (walk.quadratic_radius, walk.decrease) == (0.0, 0.0)
    walk = walk_both_ways(lambda s: math.nan if s else 0.0, curvature=-1.0, noise=1e-14, limit=1.0)
    assert walk.quadratic_radius == 0.0


def test_kinks_near_zero_do_not_hide_the_parabola_beyond_them():
    """Curvature of the wrong size within 1e-4, as the nearest kinks of a ReLU network make it."""

    def along(s):
        return -(s**2) / 2 if abs(s) > 1e-4 else -3 * s**2

    assert walk_both_ways(along, curvature=-1.0, noise=1e-14, limit=2.0).quadratic_radius == 2.0


def test_the_smallest_radius_stands_out_of_the_rounding():
    """At it, |lambda| s^2 / 2 is 200 times the rounding of the loss."""
    radius = smallest_radius(2e-6, -0.5)
    assert 0.5 * radius**2 / 2 == pytest.approx(200 * 1e-6 * 2.0)
    noise = np.random.default_rng(0)

    def along(s):
        return (2 - 0.25 * s**2) * (1 + 1e-6 * noise.uniform(-1, 1))

    assert walk_both_ways(along, curvature=-0.5, noise=2e-6, limit=4 * radius).quadratic_radius == 4 * radius

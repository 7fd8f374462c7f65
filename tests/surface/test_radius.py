"""Radii against their closed forms, brackets against the losses at their ends, ranges against their rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from landscape.errors import LandscapeError
from landscape.randomness import numpy_stream, stream
from landscape.results import Journal, load_results, save_results
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.normalised import logit_normalised
from landscape.surface import (
    RadiusOptions,
    automatic_range,
    crossing,
    find_radii,
    measure_radii,
    measure_surface,
    random_directions,
)
from landscape.surface.radius import median_ranks, medians

SQUARE = torch.eye(2, dtype=torch.float64)


class Counted:
    """A function of the radius that remembers where it was called."""

    def __init__(self, function):
        self.function, self.radii = function, []

    def __call__(self, radius):
        self.radii.append(radius)
        return np.asarray(self.function(radius), dtype=np.float64)


def close_to(found, expected, tolerance):
    """The truth lies in the bracket, the bracket is narrow, and the estimate lies in it."""
    expected = np.asarray(expected)
    assert ((found.low < expected * (1 + 1e-12)) & (expected * (1 - 1e-12) <= found.high)).all()
    assert (found.high - found.low <= np.maximum(tolerance * found.high, crossing.FINEST)).all()
    assert ((found.low <= found.radius) & (found.radius <= found.high)).all()


# ---- one ray ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.1, 0.02, 1e-9])
def test_closed_forms(tolerance):
    """Linear, quadratic, quartic, exponential; one below the first scanned radius, one that falls before it rises."""
    losses = Counted(lambda r: [3 * r, r**2, r**4, math.exp(2 * r), 1e4 * r, r**2 - 0.5 * r])
    found = find_radii(losses, 0.3, tolerance=tolerance)
    falls = (0.5 + math.sqrt(0.25 + 1.2)) / 2
    close_to(found, [0.1, 0.3**0.5, 0.3**0.25, math.log(1.3) / 2, 3e-5, falls], tolerance)
    assert found.num_evaluations == len(losses.radii) == len(set(losses.radii))
    assert found.evaluated.tolist() == sorted(losses.radii)


def test_several_rises_share_evaluations():
    losses = Counted(lambda r: [r**2, math.expm1(r)])
    found = find_radii(losses, (0.1, 1.0), tolerance=1e-3)
    close_to(found, [[0.1**0.5, math.log(1.1)], [1.0, math.log(2)]], 1e-3)
    apart = sum(find_radii(losses.function, d, tolerance=1e-3).num_evaluations for d in (0.1, 1.0))
    assert found.num_evaluations < apart


def test_fourteen_lanes_cost_less_than_fourteen_searches():
    scales = numpy_stream(0, "radius/scales").uniform(0.5, 2.0, 14)
    found = find_radii(lambda r: scales * r**2, 0.1)
    close_to(found, np.sqrt(0.1 / scales), 0.05)
    np.testing.assert_allclose(found.radius, np.sqrt(0.1 / scales), rtol=1e-3)  # closer than the bracket
    assert found.num_evaluations <= 30  # lane by lane it would be 14 x 4 and the scan


def test_against_a_second_root_finder():
    def loss(r):
        return math.log1p(r**3) + 0.2 * math.sin(r)

    found = find_radii(lambda r: [loss(r)], 0.5, tolerance=1e-11)
    assert found.radius[0] == pytest.approx(brentq(lambda r: loss(r) - 0.5, 0, 2, xtol=1e-14), rel=1e-9)


def test_the_first_crossing_of_the_scan_not_the_last():
    """A bump as wide as an octave is found; the loss falls again after it and rises once more."""

    def bump(r):
        return [math.exp(-(((r - 0.5) / 0.2) ** 2)) + (r > 1.5)]

    found = find_radii(bump, 0.5, tolerance=1e-6)
    first = brentq(lambda r: bump(r)[0] - bump(0)[0] - 0.5, 0.1, 0.5)
    assert found.radius[0] == pytest.approx(first, rel=1e-6)


def test_a_bump_between_scanned_radii_needs_a_finer_scan():
    """What the resolution means: the narrow bump is missed, and seen by a finer scan."""

    def narrow(r):
        return [2.0 * (0.6 < r < 0.7) + (r > 1.5)]

    assert find_radii(narrow, 0.5).radius[0] == pytest.approx(1.5, rel=0.05)
    assert find_radii(narrow, 0.5, growth=1.1).radius[0] == pytest.approx(0.6, rel=0.05)


def test_never_reached_is_infinite_with_the_scan_as_the_bound():
    found = find_radii(lambda r: [-r, 1 - math.exp(-r), r], 1.0, limit=1.7, tolerance=1e-6)
    assert found.radius.tolist()[:2] == [math.inf] * 2
    assert found.low.tolist()[:2] == [1.7, 1.7]
    assert found.high.tolist()[:2] == [math.inf] * 2
    assert found.radius[2] == pytest.approx(1.0, rel=1e-6)


def test_infinity_is_a_rise_and_not_a_number_is_unknown():
    """Beyond 0.4 the first loss is infinite, the second not a number, the third has a hole inside its bracket."""

    def losses(r):
        return [math.inf if r > 0.4 else 0.0, math.nan if r > 0.4 else 0.0, math.nan if 0.7 < r < 0.9 else (r > 0.9)]

    found = find_radii(losses, 0.1, tolerance=1e-3)
    assert found.low[0] <= 0.4 <= found.high[0] <= found.low[0] * 1.002
    assert found.low[0] <= found.radius[0] <= found.high[0]
    assert math.isnan(found.radius[1])
    assert found.low[1] <= 0.4
    assert found.high[1] == math.inf
    assert math.isnan(found.radius[2])
    assert found.low[2] <= 0.7
    assert 0.9 <= found.high[2] <= 1.0


def test_a_point_exactly_on_the_level():
    found = find_radii(lambda r: [2 * r], 0.5, tolerance=1e-8)  # the scan meets 0.25 exactly
    close_to(found, [0.25], 1e-8)
    assert found.high[0] == 0.25


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delta": 0.0}, r"positive rises of the loss in nats, got \[.*0.0.*\]"),
        ({"delta": [0.1, math.nan]}, "positive rises.*nan"),
        ({"delta": []}, r"positive rises.*\[\]"),
        ({"start": 0.0}, "start 0.0 and limit 2.0"),
        ({"start": 3.0}, "start 3.0 and limit 2.0"),
        ({"limit": math.inf}, "limit inf"),
        ({"growth": 1.0}, "at least 1.01 .*got 1.0"),
        ({"tolerance": 0.0}, "got 0.0"),
    ],
)
def test_refusals_of_the_search(options, text):
    with pytest.raises(LandscapeError, match=text):
        find_radii(lambda r: [r], **{"delta": 0.1, **options})
    names = {"deltas": options.pop("delta", 0.1), **options}
    names["deltas"] = tuple(np.atleast_1d(names["deltas"]))
    with pytest.raises(LandscapeError, match=text):
        RadiusOptions(**names)


def test_a_loss_that_is_not_finite_at_the_weights_is_refused():
    with pytest.raises(LandscapeError, match=r"at the weights are not finite.*inf"):
        find_radii(lambda r: [math.inf], 0.1)


def test_a_jump_at_the_weights_ends_the_search():
    found = find_radii(lambda r: [float(r > 0)], 0.5)
    assert 0 == found.low[0] <= found.radius[0] <= found.high[0] <= 1e-12
    assert found.num_evaluations < 120


# ---- a risk -------------------------------------------------------------------------------------------------------


def bowls(**options):
    """Two classes: |x|^2 / 2 + x_0 and 8 |x|^2, at zero."""
    return AnalyticRisk(
        lambda x: torch.stack([x @ x / 2 + x[0], 8 * x @ x]), torch.zeros(2, dtype=torch.float64), **options
    )


def quadratic_root(slope, curvature, delta):
    return (-slope + math.sqrt(slope**2 + 2 * curvature * delta)) / curvature


def test_given_directions_both_sides_against_the_quadratic_formula():
    options = RadiusOptions(deltas=(0.1, 1.0), tolerance=1e-8, limit=8.0)
    found = measure_radii(bowls(), "classes", directions=list(SQUARE), options=options)
    assert found.radius.dims == ("delta", "direction", "side", "lane")
    for delta in (0.1, 1.0):
        for direction, side, slope in ((0, 1, 1.0), (0, -1, -1.0), (1, 1, 0.0), (1, -1, 0.0)):
            radius = found.radius.sel(delta=delta, direction=direction, side=side)
            assert float(radius.sel(lane="0")) == pytest.approx(quadratic_root(slope, 1.0, delta), rel=1e-7)
            assert float(radius.sel(lane="1")) == pytest.approx(quadratic_root(0.0, 16.0, delta), rel=1e-7)
    assert "median_radius" not in found  # two chosen directions are no sample


def labels(num=30):
    return torch.arange(num) * 7 % 10 % 3


def network(scale=1.0):
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "radius/net"))
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter.mul_(scale)
    return model


def network_risk(scale=1.0):
    inputs = torch.randn(30, 5, generator=stream(0, "radius/inputs")) + labels()[:, None]
    return ModelRisk(network(scale), (inputs, labels()), dtype=torch.float64, groups={"head": [0], "tail": [1, 2]})


def test_a_radius_is_where_the_line_of_the_same_pair_has_risen(tmp_path):
    risk = network_risk()
    before = risk.theta.clone()
    options = RadiusOptions(deltas=(0.1,), num_directions=2)
    found = measure_radii(risk, options=options, seed=3)
    assert torch.equal(risk.theta, before)
    again = load_results(save_results({"radius": found}, tmp_path / "r.nc"))["radius"]
    np.testing.assert_array_equal(again.radius, found.radius)
    for number in (0, 1):
        axis = random_directions(risk, num=1, seed=3, pair=number)
        for lane in found.lane.values:
            for side in (1, -1):
                low, high = (float(found[f"radius_{e}"].sel(lane=lane, side=side)[0, number]) for e in ("low", "high"))
                if math.isinf(high):
                    continue
                ends = sorted((side * low, side * high))
                line = measure_surface(risk, [lane], directions=axis, x=ends).loss[0, :, 0] - float(
                    found.loss.sel(lane=lane)
                )
                assert float(line.sel(alpha=side * low)) < 0.1 <= float(line.sel(alpha=side * high))
    assert bool(np.isfinite(found.radius).any())
    assert int(found.num_evaluations.min()) > 5


def test_repeated_and_resumed_runs_have_the_same_bits(tmp_path):
    risk = network_risk()
    options = RadiusOptions(deltas=(0.1,), num_directions=2)
    first = measure_radii(risk, "groups", options=options, journal=Journal(tmp_path, {}))
    risk.evaluate = None  # nothing is computed a second time
    second = measure_radii(risk, "groups", options=options, journal=Journal(tmp_path, {}))
    assert first.identical(second)
    third = measure_radii(network_risk(), "groups", options=options)
    assert third.identical(first)
    other = measure_radii(network_risk(), "groups", options=options, seed=1)
    assert not np.array_equal(other.radius, first.radius)


def test_normalised_logits_do_not_see_their_scale():
    """Eight times the last layer is a more confident network: raw radii move, normalised ones do not."""
    raw, normalised = RadiusOptions(deltas=(0.1,)), RadiusOptions(deltas=(0.1,), logits="normalised")
    of = {
        (scale, name): measure_radii(network_risk(scale), "all", options=options)
        for scale in (1.0, 8.0)
        for name, options in {"raw": raw, "normalised": normalised}.items()
    }
    same = [of[scale, "normalised"] for scale in (1.0, 8.0)]
    np.testing.assert_allclose(same[0].radius, same[1].radius, rtol=1e-6)
    np.testing.assert_allclose(same[0].loss, same[1].loss, rtol=1e-10)
    differ = [of[scale, "raw"].median_radius for scale in (1.0, 8.0)]
    assert not np.allclose(*differ, rtol=0.1)


def test_the_normalised_loss_by_hand():
    risk = network_risk()
    clone = logit_normalised(risk)
    theta, rows = risk.theta, slice(0, len(risk.labels))
    with torch.no_grad():
        logits = risk.logits(theta, rows)
    z = logits - logits.mean(1, keepdim=True)
    z = z / z.square().sum(1, keepdim=True).sqrt()
    each = torch.logsumexp(z, 1) - z[torch.arange(len(z)), risk.labels]
    expected = torch.stack([each[risk.labels == c].mean() for c in range(3)])
    torch.testing.assert_close(clone.losses(theta), expected)
    assert risk.loss_name == "ce"
    with pytest.raises(LandscapeError, match="no logits, it is not a network's"):
        measure_radii(bowls(), options=RadiusOptions(logits="normalised"))


def test_directions_that_do_not_fit_are_refused():
    for given, text in [
        ([torch.ones(3)], r"shape \(2,\), got \(3,\)"),
        ([torch.zeros(2)], "not zero"),
        ([torch.full((2,), math.nan)], "finite"),
        ([], "at least one vector, got none"),
    ]:
        with pytest.raises(LandscapeError, match=text):
            measure_radii(bowls(), directions=given)
    with pytest.raises(LandscapeError, match="at least 1, got 0"):
        RadiusOptions(num_directions=0)
    with pytest.raises(LandscapeError, match="got 'soft'"):
        RadiusOptions(logits="soft")


# ---- medians ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "rank"), [(1, 1), (5, 1), (6, 1), (9, 2), (20, 6)])
def test_ranks_of_the_interval_of_a_median(num, rank):
    """Table of the sign test; 6 draws are the fewest with 95 %."""
    found, coverage = median_ranks(num)
    assert found == rank
    assert (coverage >= 0.95) == (num >= 6)


def test_coverage_of_the_median_over_directions():
    """Draws whose sides are equal, opposite or apart: the interval holds the median as often as it says, or more."""
    rng = numpy_stream(0, "radius/coverage")
    _, coverage = median_ranks(6)
    draws = rng.standard_normal((4000, 6))
    for other, least in ((draws, coverage), (-draws, 0.999), (rng.standard_normal((4000, 6)), 0.99)):
        _, low, high = medians(np.stack([draws, other], -1))
        held = (low <= 0) & (high >= 0)
        assert held.mean() >= least - 4 * math.sqrt(least * (1 - least) / 4000)
        assert held.mean() <= coverage + 0.01 or other is not draws


def test_the_median_and_its_ends_by_hand():
    radii = np.array([[5.0, 1.0], [7.0, 2.0], [3.0, 4.0], [math.inf, 6.0], [8.0, 9.0], [10.0, 11.0]])
    assert [float(v) for v in medians(radii)] == [6.5, 1.0, math.inf]  # 6 directions: from the smallest to the largest
    nine = np.stack([np.arange(9.0), np.arange(9.0)], -1)
    assert [float(v) for v in medians(nine)] == [4.0, 1.0, 7.0]  # second smallest and second largest of nine
    assert np.isnan(medians(np.array([[1.0, math.nan], [2.0, 3.0]]))).all()


def test_medians_with_lanes_that_never_rise():
    """Class 0 rises on one side only: half of its radii are infinite, and so is its median; class 1 has a number."""
    risk = AnalyticRisk(
        lambda x: torch.stack([torch.exp(3 * x[0]), x @ x, -x @ x]), torch.zeros(4, dtype=torch.float64)
    )
    found = measure_radii(risk, "classes", options=RadiusOptions(deltas=(0.25,), tolerance=1e-6, limit=1.5))
    median, low, high = (found[f"median_{name}"].isel(delta=0) for name in ("radius", "low", "high"))
    assert float(median.sel(lane="0")) == math.inf
    assert float(low.sel(lane="0")) < math.inf == float(high.sel(lane="0"))
    assert float(median.sel(lane="1")) == pytest.approx(0.5, rel=1e-6)
    assert [float(v.sel(lane="2")) for v in (median, low, high)] == [math.inf] * 3
    assert found.attrs["interval_coverage"] == pytest.approx(1 - 2 / 2**6)


# ---- ranges -------------------------------------------------------------------------------------------------------


def measured(scale=1.0, groups=None):
    """Class 0 rises by 1 at 0.4321 on the right and 0.8 on the left (times scale), class 1 at 0.1, class 2 never."""

    def losses(x):
        right, left = x[0].clamp(min=0) / 0.4321, (-x[0]).clamp(min=0) / 0.8
        return torch.stack([(right + left) / scale, x[0].abs() / 0.1, 0 * x[0]])

    members = {"head": [0], "medium": [1], "tail": [2]} if groups is None else groups
    risk = AnalyticRisk(losses, torch.zeros(1, dtype=torch.float64), groups=members)
    options = RadiusOptions(deltas=(0.1, 1.0), tolerance=1e-9, limit=3.0)
    return measure_radii(risk, directions=[torch.ones(1)], options=options)


def test_the_flattest_group_that_rises_decides():
    found = measured(groups={"head": [0], "medium": [1]})
    # "all" rises a third as fast as its three classes together: (1 / 0.4321 + 1 / 0.1) / 3 and (1 / 0.8 + 1 / 0.1) / 3
    assert automatic_range(found) == (-0.8, 0.8)
    assert automatic_range(found, is_symmetric=False) == (-0.8, 0.44)
    assert automatic_range(found, delta=0.1, is_symmetric=False) == (-0.08, 0.044)
    assert automatic_range(found, cap=0.5) == (-0.5, 0.5)
    assert automatic_range(found, kinds=("all",), is_symmetric=False) == (-0.27, 0.25)


def test_a_lane_that_never_rises_does_not_decide_unless_all_are_such():
    assert automatic_range(measured()) == (-0.8, 0.8)
    only = measured(groups={"tail": [2]})
    assert automatic_range(only, kinds=("group",)) == (-3.0, 3.0)
    assert automatic_range(only, kinds=("group",), cap=1.0) == (-1.0, 1.0)


def test_several_checkpoints_share_the_range_that_shows_them_all():
    assert automatic_range([measured(), measured(1.5), measured(0.5)], is_symmetric=False) == (-1.2, 0.65)
    with pytest.raises(LandscapeError, match="at least one checkpoint"):
        automatic_range([])
    with pytest.raises(LandscapeError, match=r"0.3 was not measured, only \[0.1, 1.0\]"):
        automatic_range(measured(), delta=0.3)

"""Directions against their definition: random ones, between two checkpoints, of extreme curvature."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from surface_cases import Net, images, labels, risk_of
from torch import nn

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import ModelRisk, lanes_of
from landscape.risk.points import walk_of
from landscape.spectrum import extreme_directions
from landscape.surface import between, cosine, measure_surface, orthogonal_to, random_directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", range(3))
def test_directions_are_orthogonal_after_all_scaling_and_normalised_filter_by_filter(dtype, pair):
    risk = risk_of(dtype=dtype)
    d1, d2 = random_directions(risk, num=2, seed=0, pair=pair)
    assert abs(cosine(d1, d2)) < 1e-5
    weights = risk.layout.named(risk.theta)
    for d in (risk.layout.named(d1), risk.layout.named(d2)):
        for name, dim in {"conv.weight": 0, "hidden.weight": 0, "head.weight": 1}.items():
            norms = [t.movedim(dim, 0).flatten(1).double().norm(dim=1) for t in (d[name], weights[name])]
            np.testing.assert_allclose(norms[0] / norms[1], 1, rtol=0, atol=1e-5)
            assert len(norms[1]) == {"conv.weight": 4, "hidden.weight": 6, "head.weight": 3}[name]
        for name in ("conv.bias", "norm.weight", "norm.bias", "hidden.bias"):
            assert not d[name].any()


def test_measured_directions_are_those_and_described():
    risk = risk_of()
    result = measure_surface(risk, kind="plane", x=[0, 1], y=[0, 1], num_pairs=2)
    for pair in range(2):
        axes = random_directions(risk, num=2, seed=0, pair=pair)
        point = (risk.theta.double() + axes[0].double() + axes[1].double()).float()
        corner = result.loss.sel(pair=pair, alpha=1, beta=1)
        np.testing.assert_array_equal(corner, walk_of(risk, lanes_of(risk, None)).at(point)["loss"])
        np.testing.assert_allclose(corner[:3], risk.losses(point), rtol=2e-6)  # BatchNorm is folded: rounding
        assert json.loads(result.attrs["direction_norms"])[pair] == pytest.approx(
            [float(d.double().norm()) for d in axes]
        )
        assert abs(np.atleast_1d(result.attrs["direction_cosines"])[pair]) < 1e-5
    assert "orthogonal after scaling" in result.attrs["normalization"]


def test_pairs_and_seeds_give_nearly_orthogonal_directions():
    """Independent directions of n = 4000 weights have cosines of about n^-1/2; five of these leave no doubt."""
    model = nn.Linear(400, 10)
    risk = ModelRisk(model, (torch.randn(20, 400, generator=stream(0, "x")), torch.arange(20) % 10))
    drawn = {(s, p): random_directions(risk, num=1, seed=s, pair=p)[0] for s in range(2) for p in range(2)}
    for one, d in drawn.items():
        for other, e in drawn.items():
            limit = 1.0 if one == other else 5 / math.sqrt(4000)
            assert abs(cosine(d, e)) <= limit + 1e-9
    assert abs(cosine(drawn[0, 0], torch.ones_like(drawn[0, 0]))) < 5 / math.sqrt(4000)


def test_two_checkpoints_see_the_same_raw_draws_each_with_its_own_filter_norms():
    one, other = risk_of(Net(seed=0)), risk_of(Net(seed=1))
    for axis in range(2):
        d, e = (r.layout.named(random_directions(r, num=2, seed=0, pair=0)[axis]) for r in (one, other))
        for name, dim in {"conv.weight": 0, "hidden.weight": 0, "head.weight": 1}.items():
            units = [nn.functional.normalize(t[name].movedim(dim, 0).flatten(1), dim=1) for t in (d, e)]
            torch.testing.assert_close(units[0], units[1], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(d[name], e[name])


def test_the_first_axis_of_a_plane_is_the_line_of_the_same_pair():
    risk = risk_of()
    line, plane = (random_directions(risk, num=num, seed=3, pair=1) for num in (1, 2))
    assert line[0].equal(plane[0])


def test_orthogonal_to_keeps_the_norm_and_refuses_parallels():
    d, e = torch.randn(2, 50, generator=stream(0, "axes"))
    result = orthogonal_to(d, e)
    assert abs(cosine(result, e)) < 1e-6
    assert float(result.norm()) == pytest.approx(float(d.norm()), rel=1e-6)
    with pytest.raises(LandscapeError, match="parallel"):
        orthogonal_to(-3 * e, e)
    with pytest.raises(LandscapeError, match="zero"):
        orthogonal_to(d, torch.zeros(50))


def test_filters_of_one_weight_still_give_orthogonal_axes():
    """A depthwise 1 x 1 convolution has filters of one weight, in which nothing is orthogonal."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(48, 3))
    risk = ModelRisk(model, (images(12, 3), labels(12)))
    d1, d2 = random_directions(risk, num=2, seed=0, pair=0)
    assert abs(cosine(d1, d2)) < 1e-5
    assert bool(d1.any())
    assert bool(d2.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_line_between_two_checkpoints_ends_at_both_exactly(dtype):
    models = [Net(seed=0), Net(seed=1)]
    # The statistics belong to the function, not to the weights: the line keeps the first's, so the second shares them.
    for name, statistics in models[0].norm.named_buffers():
        models[1].norm.get_buffer(name).copy_(statistics)
    one, other = (risk_of(model, dtype=dtype) for model in models)
    result = measure_surface(one, "classes", directions=[between(one, other)], x=[-0.5, 0, 0.5, 1])
    ends = [walk_of(risk, lanes_of(risk, "classes")).at(risk.theta)["loss"] for risk in (one, other)]
    tolerance = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 1e-13}
    np.testing.assert_array_equal(result.loss.sel(alpha=0)[0], ends[0])
    np.testing.assert_allclose(result.loss.sel(alpha=1)[0], ends[1], **tolerance)
    rounding = 2e-6 if dtype == torch.float32 else 1e-13  # of the folded BatchNorm
    np.testing.assert_allclose(ends[1], other.losses(other.theta), rtol=rounding)
    assert abs(result.loss.sel(alpha=1) - result.loss.sel(alpha=0)).min() > 1e-3


def test_different_architectures_have_no_line_between_them():
    other = ModelRisk(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (images(), labels()))
    with pytest.raises(LandscapeError, match=r"different parameters.*one architecture"):
        between(risk_of(), other)


@pytest.mark.parametrize("lane", ["2", "all"])
def test_curvature_of_the_eigen_plane_is_the_eigenvalues(lane):
    """Second differences of a smooth network in float64: d2L / dalpha2 = lambda unit^2, and no mixed term."""
    risk = risk_of(dtype=torch.float64)
    ends = extreme_directions(risk, lane)
    unit = 0.02
    h = [-0.1, 0.0, 0.1]
    result = measure_surface(risk, lane, kind="plane", directions=[unit * ends.v_min, unit * ends.v_max], x=h, y=h)
    loss = result.loss[0, :, :, 0].values  # (beta, alpha)
    scale = (0.1 * unit) ** 2
    along_min = (loss[1, 2] - 2 * loss[1, 1] + loss[1, 0]) / scale
    along_max = (loss[2, 1] - 2 * loss[1, 1] + loss[0, 1]) / scale
    mixed = (loss[2, 2] - loss[2, 0] - loss[0, 2] + loss[0, 0]) / (4 * scale)
    assert ends.lambda_min < -1e-3
    assert along_min == pytest.approx(ends.lambda_min, rel=1e-2)
    assert along_max == pytest.approx(ends.lambda_max, rel=1e-2)
    assert abs(mixed) < 1e-2 * abs(ends.lambda_max)

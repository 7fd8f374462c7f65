"""Surfaces against functions known everywhere: exact values, lanes, coordinates, and input that is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from surface_cases import E1, E2, X, Y, asymmetric, exact, risk_of, toy

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.results import load_results, save_results, validate
from landscape.risk import AnalyticRisk
from landscape.surface import measure_surface


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_plane_of_a_known_function_is_exact_through_saving_and_loading(tmp_path, dtype, tolerance):
    result = measure_surface(toy(dtype), "classes", kind="plane", directions=[E1, E2], x=X, y=Y)
    assert result.loss.dims == ("pair", "beta", "alpha", "lane")
    loaded = load_results(save_results({"surface": result}, tmp_path / "r.nc"))["surface"].to_dataset()
    for dataset in (result, loaded):
        validate("surface", dataset)
        np.testing.assert_allclose(dataset.loss[0], exact(), rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(dataset.alpha, X)
        np.testing.assert_array_equal(dataset.beta, Y)
        assert bool(dataset.done.all())
        corner = dataset.loss.sel(pair=0, alpha=2.5, beta=-0.5, lane="0")
        assert float(corner) == pytest.approx(asymmetric(2.5, -0.5), rel=tolerance)
    np.testing.assert_array_equal(loaded.loss, result.loss)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_line_of_a_known_function_is_exact_through_saving_and_loading(tmp_path, dtype, tolerance):
    result = measure_surface(toy(dtype), "classes", directions=[E1 - 2 * E2], x=X)
    loaded = load_results(save_results({"surface_line": result}, tmp_path / "r.nc"))["surface_line"].to_dataset()
    expected = np.stack([asymmetric(X, -2 * X), np.exp(X) + 4 * X], -1)
    for dataset in (result, loaded):
        validate("surface_line", dataset)
        assert dataset.loss.dims == ("pair", "alpha", "lane")
        np.testing.assert_allclose(dataset.loss[0], expected, rtol=tolerance, atol=tolerance)


def test_a_plane_off_the_axes_and_off_the_origin():
    centre = torch.tensor([0.3, -0.7], dtype=torch.float64)
    risk = AnalyticRisk(lambda t: asymmetric(t[0], t[1])[None], centre)
    d1, d2 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    result = measure_surface(risk, "all", kind="plane", directions=[d1, d2], x=X, y=Y)
    b, a = np.meshgrid(Y, X, indexing="ij")
    expected = asymmetric(0.3 + a - 3 * b, -0.7 + 2 * a + 0.5 * b)
    np.testing.assert_allclose(result.loss[0, :, :, 0], expected, rtol=1e-12, atol=1e-12)


def test_not_a_number_and_infinity_stay_and_zero_is_a_value(tmp_path):
    def losses(t):
        return torch.stack([torch.sqrt(t[0] + 1) - 1, 1 / (t[0] - 0.5) ** 2, 0 * t[0]])

    risk = AnalyticRisk(losses, torch.zeros(1, dtype=torch.float64), class_counts=[1, 1, 2])
    result = measure_surface(risk, directions=[torch.ones(1)], x=[-2.0, -1.0, 0.0, 0.5])
    loaded = load_results(save_results({"surface_line": result}, tmp_path / "r.nc"))["surface_line"]
    for dataset in (result, loaded):
        by_lane = {lane: dataset.loss.sel(lane=lane).values[0] for lane in ("0", "1", "2", "all")}
        assert np.isnan(by_lane["0"]).tolist() == [True, False, False, False]
        assert by_lane["0"][1:3].tolist() == [-1.0, 0.0]
        assert by_lane["1"][3] == np.inf
        assert by_lane["2"].tolist() == [0.0] * 4
        assert np.isnan(by_lane["all"][0])
        assert by_lane["all"][3] == np.inf
        assert bool(dataset.done.all())


def test_default_coordinates_are_symmetric_with_the_centre_on_the_grid():
    line = measure_surface(toy(), "all", directions=[E1])
    assert line.sizes["alpha"] == 51
    assert float(line.loss.sel(alpha=0.0)[0, 0]) == 0.5
    plane = measure_surface(toy(), "all", kind="plane", directions=[E1, E2])
    assert (plane.sizes["beta"], plane.sizes["alpha"]) == (21, 21)
    assert float(plane.loss.sel(alpha=0.0, beta=0.0)[0, 0]) == 0.5


def test_group_lanes_are_pooled_or_class_means():
    counts, groups = [6, 2], {"head": (0,), "tail": (0, 1)}
    result = measure_surface(toy(class_counts=counts, groups=groups), kind="plane", directions=[E1, E2], x=X, y=Y)
    by_class = result.loss.sel(lane=["0", "1"]).values
    assert list(result.lane.values) == ["0", "1", "head", "tail", "all"]
    np.testing.assert_allclose(result.loss.sel(lane="head"), by_class[..., 0], rtol=1e-14)
    for lane in ("tail", "all"):
        np.testing.assert_allclose(result.loss.sel(lane=lane), by_class @ [0.75, 0.25], rtol=1e-12)
    result = measure_surface(
        toy(class_counts=counts, groups=groups), "tail", directions=[E1], x=X, group_average="classes"
    )
    np.testing.assert_allclose(result.loss[0, :, 0], exact(X, [0.0])[0].mean(1), rtol=1e-12)


def test_own_loss_beside_cross_entropy():
    loss = build_loss("ldam", [10, 5, 2])
    loss.name = "ldam"
    own, plain = risk_of(loss=loss, dtype=torch.float64), risk_of(dtype=torch.float64)
    result, reference = (measure_surface(risk, "classes,all", x=[-0.5, 0.0, 1.0]) for risk in (own, plain))
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-12)
    assert "own_loss" not in reference
    np.testing.assert_allclose(result.own_loss[0, 1, :3], own.losses(own.theta), rtol=1e-12)
    assert result.own_loss.dims == result.loss.dims
    assert float(abs(result.own_loss - result.loss).min()) > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "volume"}, "unknown kind of surface 'volume'.*line, plane"),
        ({"x": [0.0]}, r"x: expected at least two finite, increasing coordinates, got \[0.0\]"),
        ({"x": [1.0, 0.0]}, "x: expected at least two finite, increasing"),
        ({"x": [0.0, 0.0]}, "x: expected at least two finite, increasing"),
        ({"x": [0.0, math.nan]}, "x: expected at least two finite, increasing"),
        ({"x": "-1:1:5"}, "x: expected .* got '-1:1:5'"),
        ({"x": [[0.0, 1.0]]}, "x: expected"),
        ({"kind": "plane", "y": [0.0, math.inf]}, "y: expected at least two finite, increasing"),
        ({"num_pairs": 0}, "num_pairs: expected a whole number, at least 1, got 0"),
        ({"directions": [E1, E2]}, r"a line needs 1 direction\(s\), got 2"),
        ({"kind": "plane", "directions": [E1]}, r"a plane needs 2 direction\(s\), got 1"),
        ({"directions": [torch.ones(3)]}, r"expected directions of shape \(2,\), got \(3,\)"),
        ({"directions": [E1 / 0]}, "the first direction of the surface is not finite"),
        ({"directions": [0 * E1]}, "the first direction of the surface is zero"),
        ({"lanes": "2"}, "unknown lane '2'"),
    ],
)
def test_bad_input_is_refused(given, message):
    with pytest.raises(LandscapeError, match=message):
        measure_surface(toy(), **given)

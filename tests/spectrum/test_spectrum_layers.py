"""Spectra of diagonal blocks: closed forms, dense derivatives, interlacing, and one graph for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from spectrum_cases import (
    Counting,
    dense_hessian,
    digits,
    matrix_of,
    negative_energy_of,
    network_risk,
    quadratic,
    tanh_network,
)

from landscape.errors import LandscapeError
from landscape.layout import ParameterLayout
from landscape.results import Journal
from landscape.risk import ModelRisk
from landscape.risk.augmented import RedrawnRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum import layers as layers_module
from landscape.spectrum.layers import measure_layers

OPTIONS = SpectrumOptions(num_probes=3, num_steps=8, max_steps=40)
LAYERS = {"2": slice(0, 85), "4": slice(85, 109)}  # (5, 16) + 5 and (4, 5) + 4 parameters


def blocks(*spectra, coupling=0.0):
    """Return a risk whose Hessian has blocks of given spectra, named as tensors a.weight, a.bias, b.weight, ..."""
    matrix = torch.block_diag(*[matrix_of(np.asarray(values)) for values in spectra])
    matrix = matrix + coupling * (
        torch.ones_like(matrix) - torch.block_diag(*[torch.ones(len(s), len(s)) for s in spectra])
    )
    risk = quadratic([matrix])
    sizes = [len(s) for s in spectra]
    named = {"a.weight": torch.ones(sizes[0] - 1), "a.bias": torch.ones(1)}
    named |= {f"{'bcde'[k]}.weight": torch.ones(size) for k, size in enumerate(sizes[1:])}
    risk.layout = ParameterLayout.of(named)
    return risk, matrix


@pytest.fixture(scope="module")
def result():
    return measure_layers(network_risk(), ["0", "3", "all"], options=OPTIONS)


def test_blocks_of_a_quadratic_have_their_prescribed_spectra():
    risk, _ = blocks([-2.0, 0.5, 3.0], [1.0, 4.0], [-1.0], coupling=0.3)
    found = measure_layers(risk, "all", options=OPTIONS).sel(lane="all")
    assert found.layer.values.tolist() == ["a", "b", "c"]
    assert found.num_parameters.values.tolist() == [3, 2, 1]
    np.testing.assert_allclose(found.lambda_min, [-2, 1, -1], atol=1e-12)
    np.testing.assert_allclose(found.lambda_max, [3, 4, -1], atol=1e-12)
    np.testing.assert_allclose(found.trace, [1.5, 5, -1], atol=1e-12)
    np.testing.assert_allclose(found.negative_energy, [2 / 5.5, 0, 1], atol=1e-12)


def test_blocks_of_a_network_agree_with_dense_derivatives(result):
    lane = {"0": [1, 0, 0, 0], "3": [0, 0, 0, 1], "all": [c / 37 for c in (20, 10, 5, 2)]}
    for name, weights in lane.items():
        dense = dense_hessian(tanh_network(), *digits(), weights)
        for layer, part in LAYERS.items():
            values = np.linalg.eigvalsh(dense[part, part])
            found = result.sel(lane=name, layer=layer)
            assert float(found.lambda_max) == pytest.approx(values[-1], rel=1e-9)
            assert values[0] - 1e-9 <= float(found.lambda_min) <= values[0] + float(found.lambda_min_residual) + 1e-9
            assert values[0] >= float(found.lambda_min_lower_bound) - 1e-9
            assert abs(float(found.trace) - values.sum()) <= 5 * float(found.trace_stderr) + 1e-9
            energy = negative_energy_of(values)
            slack = 5 * float(found.negative_energy_stderr) + 1e-9
            assert float(found.negative_energy_low) - slack <= energy <= float(found.negative_energy_high) + slack
            assert int(found.index_lower_bound) <= int((values < 0).sum())


def test_blocks_lie_within_the_whole(result):
    whole = measure_spectrum(network_risk(), ["0", "3", "all"], options=OPTIONS)
    assert (result.lambda_min >= whole.lambda_min - 1e-9).all()
    assert (result.lambda_max <= whole.lambda_max + 1e-9).all()
    traces, error = result.trace.sum("layer"), result.trace_stderr.sum("layer") + whole.trace_stderr
    assert (abs(traces - whole.trace) <= 5 * error).all()


def test_a_risk_without_layer_graphs_gives_the_same_blocks(result):
    whole_products = measure_layers(Counting(network_risk()), ["0", "3", "all"], options=OPTIONS)
    for name in ("lambda_min", "lambda_max", "trace", "negative_energy"):
        np.testing.assert_allclose(whole_products[name], result[name], rtol=1e-8, atol=1e-10)


def test_products_are_counted_and_capped_by_a_budget():
    counting = Counting(network_risk())
    found = measure_layers(counting, "all", options=SpectrumOptions(num_probes=2, budget=30))
    assert int(found.num_hvps.sum()) == counting.num_products
    assert (found.num_hvps <= 30).all()


def test_one_first_backward_serves_all_layers_of_a_lane(monkeypatch):
    graphs = []
    original = layers_module.layer_hessian
    monkeypatch.setattr(layers_module, "layer_hessian", lambda *a: graphs.append(a[0].dtype) or original(*a))
    measure_layers(network_risk(torch.float32), ["0", "3"], options=OPTIONS)
    assert graphs == [torch.float32, torch.float64] * 2


def test_float32_blocks_are_certified_in_float64():
    found = measure_layers(network_risk(torch.float32), "all", options=OPTIONS).sel(lane="all")
    exact = measure_layers(network_risk(), "all", options=OPTIONS).sel(lane="all")
    np.testing.assert_allclose(found.lambda_max, exact.lambda_max, rtol=1e-8)
    assert (found.noise_floor < 1e-12).all()
    assert (found.precision_gap > 1e-9).all()


def test_until_verdict_samples_no_density():
    found = measure_layers(network_risk(), "all", options=SpectrumOptions(until="verdict"))
    assert found.trace.isnull().all()
    assert found.lambda_max.notnull().all()


def test_same_seed_same_bits_and_a_resumed_run_measures_nothing_again(tmp_path, result):
    journal = Journal(tmp_path, {})
    texts = []
    first = measure_layers(network_risk(), ["0", "3", "all"], options=OPTIONS, journal=journal)
    counting = Counting(network_risk())
    again = measure_layers(
        counting, ["0", "3", "all"], options=OPTIONS, journal=journal, progress=lambda *a: texts.append(a)
    )
    xr.testing.assert_identical(first, result)
    xr.testing.assert_identical(again, result)
    assert counting.num_products == 0
    assert texts[-1] == (6, 6, "spectrum of 4 for all")


def test_a_layer_without_curvature_is_zero():
    risk = quadratic([torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64))])
    risk.layout = ParameterLayout.of({"used.weight": torch.ones(2), "unused.weight": torch.ones(2)})
    found = measure_layers(risk, "all", options=OPTIONS).sel(lane="all", layer="unused")
    assert (float(found.lambda_min), float(found.lambda_max), float(found.trace)) == (0, 0, 0)
    assert float(found.negative_energy) == 0


def test_layers_are_named_by_their_modules():
    names = ("weight", "bias", "cls_token", "block.attn.in_proj_weight", "block.attn.in_proj_bias", "block.norm.weight")
    layout = ParameterLayout.of({name: torch.ones(1) for name in names})
    assert layout.layers == ("model", "model", "cls_token", "block.attn", "block.attn", "block.norm")


def test_a_moving_function_has_no_layers():
    base = ModelRisk(tanh_network(), digits())
    with pytest.raises(LandscapeError, match="spectrum per layer needs a fixed function"):
        measure_layers(RedrawnRisk(base, lambda x, g: x), "all")

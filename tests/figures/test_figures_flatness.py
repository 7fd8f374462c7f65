"""Figures of flatness hold the Dataset's numbers, with their errors, on axes that suit them."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import plotly.graph_objects as go
import pytest
import synthetic_results as synthetic

from landscape.errors import LandscapeError
from landscape.figures import plot_curvature_against_loss, plot_flatness

BACKENDS = {"matplotlib": matplotlib.figure.Figure, "plotly": go.Figure}


flatness = synthetic.flatness


def both():
    return {"sgd": flatness("sgd"), "sam": flatness("sam", 0.5)}


def markers(figure):
    return [t for t in figure.data if t.mode == "markers" and np.isfinite(np.asarray(t.y, dtype=float)).any()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("plot", [plot_flatness, plot_curvature_against_loss])
def test_both_figures_on_both_backends(plot, several, backend):
    figure = plot(both() if several else flatness(), backend=backend)
    assert isinstance(figure, BACKENDS[backend])
    if backend == "matplotlib":
        figure.draw_without_rendering()
        text = " ".join(t.get_text() for t in figure.texts)
    else:
        text = " ".join(a.text for a in figure.layout.annotations)
    assert "objective: cross-entropy" in text
    assert "confidence" in text


def test_a_panel_per_measure_that_exists_and_its_points_are_the_values_with_their_errors():
    data = flatness()
    figure = plot_flatness(data, lanes="every")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["gradient norm", "mean increase", "worst case increase (≥)", "radial slope"]
    figure = plot_flatness(data, measures=["mean_increase"], lanes="every", backend="plotly")
    values, errors = {}, {}
    for trace in markers(figure):
        for x, y, e in zip(trace.x, trace.y, trace.error_y.array):
            values[round(x)], errors[round(x)] = y, e
    order = [*range(10), 10, 11, 12, 13]
    np.testing.assert_allclose([values[k] for k in order], data.mean_increase, rtol=1e-6)
    np.testing.assert_allclose([errors[k] for k in order], data.mean_increase_stderr, rtol=1e-6)


def test_scales_are_logarithmic_where_positive_values_differ_and_symmetric_where_signs_do():
    scales = {axis.get_title(): axis.get_yscale() for axis in plot_flatness(flatness()).axes}
    assert scales["mean increase"] == "log"
    assert scales["worst case increase (≥)"] == "linear"
    assert scales["radial slope"] in ("linear", "symlog")


def test_a_measure_without_errors_has_no_bars():
    figure = plot_flatness(flatness(), measures=["worst_case_increase"], backend="plotly")
    assert all(trace.error_y.array is None for trace in markers(figure))


@pytest.mark.parametrize("variable", ["lambda_max", "trace"])
def test_curvature_stands_at_its_loss_and_has_its_error(variable):
    data = synthetic.spectrum("sgd")
    figure = plot_curvature_against_loss(data, variable=variable, lanes="every", backend="plotly")
    found = {(float(x), float(y)) for trace in markers(figure) for x, y in zip(trace.x, trace.y)}
    exact = set(zip(data.loss.values.tolist(), data[variable].values.tolist()))
    np.testing.assert_allclose(sorted(found), sorted(exact), rtol=1e-6)
    bars = np.concatenate([trace.error_y.array for trace in markers(figure)])
    error = data["trace_stderr" if variable == "trace" else "lambda_max_error"]
    np.testing.assert_allclose(sorted(bars), sorted(error.values), rtol=2e-3)  # bars are stored as float32 ends
    assert figure.layout.xaxis.type == "log"


def test_the_line_is_the_power_law_of_the_marks():
    figure = plot_curvature_against_loss(flatness(), backend="plotly")
    line = next(t for t in figure.data if t.mode == "lines" and np.isfinite(np.asarray(t.x, dtype=float)).all())
    np.testing.assert_allclose(line.y, 0.1 * np.asarray(line.x) ** 1.5, rtol=1e-6)
    text = " ".join(a.text for a in figure.layout.annotations)
    assert "0.1 · loss^1.50, R² = 1.00, 10 lanes" in text


def test_values_of_both_signs_have_no_logarithm_and_no_line():
    figure = plot_curvature_against_loss(flatness(), variable="radial_slope", backend="plotly")
    assert not [t for t in figure.data if t.mode == "lines" and np.isfinite(np.asarray(t.x, dtype=float)).any()]
    assert figure.layout.yaxis.type != "log"


def test_lanes_without_a_value_are_counted():
    data = flatness()
    data["mean_increase"][{"lane": 2}] = np.nan
    text = " ".join(a.text for a in plot_curvature_against_loss(data, backend="plotly").layout.annotations)
    assert "Lanes without a value: 1" in text
    assert "9 lanes" in text


def test_error_bars_end_above_zero_on_a_logarithmic_axis():
    data = flatness()
    data["mean_increase_stderr"] = 3 * data["mean_increase"]
    figure = plot_curvature_against_loss(data)
    low, _ = figure.axes[0].get_ylim()
    assert 0 < low < 0.2 * float(data.mean_increase.sel(lane="plane"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_flatness(flatness(), measures=["mean_increas"]), "unknown measure of flatness 'mean_increas'"),
        (lambda: plot_flatness(flatness(), measures=["relative_flatness"]), "expected a measure with a value"),
        (lambda: plot_flatness(synthetic.accuracy("sgd")), "expected the variable 'gradient_norm'"),
        (lambda: plot_curvature_against_loss(flatness(), variable="trace"), "expected the variable 'trace'"),
        (lambda: plot_curvature_against_loss(flatness(), variable="relative_flatness"), "there is nothing to draw"),
        (lambda: plot_curvature_against_loss(flatness(), lanes="tial"), "unknown lane 'tial'"),
    ],
)
def test_what_cannot_be_drawn_is_said(call, message):
    with pytest.raises(LandscapeError, match=message):
        call()

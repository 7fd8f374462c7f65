"""Quadratic models as drawn: the curves and contour lines are those of the numbers in the Dataset, within their radius."""

import matplotlib.figure
import numpy as np
import plotly.graph_objects as go
import pytest
import synthetic_results as synthetic

from landscape.errors import LandscapeError
from landscape.figures.quadratic import evaluate_quadratic, plot_quadratic

BACKENDS = {"matplotlib": matplotlib.figure.Figure, "plotly": go.Figure}
SLOPE, CURVATURE = synthetic.SLOPE, synthetic.CURVATURE


def line():
    return synthetic.with_models(synthetic.surface_line("sgd"))


def plane(**options):
    return synthetic.with_models(synthetic.surface("sgd", holes=False), **options)


def parabola(dataset, lane, t, factor=1.0):
    k = dataset.lane.values.tolist().index(lane)
    return k + 1.0 + 0.5 * t + factor * 2.0 * t**2


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [line, plane])
def test_both_kinds_of_surface_on_both_backends(make, backend):
    figure = plot_quadratic(make(), pair=1, backend=backend)
    assert isinstance(figure, BACKENDS[backend])
    if backend == "matplotlib":
        figure.canvas.draw()
        words = " ".join(text.get_text() for text in figure.texts)
    else:
        words = " ".join(a.text for a in figure.layout.annotations).replace("<br>", " ")
    words = " ".join(words.split())
    assert "kinks of ReLUs" in words
    assert "the largest that qualifies" in words
    assert "Direction pair 1 of" in words


def test_the_model_on_the_grid_and_elsewhere():
    data = plane(radius=0.75, aspect=2.0)
    lane = str(data.lane.values[1])
    alpha, beta = data.alpha.values, data.beta.values
    a, b = np.meshgrid(alpha, beta)
    expected = 2.0 + 0.5 * a - b + 2 * a**2 + a * b + 3 * b**2
    np.testing.assert_allclose(evaluate_quadratic(data, lane), expected, rtol=1e-12)
    fitted = evaluate_quadratic(data, lane, kind="fitted", pair=1)
    inside = a**2 + (b / 2) ** 2 <= 0.75**2
    np.testing.assert_array_equal(np.isfinite(fitted), inside)
    assert 0 < inside.sum() < inside.size
    exact = 2.0 + 0.5 * a - b + 1.5 * (2 * a**2 + a * b + 3 * b**2)
    np.testing.assert_allclose(fitted[inside], exact[inside], rtol=1e-12)
    assert np.isnan(evaluate_quadratic(data, str(data.lane.values[0]), kind="fitted")).all()
    moved = evaluate_quadratic(data, lane, alpha=[0.0, 1.0], beta=[2.0])
    np.testing.assert_allclose(moved, [[2.0 - 2 + 12, 2.0 + 0.5 - 2 + 2 + 2 + 12]])
    flat = line()
    np.testing.assert_allclose(evaluate_quadratic(flat, "tail"), parabola(flat, "tail", flat.alpha.values))


def test_the_curves_of_a_line_are_the_numbers_and_the_fit_ends_at_its_radius():
    data = line()
    figure = plot_quadratic(data, lanes=["tail"], backend="plotly")
    (measured,), (autograd,), (fitted,) = (
        named(figure, name) for name in ("measured", "Hessian at the weights", "fitted within r")
    )
    np.testing.assert_allclose(measured.y, data.loss.sel(lane="tail", pair=0), rtol=1e-6)
    np.testing.assert_allclose(autograd.y, parabola(data, "tail", np.asarray(autograd.x)), rtol=1e-5)
    kept = np.isfinite(np.asarray(fitted.y, dtype=float))
    assert np.abs(np.asarray(fitted.x)[kept]).max() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(
        np.asarray(fitted.y)[kept], parabola(data, "tail", np.asarray(fitted.x)[kept], 1.5), rtol=1e-5
    )
    assert len({measured.line.dash, autograd.line.dash, fitted.line.dash}) == 3
    words = [a.text for a in figure.layout.annotations]
    assert any("4 ± 0.4" in text for text in words)
    assert any("6 ± 0.06, r = 0.5" in text for text in words)


def test_a_lane_without_a_radius_says_so():
    data = line()
    lane = str(data.lane.values[0])
    for surface in (data, plane()):
        figure = plot_quadratic(surface, lanes=[lane], backend="plotly")
        assert any("no radius qualifies" in a.text for a in figure.layout.annotations)


def test_contour_lines_of_a_model_lie_at_the_levels_of_the_colours():
    figure = plot_quadratic(plane(), lanes=["tail"])
    k = plane().lane.values.tolist().index("tail")
    levels = np.asarray(next(c for c in figure.axes[0].collections if getattr(c, "filled", 0)).levels)
    for axis, factor in zip(figure.axes, (1.0, 1.5)):
        (model,) = (curve for curve in axis.lines if curve.get_label() in ("quadratic model",))
        x, y = np.asarray(model.get_data(), dtype=float)
        kept = np.isfinite(x)
        a, b = x[kept], y[kept]
        values = k + 1.0 + 0.5 * a - b + factor * (2 * a**2 + a * b + 3 * b**2)
        # linear interpolation in cells of a 160th of the range: curvature 9 times a cell's square, over 8
        assert np.abs(values[:, None] - levels).min(1).max() < 2e-3
        assert kept.sum() > 50
        if factor == 1.5:
            assert (np.hypot(a, b) <= 0.5 + 0.02).all()


def test_the_rim_is_the_ellipse_of_the_fit():
    figure = plot_quadratic(plane(radius=0.4, aspect=0.5), lanes=["tail"], backend="plotly")
    (rim,) = named(figure, "rim of the fit")
    x, y = np.asarray(rim.x, dtype=float), np.asarray(rim.y, dtype=float)
    np.testing.assert_allclose(np.hypot(x, y / 0.5), 0.4, rtol=1e-5)


def test_many_lanes_stand_in_several_rows():
    figure = plot_quadratic(plane(), lanes="classes")
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (6, 4)
    labelled = [axis.get_title() for axis in figure.axes if axis.get_xlabel()]
    assert len(labelled) == 4 + 4 + 2
    assert all("fitted within r" in title for title in labelled)


def test_a_surface_that_was_only_fitted_shows_the_fit_alone():
    data = line().drop_vars(["centre", "slope", "curvature", "curvature_stderr"])
    figure = plot_quadratic(data, lanes=["tail"], backend="plotly")
    assert not named(figure, "Hessian at the weights")
    assert len(named(figure, "fitted within r")) == 1
    assert not any("dᵀHd" in a.text for a in figure.layout.annotations)


def test_holes_are_marked():
    data = synthetic.with_models(synthetic.surface("sgd"))
    figure = plot_quadratic(data, lanes=["tail"], backend="plotly")
    holes = named(figure, "not measured")
    assert [len(trace.x) for trace in holes] == [2, 2]


def test_what_cannot_be_drawn_is_refused():
    data = line()
    with pytest.raises(LandscapeError, match="expected quadratic models of 'loss' in the surface, got none"):
        plot_quadratic(synthetic.surface_line("sgd"))
    with pytest.raises(LandscapeError, match="unknown lane 'tial': did you mean 'tail'"):
        plot_quadratic(data, lanes=["tial"])
    with pytest.raises(LandscapeError, match="unknown direction pair '9'"):
        plot_quadratic(data, pair=9)
    with pytest.raises(LandscapeError, match="unknown quadratic model 'fited': did you mean 'fitted'"):
        evaluate_quadratic(data, "tail", kind="fited")
    with pytest.raises(LandscapeError, match="unknown lane 'tial'"):
        evaluate_quadratic(data, "tial")
    with pytest.raises(LandscapeError, match="expected the autograd quadratic of 'loss'"):
        evaluate_quadratic(data.drop_vars("curvature"), "tail")

"""Golden tests of the grid: which value stands at which coordinates, computed, saved, loaded and drawn (3.1, 3.3, 3.4, 3.7)."""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr
from golden_cases import E1, E2, X, Y, check_fails, evaluating, network, network_risk, plane, slanted, toy

from landscape import figures
from landscape.errors import LandscapeError
from landscape.figures import picture
from landscape.results import load_results, save_results
from landscape.surface import measure_surface


def through_a_file(dataset, folder):
    group = "surface" if "beta" in dataset.dims else "surface_line"
    return load_results(save_results({group: dataset}, folder / "r.nc"))[group].to_dataset()


def check_values(dataset, function):
    """Every cell holds the value of its coordinates to 1e-12, and the coordinates are those that were asked for."""
    assert dataset.alpha.values.tolist() in (X.tolist(), Y.tolist())
    assert dataset.beta.values.tolist() in (X.tolist(), Y.tolist())
    for alpha, beta in itertools.product(dataset.alpha.values, dataset.beta.values):
        value = float(dataset.loss.sel(pair=0, lane="all", alpha=alpha, beta=beta))
        assert value == pytest.approx(function(alpha, beta), abs=1e-12)


def drawn(dataset):
    """Return {kind of picture: [(alpha, beta, height)]} as both backends hold them."""
    flat = figures.plot_contours(dataset, backend="plotly").data
    trace = next(t for t in flat if isinstance(t, go.Contour))
    z = np.asarray(trace.customdata if trace.customdata is not None else trace.z)
    space = next(t for t in figures.plot_surface_3d(dataset, backend="plotly").data if isinstance(t, go.Surface))
    heights = np.asarray(space.z)
    faces = figures.plot_surface_3d(dataset).axes[0].collections[0]._faces
    assert z.shape == heights.shape == (dataset.sizes["beta"], dataset.sizes["alpha"])
    cells = list(itertools.product(range(z.shape[0]), range(z.shape[1])))
    return {
        "contours": [(trace.x[j], trace.y[i], z[i, j]) for i, j in cells],
        "space": [(space.x[j], space.y[i], heights[i, j]) for i, j in cells],
        "space, matplotlib": np.concatenate(faces).reshape(-1, 3).tolist(),
    }


def check_drawn(dataset, function):
    for kind, points in drawn(dataset).items():
        assert len(points) >= dataset.loss.size, kind
        for alpha, beta, height in points:
            assert height == pytest.approx(function(alpha, beta), rel=1e-6, abs=1e-6), kind


# ---- 3.1 ----------------------------------------------------------------------------------------------------------


def check_centred(values):
    """Every row and column of a bowl centred on the model has its smallest value in the middle."""
    middle = values.shape[0] // 2, values.shape[1] // 2
    assert (values.argmin(0) == middle[0]).all()
    assert (values.argmin(1) == middle[1]).all()


def test_3_1_odd_rows_shifted_by_a_cell(monkeypatch):
    x, y = np.linspace(-1, 1, 9), np.linspace(-1, 1, 5)

    def bowl():
        return plane(lambda a, b: a**2 + 3 * b**2, x, y).loss.values[0, ..., 0]

    check_centred(bowl())

    def shifted(evaluate, theta):
        row = np.abs(y - float(theta[1])).argmin()
        return evaluate(theta + (row % 2) * 0.25 * E1)

    evaluating(monkeypatch, shifted)
    check_fails(check_centred, bowl())
    check_fails(check_values, plane(), slanted)


def test_3_1_the_coordinates_of_a_line_begin_and_end_where_they_were_asked_to(monkeypatch):
    """A line between two points that stops a step short of the second, or begins a step after the first."""

    def ends():
        return measure_surface(toy(slanted), "all", directions=[E1], x=X).loss.values[0, [0, -1], 0].tolist()

    def check(found):
        assert found == [slanted(X[0], 0), slanted(X[-1], 0)]

    check(ends())
    evaluating(monkeypatch, lambda evaluate, theta: evaluate(theta * (1 - 1 / len(X))))
    check_fails(check, ends())


# ---- 3.3 ----------------------------------------------------------------------------------------------------------


def test_3_3_values_stay_at_their_coordinates_computed_saved_loaded_and_drawn(tmp_path):
    measured = plane()
    assert measured.sizes["alpha"] != measured.sizes["beta"]
    loaded = through_a_file(measured, tmp_path)
    xr.testing.assert_equal(loaded, measured)  # bit for bit
    for dataset in (measured, loaded):
        check_values(dataset, slanted)
        check_drawn(dataset, slanted)


def test_3_3_swapped_axes_in_the_computation(monkeypatch, tmp_path):
    check_values(plane(slanted, X, X), slanted)
    evaluating(monkeypatch, lambda evaluate, theta: evaluate(theta.flip(0)))
    check_fails(check_values, plane(slanted, X, X), slanted)
    check_fails(check_values, through_a_file(plane(), tmp_path), slanted)


def test_3_3_swapped_axes_in_the_file(tmp_path):
    square = plane(slanted, X, X)
    check_values(through_a_file(square, tmp_path), slanted)
    swapped = square.assign(loss=(square.loss.dims, square.loss.values.transpose(0, 2, 1, 3)))
    check_fails(check_values, through_a_file(swapped, tmp_path), slanted)


def test_3_3_swapped_axes_in_the_picture(monkeypatch):
    square = plane(slanted, X, X)
    check_drawn(square, slanted)
    for mark in (picture.Contours, picture.Relief):
        original = mark.__init__
        monkeypatch.setattr(mark, "__init__", lambda self, x, y, z, _o=original: _o(self, x, y, np.asarray(z).T))
        check_fails(check_drawn, square, slanted)
        monkeypatch.undo()


def test_3_3_a_displacement_that_is_not_the_stored_coordinate(monkeypatch):
    """Edges of 0.5 that are 0.488 in truth, and a grid whose centre is off the weights."""
    for planted in (lambda evaluate, theta: evaluate(0.976 * theta), lambda evaluate, theta: evaluate(theta + 0.0128)):
        with monkeypatch.context() as patch:
            check_values(plane(), slanted)
            evaluating(patch, planted)
            check_fails(check_values, plane(), slanted)


def clipped(a, b):
    return torch.where(a + b > 1, torch.nan, (a**2 + b**2).clamp(max=0.3))


def check_clipped(dataset):
    """A metric with a ceiling at 0.3 never exceeds it, and where it is not a number nothing is filled in."""
    b, a = np.meshgrid(dataset.beta, dataset.alpha, indexing="ij")
    expected = np.where(a + b > 1, np.nan, np.minimum(a**2 + b**2, 0.3))
    np.testing.assert_array_equal(dataset.loss.values[0, ..., 0], expected)


@pytest.mark.parametrize("planted", ["noise at the maximum", "holes filled with the mean"])
def test_3_3_values_that_the_tool_edits(tmp_path, monkeypatch, planted):
    axis = np.linspace(-1, 1, 5)
    measured = plane(clipped, axis, axis[:4])
    check_clipped(measured)
    check_clipped(through_a_file(measured, tmp_path))

    def edited(evaluate, theta):
        value = evaluate(theta)
        if planted == "noise at the maximum":
            return torch.where(value == 0.3, 0.3 + 1e-9, value)
        return value.nan_to_num(0.2)

    evaluating(monkeypatch, edited)
    check_fails(check_clipped, plane(clipped, axis, axis[:4]))


def test_3_3_a_hole_is_drawn_as_a_hole():
    axis = np.linspace(-1, 1, 5)
    measured = plane(clipped, axis, axis[:4])
    holes = np.isnan(measured.loss.values[0, ..., 0])
    assert holes.any()

    def check(dataset):
        for kind, points in drawn(dataset).items():
            heights = {(a, b): h for a, b, h in points}
            if kind != "space, matplotlib":
                assert [np.isnan(heights[a, b]) for b in axis[:4] for a in axis] == holes.ravel().tolist()
            assert all(h <= 0.3 + 1e-9 for h in heights.values() if not np.isnan(h))

    check(measured)
    check_fails(check, measured.fillna(0.2))


# ---- 3.4 ----------------------------------------------------------------------------------------------------------


def check_moves(result):
    assert float(result.loss.max()) > float(result.loss.min())


def test_3_4_constant_surface(monkeypatch):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = network_risk(model)
    for kind in ("line", "plane"):
        check_moves(measure_surface(risk, "all", kind=kind, x=[-1, 0, 1], y=[-1, 1] if kind == "plane" else None))
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(LandscapeError, match="zero: the surface would be constant"):  # the one way to ask for one
        measure_surface(risk, "all", directions=[torch.zeros_like(risk.theta)])
    for kind in ("line", "plane"):
        directions = [E1] if kind == "line" else [E1, E2]
        check_moves(measure_surface(toy(slanted), "all", kind=kind, directions=directions))
        with monkeypatch.context() as patch:  # a loop that never touches the model
            evaluating(patch, lambda evaluate, theta: evaluate(torch.zeros_like(theta)))
            check_fails(check_moves, measure_surface(toy(slanted), "all", kind=kind, directions=directions))


# ---- 3.7 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(X, Y), (Y, X)], ids=["wide", "high"])
def test_3_7_a_grid_that_is_not_square(monkeypatch, x, y):
    """Evaluations enumerated in one order and stored in the other: 20 % of the cells then hold their own value."""
    check_values(plane(slanted, x, y), slanted)
    check_drawn(plane(slanted, x, y), slanted)

    def scrambled(evaluate, theta):
        cell = np.abs(y - float(theta[1])).argmin() * len(x) + np.abs(x - float(theta[0])).argmin()
        return evaluate(torch.tensor([x[cell // len(y)], y[cell % len(y)]]))

    evaluating(monkeypatch, scrambled)
    check_fails(check_values, plane(slanted, x, y), slanted)


def test_3_7_the_picture_of_a_grid_that_is_not_square(monkeypatch):
    measured = plane()
    for mark in (picture.Contours, picture.Relief):
        original = mark.__init__
        monkeypatch.setattr(
            mark, "__init__", lambda self, x, y, z, _o=original: _o(self, x, y, np.asarray(z).T.reshape(np.shape(z)))
        )
        check_fails(check_drawn, measured, slanted)
        monkeypatch.undo()
    check_drawn(measured, slanted)


def check_zero_is_a_value(dataset):
    assert (dataset.loss == 0).all()
    assert dataset.done.dtype == bool  # kept apart from the values
    assert dataset.done.all()


def test_3_7_a_loss_of_zero_is_computed_not_missing(tmp_path):
    measured = plane(lambda a, b: 0 * a)
    for dataset in (measured, through_a_file(measured, tmp_path)):
        check_zero_is_a_value(dataset)
        trace = next(t for t in figures.plot_surface_3d(dataset, backend="plotly").data if isinstance(t, go.Surface))
        assert (np.asarray(trace.z) == 0).all()
    check_fails(check_zero_is_a_value, measured.assign(done=measured.loss.isel(lane=0) > 0))


def test_3_7_a_range_that_starts_at_zero():
    def check(dataset):
        assert dataset.loss.values[0, ..., 0].tolist() == [[0, 1], [20, 23]]

    check(plane(slanted, [0, 1], [0, 2]))
    check_fails(check, plane(slanted, [1e-9, 1], [1e-9, 2]))  # what users of such a tool write in its place

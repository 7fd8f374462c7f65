"""Surfaces pass to and from other tools with every value at its own coordinates, bit for bit."""

from __future__ import annotations

import base64
import csv
import itertools
import logging
import math
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import synthetic_results as synthetic
import xarray as xr

from landscape import figures
from landscape.errors import LandscapeError
from landscape.exchange import read_goldstein, surface_group, write_csv, write_landscaper, write_vts
from landscape.results import load_results, save_results, validate

X, Y = np.array([-1.0, -0.25, 0.5, 2.0, 2.5]), np.array([-0.5, 0.0, 3.0])
DIRECTIONS = "nets/resnet56/model_300.t7_weights_xignore=biasbn_xnorm=filter_yignore=biasbn_ynorm=filter.h5"


def slanted(a, b):
    return a**2 + 10 * b + a * b + b**3 + 20


def as_their_scheduler_fills(function, x, y):
    """Evaluation k goes to flat position k, x runs fastest; the array is declared len(x) by len(y)."""
    array = np.full((len(x), len(y)), -1.0)
    for k, (b, a) in enumerate(itertools.product(y, x)):
        array.flat[k] = function(a, b)
    return array


def h5(path, *, dir_file=DIRECTIONS, **arrays):
    with h5py.File(path, "w") as file:
        file["dir_file"] = dir_file
        for name, values in arrays.items():
            file[name] = values
    return path


def plane_file(path, x=X, y=Y, **more):
    return h5(path, xcoordinates=x, ycoordinates=y, train_loss=as_their_scheduler_fills(slanted, x, y), **more)


def check_values(dataset, function, variable="loss"):
    for alpha, beta in itertools.product(dataset.alpha.values, dataset.beta.values):
        assert float(dataset[variable].sel(pair=0, alpha=alpha, beta=beta, lane="all")) == function(alpha, beta)


def all_lane(x=X, y=Y, function=slanted):
    """A plane of ours, of one lane and one pair."""
    b, a = np.meshgrid(y, x, indexing="ij")
    loss = function(a, b)[None, ..., None]
    variables = {"loss": (("pair", "beta", "alpha", "lane"), loss)}
    data = xr.Dataset(variables, {"pair": [0], "beta": y, "alpha": x, "lane": ["all"]})
    return data.assign(done=(("pair", "beta", "alpha"), np.ones(loss.shape[:3], bool)))


# ---- reading loss-landscape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(X, Y), (Y, X), (X, X - 0.1)], ids=["wide", "high", "square"])
def test_every_value_of_a_plane_is_at_its_own_coordinates(tmp_path, x, y):
    accuracy = as_their_scheduler_fills(lambda a, b: 90 - a - 2 * b, x, y)
    dataset = read_goldstein(plane_file(tmp_path / "s.h5", x, y, train_acc=accuracy))
    assert surface_group(dataset) == "surface"
    assert dataset.loss.dims == ("pair", "beta", "alpha", "lane")
    check_values(dataset, slanted)
    check_values(dataset, lambda a, b: 1 - (90 - a - 2 * b) / 100, "error")
    assert bool(dataset.done.all())
    loaded = load_results(save_results({"surface": dataset}, tmp_path / "r.nc"))["surface"].to_dataset()
    check_values(validate("surface", loaded), slanted)
    assert loaded.attrs["normalization"] == "filter; biases and normalisation layers unmoved"
    assert loaded.attrs["batchnorm"] == "frozen"


def test_reading_a_plane_by_its_declared_shape_scrambles_it_when_it_is_not_square(tmp_path):
    """The trap itself: 12 of 15 cells then hold the value of other coordinates."""
    dataset = read_goldstein(plane_file(tmp_path / "s.h5"), order="shape")
    with pytest.raises(AssertionError):
        check_values(dataset, slanted)
    b, a = np.meshgrid(Y, X, indexing="ij")
    assert (dataset.loss.values[0, :, :, 0] == slanted(a, b)).sum() == 3


def test_a_copy_of_the_tool_that_stores_by_shape_is_read_on_request(tmp_path):
    a, b = np.meshgrid(X, Y, indexing="ij")
    path = h5(tmp_path / "s.h5", xcoordinates=X, ycoordinates=Y, train_loss=slanted(a, b))
    check_values(read_goldstein(path, order="shape"), slanted)
    path = h5(tmp_path / "t.h5", xcoordinates=X, ycoordinates=Y, train_loss=slanted(a, b).T)
    for order in ("scheduler", "shape"):  # rows are y already: nothing to choose
        check_values(read_goldstein(path, order=order), slanted)


def test_a_plane_that_is_not_square_is_answered_with_a_warning_that_tells_the_orders_apart(tmp_path, caplog):
    x, y = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)
    with caplog.at_level(logging.WARNING):
        dataset = read_goldstein(plane_file(tmp_path / "s.h5", x, y))
    (message,) = caplog.messages
    assert "not square" in message
    rough = [float(message.split(f"'{order}' ")[1].split()[0].strip(",")) for order in ("scheduler", "shape")]
    assert 10 * rough[0] < rough[1]
    assert "values by scheduler, 9 x by 7 y" in dataset.attrs["reading"]
    caplog.clear()
    read_goldstein(plane_file(tmp_path / "q.h5", X, X))
    assert caplog.messages == []


def test_a_line_has_both_splits(tmp_path):
    path = h5(
        tmp_path / "l.h5", dir_file="m_states_xnorm=layer.h5", xcoordinates=X, train_loss=X**2, train_acc=50 + X,
        test_loss=X**2 + 1, test_acc=40 - X,
    )  # fmt: skip
    dataset = read_goldstein(path)
    assert surface_group(dataset) == "surface_line"
    assert "beta" not in dataset.dims
    stored = {
        "loss": X**2,
        "error": 1 - (50 + X) / 100,
        "held_out_loss": X**2 + 1,
        "held_out_error": 1 - (40 - X) / 100,
    }
    for name, values in stored.items():
        np.testing.assert_array_equal(dataset[name][0, :, 0], values)
    assert dataset.attrs["normalization"].startswith("layer; biases and normalisation layers moved along themselves")
    assert "moved along the direction" in dataset.attrs["batchnorm"]


def test_minus_one_is_a_hole_and_nothing_else_is(tmp_path):
    loss = np.array([-1.0, 0.0, np.nan, np.inf, 1.5])
    dataset = read_goldstein(h5(tmp_path / "l.h5", xcoordinates=X, train_loss=loss, train_acc=[-1, 100, 10, 10, -1]))
    assert dataset.done.values[0].tolist() == [False, True, True, True, True]
    np.testing.assert_array_equal(dataset.loss[0, :, 0], [np.nan, 0.0, np.nan, np.inf, 1.5])
    np.testing.assert_array_equal(dataset.error[0, :, 0], [np.nan, 0.0, 0.9, 0.9, np.nan])
    with pytest.raises(AssertionError):  # "value <= 0 means not computed"
        np.testing.assert_array_equal(dataset.done[0], ~(loss <= 0))


def test_a_test_split_alone_is_the_loss_and_says_so(tmp_path):
    path = h5(tmp_path / "l.h5", xcoordinates=X, train_loss=-np.ones(5), test_loss=X**2)
    dataset = read_goldstein(path)
    np.testing.assert_array_equal(dataset.loss[0, :, 0], X**2)
    assert dataset.attrs["split"] == "test"
    assert "held_out_loss" not in dataset
    only_train = read_goldstein(h5(tmp_path / "m.h5", xcoordinates=X, train_loss=X**2, test_loss=-np.ones(5)))
    assert only_train.attrs["split"] == "train"
    assert "held_out_loss" not in only_train


def test_falling_coordinates_are_sorted_with_their_values(tmp_path):
    dataset = read_goldstein(plane_file(tmp_path / "s.h5", X[::-1], Y[::-1]))
    np.testing.assert_array_equal(dataset.alpha, X)
    np.testing.assert_array_equal(dataset.beta, Y)
    check_values(dataset, slanted)


def test_what_was_read_is_what_is_drawn(tmp_path):
    dataset = read_goldstein(plane_file(tmp_path / "s.h5"))
    trace = next(t for t in figures.plot_contours(dataset, backend="plotly").data if t.type == "contour")
    z = np.asarray(trace.customdata if trace.customdata is not None else trace.z)
    for i, j in itertools.product(range(3), range(5)):
        assert z[i, j] == pytest.approx(slanted(trace.x[j], trace.y[i]), rel=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_loss": X}, "expected a surface file with 'xcoordinates', got dir_file, train_loss"),
        ({"xdirection": X}, "got a file of directions"),
        ({"xcoordinates": X}, "at least one computed value of 'train_loss' or 'test_loss'"),
        ({"xcoordinates": X, "train_loss": -np.ones(5)}, "at least one computed value"),
        ({"xcoordinates": X, "train_loss": X[:3]}, r"'train_loss': expected 5 values.*shape \(3,\)"),
        ({"xcoordinates": X, "ycoordinates": Y, "train_loss": X}, r"expected shape \(5, 3\), got \(5,\)"),
        ({"xcoordinates": X, "train_loss": [b"a"] * 5}, "'train_loss': expected an array of numbers"),
        ({"xcoordinates": [0.0, 0.0], "train_loss": [1.0, 1.0]}, "'xcoordinates': expected finite coordinates, each once"),
        ({"xcoordinates": X[:0], "train_loss": X[:0]}, "'xcoordinates': expected finite"),
        ({"xcoordinates": X, "train_loss": X, "train_acc": 200 + X}, "'train_acc': expected percent, got 202.5"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_one_line(tmp_path, arrays, message):
    with pytest.raises(LandscapeError, match=message):
        read_goldstein(h5(tmp_path / "s.h5", **arrays))


def test_damaged_and_missing_files_and_unknown_orders_are_refused(tmp_path):
    path = plane_file(tmp_path / "s.h5")
    with pytest.raises(LandscapeError, match="unknown order of values 'shapes': did you mean 'shape'"):
        read_goldstein(path, order="shapes")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(LandscapeError, match="expected an HDF5 file, got none, or a damaged one"):
        read_goldstein(path)
    with pytest.raises(LandscapeError, match="no file at"):
        read_goldstein(tmp_path / "none.h5")


# ---- writing for Landscaper ---------------------------------------------------------------------------------------


def points_as_landscaper_pairs_them(path):
    """Its points are ``meshgrid(*coordinates)`` in flat order, its values the loss in flat order; no pickles."""
    with np.load(path, allow_pickle=False) as stored:
        loss, coordinates = stored["loss"], stored["coordinates"]
    points = zip(*(axis.flat for axis in np.meshgrid(*coordinates)), loss.flat, strict=True)
    return {(a, b): value for a, b, value in points}


def check_points(points, function, size):
    assert len(points) == size
    for (a, b), value in points.items():
        assert value == function(a, b)


def test_landscaper_finds_every_value_at_its_coordinates(tmp_path):
    plane = all_lane(X, X + 0.3)
    path = write_landscaper(plane, tmp_path / "p.npz")
    check_points(points_as_landscaper_pairs_them(path), slanted, 25)
    swapped = plane.assign(loss=(plane.loss.dims, plane.loss.values.transpose(0, 2, 1, 3)))
    with pytest.raises(AssertionError):  # rows alpha, columns beta, as Landscaper itself computes them
        check_points(points_as_landscaper_pairs_them(write_landscaper(swapped, path)), slanted, 25)


def test_landscaper_gets_the_lane_pair_and_variable_that_were_asked_for(tmp_path):
    plane = synthetic.surface("sgd", num_alpha=9, num_beta=9, holes=False)
    plane["error"] = plane.loss / 100
    path = write_landscaper(plane, tmp_path / "p.npz", lane="tail", pair=1, variable="error")
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["loss"], plane.error.sel(pair=1, lane="tail"))
        np.testing.assert_array_equal(stored["coordinates"], [plane.alpha, plane.beta])


def test_what_landscaper_cannot_hold_is_said(tmp_path, caplog):
    plane = synthetic.surface("sgd", num_alpha=11, num_beta=11)
    with caplog.at_level(logging.WARNING):
        path = write_landscaper(plane, tmp_path / "p.npz", lane="tail")
    assert "2 of 121 points are not finite" in caplog.text
    with np.load(path) as stored:
        assert np.argwhere(np.isnan(stored["loss"])).tolist() == [[1, 2], [7, 9]]  # what is not done, too
    with pytest.raises(LandscapeError, match="takes square grids; got 5 alphas and 3 betas"):
        write_landscaper(all_lane(), tmp_path / "p.npz")
    with pytest.raises(LandscapeError, match="reads planes, got a line"):
        write_landscaper(synthetic.surface_line("sgd"), tmp_path / "p.npz")
    with pytest.raises(LandscapeError, match=r"ends in \.npz, got '\.csv'"):
        write_landscaper(plane, tmp_path / "p.csv")
    for wrong, message in (
        ({"lane": "tial"}, "unknown lane 'tial': did you mean 'tail'"),
        ({"pair": 7}, "unknown direction pair '7'"),
        ({"variable": "los"}, "unknown variable of the surface 'los': did you mean 'loss'"),
    ):
        with pytest.raises(LandscapeError, match=message):
            write_landscaper(plane, tmp_path / "p.npz", **wrong)


# ---- writing for ParaView -----------------------------------------------------------------------------------------


def read_vts(path):
    """Return the extent and the arrays of a structured grid with inline base64 arrays."""
    root = ElementTree.parse(path).getroot()
    assert (root.get("type"), root.get("byte_order"), root.get("header_type")) == (
        "StructuredGrid", "LittleEndian", "UInt64",
    )  # fmt: skip
    arrays = {}
    for element in root.iter("DataArray"):
        raw = base64.b64decode(element.text)
        assert int.from_bytes(raw[:8], "little") == len(raw) - 8
        values = np.frombuffer(raw[8:], {"Float64": "<f8", "UInt8": "u1"}[element.get("type")])
        arrays[element.get("Name")] = values.reshape(-1, 3) if element.get("NumberOfComponents") == "3" else values
    return [int(number) for number in root[0].get("WholeExtent").split()], arrays


def test_a_structured_grid_holds_points_heights_and_every_lane(tmp_path):
    plane = synthetic.surface("sgd", holes=False)
    plane["error"] = plane.loss / 100
    extent, arrays = read_vts(write_vts(plane, tmp_path / "p.vts", lanes=["tail", "head"], pair=1))
    assert extent == [0, 12, 0, 8, 0, 0]
    assert list(arrays) == ["loss/tail", "loss/head", "error/tail", "error/head", "Points"]
    for k, (beta, alpha) in enumerate(itertools.product(plane.beta.values, plane.alpha.values)):  # alpha is fastest
        at = plane.sel(pair=1, alpha=alpha, beta=beta)
        assert arrays["Points"][k].tolist() == [alpha, beta, float(at.loss.sel(lane="tail"))]
        for lane in ("tail", "head"):
            assert arrays[f"loss/{lane}"][k] == float(at.loss.sel(lane=lane))
            assert arrays[f"error/{lane}"][k] == float(at.error.sel(lane=lane))


def test_holes_of_a_structured_grid_are_hidden_not_filled(tmp_path):
    plane = synthetic.surface("sgd")
    _, arrays = read_vts(write_vts(plane, tmp_path / "p.vts", lanes=["all"]))
    holes = [1 * 13 + 2, 7 * 13 + 9]
    assert np.flatnonzero(arrays["vtkGhostType"]).tolist() == holes
    assert set(arrays["vtkGhostType"]) == {0, 2}
    assert np.flatnonzero(np.isnan(arrays["loss/all"])).tolist() == holes
    assert (arrays["Points"][holes, 2] == np.nanmin(arrays["loss/all"])).all()
    assert np.isfinite(arrays["Points"]).all()


def test_a_line_is_a_curve_and_names_need_no_escape(tmp_path):
    line = synthetic.surface_line("sgd", class_names=('<plane> & "car"', *synthetic.CLASS_NAMES[1:]))
    extent, arrays = read_vts(write_vts(line, tmp_path / "l.vts"))
    assert extent == [0, 20, 0, 0, 0, 0]
    name = 'loss/<plane> & "car"'
    assert next(iter(arrays)) == name
    np.testing.assert_array_equal(arrays["Points"][:, 0], line.alpha)
    np.testing.assert_array_equal(arrays["Points"][:, 2], line.loss[0, :, 0])
    with pytest.raises(LandscapeError, match="expected a finite value, got none to draw"):
        write_vts(line.assign(loss=line.loss * np.nan), tmp_path / "l.vts")


# ---- writing tables -----------------------------------------------------------------------------------------------


def test_a_table_holds_every_number_bit_for_bit(tmp_path):
    plane = synthetic.surface("sgd").isel(lane=[0, 7, 12])
    plane.loss[0, 0, 0, 0], plane.loss[0, 0, 1, 0] = math.inf, 0.1 + 0.2
    plane["margin"] = plane.loss.astype(np.float32)
    plane["cosine"] = ("pair", [0.1, 0.2])
    plane["norms"] = (("pair", "axis"), np.ones((2, 2)))  # of no row: left out
    with open(write_csv(plane, tmp_path / "p.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 9 * 13 * 3
    assert set(rows[0]) == {
        "pair", "beta", "alpha", "lane", "loss", "done", "margin", "cosine", "num_examples", "lane_kind", "lane_group",
    }  # fmt: skip
    for row in rows:
        where = {"pair": int(row["pair"]), "lane": row["lane"]}
        where |= {axis: float(row[axis]) for axis in ("beta", "alpha")}
        at = plane.sel(where)
        for name in ("loss", "margin", "cosine"):
            np.testing.assert_array_equal(float(row[name]), float(at[name]))
        assert row["done"] == str(bool(at.done))
        assert int(row["num_examples"]) == int(at.num_examples)
    assert sum(row["loss"] == "nan" for row in rows) == 2 * 3
    assert rows[0]["loss"] == "inf"


def test_a_table_of_a_line_or_of_what_is_no_surface(tmp_path):
    line = synthetic.surface_line("sgd").sel(lane=["all"], pair=[2])
    with open(write_csv(line, tmp_path / "l.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == line.loss.values.ravel().tolist()
    assert "beta" not in rows[0]
    with pytest.raises(LandscapeError, match="expected a line or plane over alpha and lane, got dimensions lane"):
        write_csv(synthetic.accuracy("sgd"), tmp_path / "a.csv")
    (tmp_path / "file").touch()
    with pytest.raises(LandscapeError, match=r"cannot write .*choose a folder that you may write to"):
        write_csv(line, tmp_path / "file" / "l.csv")

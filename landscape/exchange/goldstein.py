"""Surface files of tomgoldstein/loss-landscape, read."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.exchange.selection import surface_group
from landscape.files import one_line
from landscape.hdf5 import require_readable
from landscape.results import validate

Order = Literal["scheduler", "shape"]

_LOG = logging.getLogger(__name__)
# What that tool stores where it has not evaluated. Anything else is a value, 0.0 too.
_NOT_COMPUTED = -1.0


def read_goldstein(path: str | Path, *, order: Order = "scheduler") -> xr.Dataset:
    r"""Read a surface file (``.h5``) of tomgoldstein/loss-landscape.

    Its evaluation k belongs to the coordinates :math:`(x_{k \bmod K_x}, y_{\lfloor k / K_x \rfloor})` and is stored at
    flat position k of an array of *declared* shape (K_x, K_y). Where K_x differs from K_y the declared shape is
    therefore not the order of the values: read by shape, cells hold values of other coordinates. Read by flat position
    every value is at its own coordinates, and nothing is lost.

    Parameters
    ----------
    path
        The file, with ``xcoordinates``, on planes ``ycoordinates``, and ``train_loss``, ``train_acc``, ``test_loss``,
        ``test_acc`` as far as they were computed (accuracies in percent).
    order
        ``"scheduler"``: by flat position, as the tool's own scheduler fills the array. ``"shape"``: element [i, j] is
        at (x[i], y[j]), as a changed copy of the tool may store it. An array of shape (K_y, K_x) is read as it stands.

    Returns
    -------
    xarray.Dataset
        A line (pair, alpha, lane) or plane (pair, beta, alpha, lane) of one pair and the lane ``all``: ``loss``, and
        as far as stored ``error`` (share of wrong answers), ``held_out_loss``, ``held_out_error``; ``done``, False
        where the loss is exactly -1, with NaN there. 0.0, NaN and inf are values. Exact copies of what the file
        holds, coordinates in increasing order; a plane that is one point wide is a line, with a warning. The file records
        no error bars, so there are none. Where only the test split was evaluated, ``loss`` is the test split's and the
        attribute ``split`` says so.

    Raises
    ------
    LandscapeError
        If it is no such file, is damaged, or holds nothing that was computed.

    Notes
    -----
    Source: Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, and the released code
    (``plot_surface.py``, ``scheduler.py``). A plane that is not square is answered with a warning that compares how
    rough the surface is under both orders. The tool itself takes every value <= 0 for not computed.
    """
    if order not in get_args(Order):
        raise unknown_name("order of values", order, get_args(Order))
    stored = _stored_arrays(Path(path))
    x, y = (_coordinates_of(stored, name, path) for name in ("xcoordinates", "ycoordinates"))
    if x is None:
        what = "a file of directions" if "xdirection" in stored else ", ".join(sorted(stored)) or "nothing"
        raise LandscapeError(
            f"{path}: expected a surface file with 'xcoordinates', got {what}: give the file that plot_surface.py wrote"
        )
    grids = _grids(stored, x, y, order=order, path=path)
    split = next((name for name in ("train", "test") if f"{name}_loss" in grids), None)
    if split is None:
        raise LandscapeError(
            f"{path}: expected at least one computed value of 'train_loss' or 'test_loss', got none: run the tool again"
        )
    reading = "" if y is None else _reading(stored[f"{split}_loss"], x, y, order, path)
    dataset = _goldstein_dataset(grids, split, x, y)
    dataset.attrs |= {**_goldstein_attributes(stored, split), "source": Path(path).name, "reading": reading}
    dataset = _narrowed(dataset)
    return validate(surface_group(dataset), dataset)


def _stored_arrays(path: Path) -> dict[str, Any]:
    import h5py

    if not path.is_file():
        raise LandscapeError(f"no file at {path}: expected a surface file (.h5)")
    with one_line(f"{path}: expected an HDF5 file, got none, or a damaged one"):
        require_readable(path, "arrays")
        with h5py.File(path, "r") as file:
            return {name: item[()] if isinstance(item, h5py.Dataset) else None for name, item in file.items()}


def _numbers(value: Any, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise LandscapeError(f"{what}: expected an array of numbers, got {array.dtype}: not a file of that tool")
    return array.astype(np.float64)


def _coordinates_of(stored: dict[str, Any], name: str, path: str | Path) -> np.ndarray | None:
    if name not in stored:
        return None
    values = _numbers(stored[name], f"{path}, '{name}'")
    if values.ndim != 1 or not np.isfinite(values).all() or len(np.unique(values)) < max(values.size, 1):
        raise LandscapeError(f"{path}, '{name}': expected finite coordinates, each once, got {values.tolist()}")
    return values


def _grid_of(value: Any, x: np.ndarray, y: np.ndarray | None, *, order: Order, what: str) -> np.ndarray:
    """Return values (beta, alpha), or (alpha,) on a line, in the order of the file's coordinates."""
    values = _numbers(value, what)
    if y is None:
        if values.shape != x.shape:
            raise LandscapeError(f"{what}: expected {len(x)} values, one for each coordinate, got shape {values.shape}")
        return values
    if values.shape not in ((len(x), len(y)), (len(y), len(x))):
        raise LandscapeError(f"{what}: expected shape {(len(x), len(y))}, got {values.shape}: the file is damaged")
    if values.shape != (len(x), len(y)):
        return values
    return values.T if order == "shape" else values.reshape(len(y), len(x))


def _grids(
    stored: dict[str, Any], x: np.ndarray, y: np.ndarray | None, *, order: Order, path: str | Path
) -> dict[str, np.ndarray]:
    """Return the values that were computed at least somewhere, by their names in the file."""
    grids: dict[str, np.ndarray] = {}
    for name in ("train_loss", "train_acc", "test_loss", "test_acc"):
        if name in stored:
            grid = _grid_of(stored[name], x, y, order=order, what=f"{path}, '{name}'")
            if (grid != _NOT_COMPUTED).any():
                grids[name] = grid
    for name in ("train_acc", "test_acc"):
        if name in grids and (grids[name] > 100.0).any():
            raise LandscapeError(
                f"{path}, '{name}': expected percent, got {np.nanmax(grids[name])}: not a file of that tool"
            )
    return grids


def _reading(value: Any, x: np.ndarray, y: np.ndarray, order: Order, path: str | Path) -> str:
    """Return how the order of a plane's values was resolved; warn where it matters to the shape."""
    if len(x) == len(y):
        return f"values by {order}"
    shape = np.shape(value)
    if shape == (len(y), len(x)):
        text = f"values of shape {shape}: rows are y, columns x, as they stand"
    else:
        rough = {o: _roughness(_grid_of(value, x, y, order=o, what="")) for o in get_args(Order)}
        compared = ", ".join(f"'{name}' {number:.3g}" for name, number in rough.items())
        text = (
            f"values by {order}, {len(x)} x by {len(y)} y; "
            f"roughness by either: {compared} (the true order is usually the smoother one)"
        )
    _LOG.warning(
        "%s: the grid is not square, and its files do not say in which order the values are; read: %s", path, text
    )
    return text


def _roughness(grid: np.ndarray) -> float:
    """Return the mean squared second difference in both directions over the variance: small for a smooth surface."""
    grid = np.where(grid == _NOT_COMPUTED, np.nan, grid)
    grid = np.where(np.isfinite(grid), grid, np.nan)
    squares = [np.diff(grid, 2, axis=axis).ravel() ** 2 for axis in (0, 1) if grid.shape[axis] > 2]
    found = np.concatenate(squares) if squares else np.empty(0)
    found = found[np.isfinite(found)]
    spread = float(np.nanvar(grid)) if np.isfinite(grid).any() else 0.0
    return float(found.mean()) / spread if found.size and spread > 0 else float("nan")


def _goldstein_dataset(grids: dict[str, np.ndarray], split: str, x: np.ndarray, y: np.ndarray | None) -> xr.Dataset:
    dims = ("alpha",) if y is None else ("beta", "alpha")
    coordinates: dict[str, Any] = {"alpha": x} if y is None else {"beta": y, "alpha": x}
    splits = [("", split)] + ([("held_out_", "test")] if split == "train" else [])
    variables: dict[str, Any] = {}
    for prefix, name in splits:
        for key, stored_name in (("loss", f"{name}_loss"), ("error", f"{name}_acc")):
            if stored_name in grids:
                values = np.where(grids[stored_name] == _NOT_COMPUTED, np.nan, grids[stored_name])
                variables[prefix + key] = (dims, values if key == "loss" else 1.0 - values / 100.0)
    dataset = xr.Dataset(variables, coordinates).expand_dims(pair=[0]).expand_dims(lane=["all"], axis=-1)
    done = grids[f"{split}_loss"] != _NOT_COMPUTED
    dataset["done"] = (("pair", *dims), done[None])
    dataset = dataset.assign_coords(lane_kind=("lane", ["all"]), lane_group=("lane", [""]))
    return dataset.sortby(list(dims))


def _narrowed(dataset: xr.Dataset) -> xr.Dataset:
    """Return a plane that is one point wide as the line that it is."""
    wide = [name for name in ("alpha", "beta") if dataset.sizes.get(name, 1) > 1]
    if "beta" not in dataset.dims or len(wide) > 1:
        return dataset
    kept = wide[0] if wide else "alpha"
    other = "beta" if kept == "alpha" else "alpha"
    place = f"{dataset.attrs[f'{other}_label']} = {float(dataset[other][0]):g}"
    _LOG.warning("%s: the plane is one point wide, read as the line at %s", dataset.attrs["source"], place)
    attributes = {**dataset.attrs, "kind": "line", "alpha_label": dataset.attrs[f"{kept}_label"], "line_at": place}
    attributes.pop("beta_label")
    line = dataset.isel({other: 0}, drop=True).rename({kept: "alpha"} if kept != "alpha" else {})
    line.attrs = attributes
    return line


def _goldstein_attributes(stored: dict[str, Any], split: str) -> dict[str, Any]:
    """Return what the file says about itself; it records directions only through the name of their file."""
    name = stored.get("dir_file", b"")
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    settings = dict(re.findall(r"_([xy](?:norm|ignore))=([a-z]+)", name))
    norm, ignore = settings.get("xnorm"), settings.get("xignore")
    normalization = "not recorded"
    if norm is not None:
        still = "unmoved" if ignore == "biasbn" else "moved along themselves (xignore was not set)"
        normalization = f"{norm}; biases and normalisation layers {still}"
    kinds = {"_weights": "frozen", "_states": "statistics moved along the direction, as weights"}
    return {
        "kind": "plane" if "ycoordinates" in stored else "line",
        "tool": "tomgoldstein/loss-landscape",
        "direction_file": name,
        "normalization": normalization,
        "batchnorm": next((text for part, text in kinds.items() if part in name), "not recorded"),
        "objective": "cross-entropy or mean squared error (not recorded)",
        "split": split,
        "units": "mean loss per example; coordinates in units of the directions",
        "exactness": "the stored values; no error bars are recorded",
        "alpha_label": "x (first direction)",
        "beta_label": "y (second direction)",
    }

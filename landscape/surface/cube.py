"""The losses of single examples on a grid: choose among them, group them anew, find the point that others refer to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.risk import GroupAverage, LaneChoice, Lanes
from landscape.risk.lanes import choose_lanes

Reference = Literal["centre"] | Mapping[str, float] | xr.DataArray
GRID = ("pair", "beta", "alpha")
# A coordinate this close (in steps of the grid) to the one asked for is that one.
SAME_COORDINATE = 1e-6
# Points whose examples are in float64 at a time: bounds the memory, not the result.
POINTS_AT_ONCE = 32


@dataclass(frozen=True)
class Strata:
    """The examples of a cube by class, the strata that resampling stays within.

    Attributes
    ----------
    class_names
        The C classes, also those without examples here.
    rows
        Per class the positions (n_c,) of its examples along ``example``.
    groups
        Class indices of each group.
    """

    class_names: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    groups: dict[str, tuple[int, ...]]

    @property
    def counts(self) -> np.ndarray:
        """(C,) examples per class."""
        return np.array([len(rows) for rows in self.rows])


def _decoded(cube: xr.Dataset, name: str, default: Any) -> Any:
    value = cube.attrs.get(name, default)
    return json.loads(value) if isinstance(value, str) else value


def require_cube(cube: xr.Dataset, *, one_split: bool = True) -> None:
    """Raise LandscapeError unless ``cube`` holds the losses of single examples, by default of one split only."""
    if "loss" not in cube or "example" not in cube["loss"].dims or "alpha" not in cube["loss"].dims:
        found = tuple(cube["loss"].dims) if "loss" in cube else "no 'loss'"
        raise LandscapeError(
            f"expected a cube with 'loss' (..., alpha, example), got {found}: measure the surface with its examples kept"
        )
    if "example_class" not in cube:
        raise LandscapeError("the cube has no 'example_class': measure the surface anew with its examples kept")
    if one_split and len(splits_of(cube)) > 1:
        raise LandscapeError(
            f"the cube holds the splits {', '.join(splits_of(cube))}: choose one with examples_of(cube, split=...)"
        )


def kept_examples(surface: xr.Dataset, *, policy: Literal["", "recalibrated"] = "") -> xr.Dataset:
    """Return the cube of a surface that was measured with its examples kept: what every function below reads.

    Parameters
    ----------
    surface
        From ``measure_surface(..., keep_examples=True)``.
    policy
        ``"recalibrated"``: the losses under recalibrated statistics, where both policies were measured.

    Returns
    -------
    xarray.Dataset
        ``loss`` (pair, beta, alpha, example) float32, both splits along ``example``, with the coordinates
        ``example_class``, ``example_row``, ``example_split`` and ``example_centre_loss``.

    Raises
    ------
    LandscapeError
        If the examples were not kept.
    """
    prefix = f"{policy}_" if policy else ""
    if f"{prefix}example_loss" not in surface:
        raise LandscapeError(
            f"the surface has no '{prefix}example_loss': measure it anew with keep_examples=True (--keep-examples)"
        )
    parts = []
    for side in ("", "held_out_"):
        if f"{prefix}{side}example_loss" not in surface:
            continue
        names = {name: f"{side}example_{name}" for name in ("class", "row", "split")}
        names["centre_loss"] = f"{prefix}{side}example_centre_loss"
        losses = surface[f"{prefix}{side}example_loss"].rename({f"{side}example": "example"})
        kept = {name: c for name, c in losses.coords.items() if "example" not in c.dims}
        part = xr.DataArray(losses.values, dims=losses.dims, coords=kept)
        found = {f"example_{name}": ("example", surface[stored].values) for name, stored in names.items()}
        parts.append(part.assign_coords(found))
    return xr.Dataset({"loss": xr.concat(parts, "example") if len(parts) > 1 else parts[0]}, attrs=surface.attrs)


def splits_of(cube: xr.Dataset) -> tuple[str, ...]:
    """Return the splits in a cube, the one that the measurement names as its own first."""
    if "example_split" not in cube:
        return (str(cube.attrs.get("split", "train")),)
    found = list(dict.fromkeys(str(name) for name in cube["example_split"].values))
    return tuple(sorted(found, key=lambda name: name != cube.attrs.get("split", found[0])))


def strata_of(cube: xr.Dataset, groups: Mapping[str, Sequence[int]] | None = None) -> Strata:
    """Return the classes of a cube's examples; ``groups`` replaces the recorded ones."""
    classes = np.asarray(cube["example_class"].values)
    names = _decoded(cube, "class_names", None)
    if names is None:
        names = [str(c) for c in range(int(classes.max(initial=-1)) + 1)]
    if classes.size == 0 or classes.min() < 0 or classes.max() >= len(names):
        raise LandscapeError(f"example_class: expected indices of {len(names)} classes, got {classes!r:.60}")
    members = groups if groups is not None else _decoded(cube, "groups", {})
    return Strata(
        tuple(str(name) for name in names),
        tuple(np.flatnonzero(classes == c) for c in range(len(names))),
        {str(name): tuple(int(c) for c in row) for name, row in members.items()},
    )


def cube_lanes(
    cube: xr.Dataset,
    lanes: LaneChoice | Lanes | None = None,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    group_average: GroupAverage = "examples",
) -> Lanes:
    """Return the lanes that a choice means for the examples of a cube, as :func:`landscape.risk.lanes.choose_lanes`.

    None means every class that has examples here, every group and the whole: what is left of a cube after a selection
    need not hold every class.
    """
    strata = strata_of(cube, groups)
    if isinstance(lanes, Lanes):
        if lanes.weights.shape[1] != len(strata.class_names):
            raise LandscapeError(
                f"lanes over {lanes.weights.shape[1]} classes do not fit a cube of {len(strata.class_names)} classes"
            )
        return lanes
    if lanes is None:
        present = [name for name, rows in zip(strata.class_names, strata.rows) if len(rows)]
        lanes = [*present, "groups", "all"] if strata.groups else [*present, "all"]
    return choose_lanes(
        lanes,
        class_names=strata.class_names,
        class_counts=torch.as_tensor(strata.counts),
        groups=strata.groups,
        group_average=group_average,
    )


def examples_of(
    cube: xr.Dataset,
    *,
    split: str | None = None,
    mask: np.ndarray | xr.DataArray | Sequence[bool] | None = None,
    variable: str = "loss",
) -> xr.Dataset:
    """Return the cube of some examples: a split, those the network gets right, any other subset.

    Parameters
    ----------
    cube
        ``loss`` (pair, beta, alpha, example) with the coordinates ``example_class`` and ``example_split``.
    split
        ``"train"`` or ``"test"``; None keeps every split.
    mask
        (N,) booleans along ``example``, for all splits of ``cube``.
    variable
        Which values of the cube take the place of ``loss``, such as ``own_loss`` or ``recalibrated_loss``.

    Raises
    ------
    LandscapeError
        For a split, a variable or a mask that does not fit the cube, and where no example is left.

    Examples
    --------
    >>> cube = xr.Dataset(
    ...     {"loss": (("alpha", "example"), np.array([[0.0, 2.0], [1.0, 5.0]], dtype=np.float32))},
    ...     coords={"alpha": [0.0, 1.0], "example_class": ("example", [0, 1])},
    ... )
    >>> examples_of(cube, mask=[False, True]).loss.values.tolist()
    [[2.0], [5.0]]
    """
    require_cube(cube, one_split=False)
    if variable not in cube or "example" not in cube[variable].dims:
        known = [str(name) for name, values in cube.data_vars.items() if "example" in values.dims]
        raise unknown_name("variable of the cube", variable, known)
    kept = np.ones(cube.sizes["example"], dtype=bool)
    if split is not None:
        if split not in splits_of(cube):
            raise unknown_name("split of the cube", split, splits_of(cube))
        if "example_split" in cube:
            kept &= cube["example_split"].values == split
    if mask is not None:
        given = np.asarray(mask)
        if given.dtype != bool or given.shape != kept.shape:
            raise LandscapeError(
                f"mask: expected {len(kept)} booleans, one per example, got {given.dtype} of shape {given.shape}"
            )
        kept = kept & given
    if not kept.any():
        raise LandscapeError("no example of the cube is left: choose another split or mask")
    chosen = cube if kept.all() else cube.isel(example=np.flatnonzero(kept))
    return chosen if variable == "loss" else chosen.assign(loss=chosen[variable])


def average_directions(cube: xr.Dataset) -> xr.Dataset:
    """Return the cube of the examples' losses averaged over the direction pairs, with one pair left.

    A bootstrap of it gives the error, over images, of the mean over the directions that were drawn; errors of single
    pairs share their images and cannot be combined to it.
    """
    require_cube(cube, one_split=False)
    if "pair" not in cube["loss"].dims:
        return cube
    losses = {"loss": cube["loss"].mean("pair", dtype=np.float64).expand_dims("pair")}
    averaged = xr.Dataset(losses, attrs={**cube.attrs, "averaged_pairs": cube.sizes["pair"]})
    kept = {name: c for name, c in cube.coords.items() if "pair" not in c.dims}
    return averaged.assign_coords(kept).assign_coords(pair=[0]).transpose("pair", ..., "example")


def grid_dims(values: xr.DataArray) -> tuple[str, ...]:
    """Return the dimensions of the grid that ``values`` has, in their order."""
    return tuple(dim for dim in GRID if dim in values.dims)


def points_of(values: xr.DataArray) -> np.ndarray:
    """Return the values of single examples as (P, N), the points of the grid in order."""
    ordered = values.transpose(*grid_dims(values), "example")
    return np.asarray(ordered.values).reshape(-1, ordered.sizes["example"])


def reference_of(values: xr.DataArray, reference: Reference = "centre") -> xr.DataArray | None:
    """Return the values that each point's increase counts from; None where the grid does not hold that point.

    Parameters
    ----------
    values
        Values (pair, beta, alpha, ...) of examples or lanes.
    reference
        ``"centre"``: the weights, alpha = beta = 0 of the same pair; a mapping such as ``{"alpha": 1.0}`` (what is left
        out is 0); or the values themselves (..., perhaps with ``pair``), for a grid that does not hold the point.

    Returns
    -------
    xarray.DataArray or None
        (pair, ...), or (...) where ``values`` or the given reference has no ``pair``.
    """
    if isinstance(reference, xr.DataArray):
        wanted = {str(dim): values.sizes[dim] for dim in values.dims if dim not in ("beta", "alpha")}
        got = {str(dim): size for dim, size in reference.sizes.items()}
        if got not in (wanted, {dim: size for dim, size in wanted.items() if dim != "pair"}):
            raise LandscapeError(f"reference: expected values of size {wanted}, got {got}")
        return reference
    if isinstance(reference, str) and reference != "centre":
        raise unknown_name("reference", reference, ["centre"])
    coordinates = {} if isinstance(reference, str) else dict(reference)
    axes = [dim for dim in grid_dims(values) if dim != "pair"]
    if not set(coordinates) <= set(axes):
        raise LandscapeError(f"reference: expected coordinates of {' and '.join(axes)}, got {coordinates}")
    index = {}
    for dim in axes:
        grid, target = np.asarray(values[dim].values, dtype=np.float64), coordinates.get(dim, 0.0)
        step = float(np.diff(grid).min()) if len(grid) > 1 else 1.0
        nearest = int(np.abs(grid - target).argmin())
        if not abs(grid[nearest] - target) <= SAME_COORDINATE * step:
            recorded = values.coords.get("example_centre_loss") if isinstance(reference, str) else None
            return None if recorded is None else recorded.reset_coords(drop=True)
        index[dim] = nearest
    return values.isel(index, drop=True)


def require_reference(values: xr.DataArray, reference: Reference = "centre") -> xr.DataArray:
    """Return :func:`reference_of`, or raise LandscapeError where the grid does not hold that point."""
    found = reference_of(values, reference)
    if found is None:
        point = "the weights (alpha = 0)" if isinstance(reference, str) else f"the point {dict(reference)}"
        raise LandscapeError(
            f"the grid does not hold {point}: choose a reference on the grid, or give the losses there as a DataArray"
        )
    return found

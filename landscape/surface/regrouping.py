"""From the losses of single examples to lanes: the surface that a measurement with these lanes would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.risk import GroupAverage, LaneChoice, Lanes
from landscape.surface.cube import (
    POINTS_AT_ONCE,
    Reference,
    cube_lanes,
    examples_of,
    grid_dims,
    points_of,
    reference_of,
    require_cube,
    splits_of,
    strata_of,
)
from landscape.surface.resampling import Read, as_dataset, increases

RECALIBRATED, HELD_OUT = "recalibrated_", "held_out_"


def regroup(
    cube: xr.Dataset,
    lanes: LaneChoice | Lanes | None = None,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    group_average: GroupAverage = "examples",
    reference: Reference = "centre",
) -> xr.Dataset:
    r"""Return the surface of other lanes from the losses of single examples; nothing is computed anew.

    A lane's value is :math:`\sum_c w_c \frac{1}{n_c} \sum_{i \in c} \ell_i`, summed in float64, as a measurement with
    these lanes forms it.

    Parameters
    ----------
    cube
        ``loss`` (pair, beta, alpha, example), and any other values of single examples (``error``, ``own_loss``, ...).
        Choose examples first (:func:`landscape.surface.cube.examples_of`) for those the network gets right, or a class
        part.
    lanes
        As for ``measure_surface``.
    groups
        Class indices of each group, in the place of the recorded ones.
    group_average
        ``"examples"`` pools the examples of a group, ``"classes"`` weighs its classes equally.
    reference
        The point that ``increase_stderr`` belongs to, as for :func:`landscape.surface.resampling.paired_bootstrap`.

    Returns
    -------
    xarray.Dataset
        The variables of a surface over (pair, beta, alpha, lane): ``loss`` and what else the cube holds;
        ``increase_stderr`` where the grid holds the reference, exact over the images, NaN where a class of the lane has
        one image; ``done``, ``num_examples``. A second split comes under the prefix ``held_out_``, in lanes of its own
        examples. Exact but for the float32 in which cubes are kept: 6e-8 of a loss where it was computed in float64,
        nothing where in float32.

    Raises
    ------
    LandscapeError
        For what is not a cube, an unknown lane, or one without examples.

    Examples
    --------
    >>> cube = xr.Dataset(
    ...     {"loss": (("alpha", "example"), np.array([[0.0, 2.0, 4.0], [1.0, 3.0, 8.0]], dtype=np.float32))},
    ...     coords={"alpha": [0.0, 1.0], "example_class": ("example", [0, 1, 1])},
    ... )
    >>> regroup(cube, "0,both", groups={"both": [0, 1]}, group_average="classes").loss.values.tolist()
    [[0.0, 1.5], [1.0, 3.25]]
    """
    require_cube(cube, one_split=False)
    splits = splits_of(cube)
    if len(splits) > 2:
        raise LandscapeError(f"the cube holds the splits {', '.join(splits)}: choose two of them, or one")
    if len(splits) > 1 and isinstance(reference, xr.DataArray):
        raise LandscapeError("reference: expected losses of one split; choose it with examples_of(cube, split=...)")
    out: dict[str, xr.DataArray] = {}
    for number, split in enumerate(splits):
        part = examples_of(cube, split=split) if len(splits) > 1 else cube
        chosen = cube_lanes(part, lanes, groups=groups, group_average=group_average)
        surface = _surface(part, chosen, reference)
        if number == 0:
            names = chosen.names
        elif chosen.names != names:
            raise LandscapeError(f"split '{split}' lacks examples of some lanes: choose lanes that both splits have")
        out.update({_named(str(name), number > 0): values for name, values in surface.items()})
    result = xr.Dataset(out)
    result.attrs = {**cube.attrs, "group_average": group_average}
    result["done"] = (
        cube["done"] if "done" in cube else xr.ones_like(result["loss"].isel(lane=0, drop=True), dtype=bool)
    )
    return result.drop_vars([name for name in result.coords if name not in (*result.dims, "lane_kind", "lane_group")])


def _named(name: str, is_held_out: bool) -> str:
    if not is_held_out:
        return name
    head = RECALIBRATED if name.startswith(RECALIBRATED) else ""
    return f"{head}{HELD_OUT}{name.removeprefix(head)}"


def _surface(cube: xr.Dataset, lanes: Lanes, reference: Reference) -> xr.Dataset:
    strata, weights = strata_of(cube), lanes.weights.numpy()
    out: dict[str, np.ndarray] = {}
    for name, values in cube.data_vars.items():
        if "example" not in values.dims or "alpha" not in values.dims:
            continue
        out[str(name)] = lane_means_of(points_of(values), strata.rows, weights)
        if name in ("loss", f"{RECALIBRATED}loss"):
            given = isinstance(reference, xr.DataArray) and name != "loss"  # losses under another BatchNorm policy
            centre = None if given else reference_of(values, reference)
            if centre is not None:
                num_points = len(out[str(name)])
                errors = lane_errors(increases(values, centre), num_points, strata.rows, weights)
                out[str(name).replace("loss", "increase_stderr")] = errors
    surface = as_dataset(out, cube["loss"], lanes)
    surface["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    return surface.transpose(*grid_dims(cube["loss"]), "lane")


def lane_means_of(values: np.ndarray, rows: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return (P, L): weighted means over classes of values (P, N); a class without weight (perhaps NaN) stays out."""
    out = np.zeros((len(values), len(weights)))
    for c, members in enumerate(rows):
        used = np.flatnonzero(weights[:, c])
        if len(used) and len(members):
            with np.errstate(invalid="ignore"):
                out[:, used] += weights[used, c] * values[:, members].mean(1, dtype=np.float64)[:, None]
    return out


def lane_errors(read: Read, num_points: int, rows: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    r"""Return (P, L): :math:`(\sum_c w_c^2 s_c^2 / n_c)^{1/2}` of values (P, N); NaN with a class of one image."""
    variance = np.zeros((num_points, len(weights)))
    for start in range(0, num_points, POINTS_AT_ONCE):
        points = slice(start, min(start + POINTS_AT_ONCE, num_points))
        with np.errstate(invalid="ignore", over="ignore"):
            values = read(points)
            for c, members in enumerate(rows):
                used = np.flatnonzero(weights[:, c])
                if len(used) and len(members):
                    spread = values[:, members].var(1, ddof=1) if len(members) > 1 else np.full(len(values), np.nan)
                    variance[points, used] += weights[used, c] ** 2 * spread[:, None] / len(members)
    return np.sqrt(variance)

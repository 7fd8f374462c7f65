"""The difference of two checkpoints' surfaces, with intervals over the images that both were measured on."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.risk import LaneChoice, Lanes
from landscape.surface.cube import Reference, cube_lanes, grid_dims, points_of, reference_of, require_cube
from landscape.surface.pooling import require_same_grid, with_increase
from landscape.surface.resampling import (
    Read,
    as_dataset,
    describe,
    image_intervals,
    increases,
    lane_notes,
    named_intervals,
    resampler_of,
)

# What two measurements must have in common, as far as they recorded it.
COMPARED = ("kind", "normalization", "batchnorm", "alpha_label", "beta_label", "dataset", "split", "max_per_class")
NAMES = ("loss_difference", "increase_difference")


def difference(
    a: xr.Dataset,
    b: xr.Dataset,
    *,
    lanes: LaneChoice | Lanes | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    reference: Reference = "centre",
) -> xr.Dataset:
    r"""Return the surface of checkpoint ``a`` minus that of ``b``, point by point, pair by pair.

    With cubes, image i has :math:`\ell^a_i(p) - \ell^b_i(p)` and
    :math:`[\ell^a_i(p) - \ell^a_i(p_0)] - [\ell^b_i(p) - \ell^b_i(p_0)]`: the same image, the same point in units of each
    checkpoint's own directions. Their lane means have the studentised intervals of
    :func:`landscape.surface.resampling.paired_bootstrap`, with the same resamples for both.

    Parameters
    ----------
    a, b
        Two cubes (pair, beta, alpha, example) of one split, or two surfaces (pair, beta, alpha, lane).
    lanes, num_resamples, level, seed, reference
        As for ``paired_bootstrap``; for cubes only. A reference off the grid leaves ``increase_difference`` out.

    Returns
    -------
    xarray.Dataset
        ``loss_difference`` and ``increase_difference`` (pair, beta, alpha, lane), nats, each with ``_low``, ``_high`` and
        ``_stderr``; ``num_examples`` and ``interval_note`` (lane). Over shared pairs go on with
        :func:`landscape.surface.pooling.over_directions`; for the interval over images of the mean over pairs give
        cubes that went through :func:`landscape.surface.cube.average_directions`.

        Surfaces without examples have differences, too, but no interval (NaN): what two checkpoints do to one image is
        not in them. ``increase_difference_stderr_bound`` is the sum of both standard errors, which that of the difference
        cannot exceed however the images go together; for images seen by both it is far too wide.

    Raises
    ------
    LandscapeError
        Naming what differs: the images, the grid, the pairs' seed, the normalisation, the BatchNorm policy, or what else
        the two recorded.

    Examples
    --------
    >>> cube = xr.Dataset(
    ...     {"loss": (("alpha", "example"), np.array([[1.0, 2.0, 4.0], [1.5, 2.5, 4.5]], dtype=np.float32))},
    ...     coords={"alpha": [0.0, 1.0], "example_class": ("example", [0, 0, 0]), "example_row": ("example", [0, 1, 2])},
    ... )
    >>> found = difference(cube.assign(loss=2 * cube.loss), cube, lanes="all").sel(alpha=1.0, lane="all")
    >>> found.increase_difference.item(), found.increase_difference_stderr.item()
    (0.5, 0.0)
    """
    kinds = ["example" in s["loss"].dims for s in (a, b) if "loss" in s]
    if len(kinds) < 2 or kinds[0] != kinds[1]:
        raise LandscapeError("difference: expected two cubes of examples or two surfaces with 'loss', got one of each")
    _require_comparable(a, b)
    if not kinds[0]:
        if lanes is not None:
            raise LandscapeError(
                "difference: lanes are chosen for cubes of examples; select them with .sel(lane=[...])"
            )
        return _without_examples(a, b, reference)
    for cube in (a, b):
        require_cube(cube)
    _require_same_images(a, b)
    chosen = cube_lanes(a, lanes)
    resampler = resampler_of(a, num_resamples=num_resamples, level=level, seed=seed)
    dims = grid_dims(a["loss"])
    losses = [cube["loss"].transpose(*dims, "example") for cube in (a, b)]
    num_points = int(np.prod([losses[0].sizes[dim] for dim in dims]))
    readers = {NAMES[0]: _minus(*(_plain(values) for values in losses))}
    centres = [reference_of(values, reference) for values in losses]
    if centres[0] is not None and centres[1] is not None:
        readers[NAMES[1]] = _minus(*(increases(v, c) for v, c in zip(losses, centres) if c is not None))
    arrays: dict[str, np.ndarray] = {}
    for name, read in readers.items():
        arrays |= named_intervals(name, image_intervals(read, num_points, chosen, resampler))
    out = as_dataset(arrays, losses[0], chosen)
    out["num_examples"] = ("lane", np.asarray(chosen.num_examples))
    out["interval_note"] = ("lane", lane_notes(chosen, resampler.strata))
    out.attrs = {**_shared_attributes(a, b), **describe(resampler, seed)}
    return out


def _plain(values: xr.DataArray) -> Read:
    flat = points_of(values)
    return lambda points: flat[points].astype(np.float64)


def _minus(first: Read, second: Read) -> Read:
    return lambda points: first(points) - second(points)


def _shared_attributes(a: xr.Dataset, b: xr.Dataset) -> dict[str, object]:
    shared = {str(key): value for key, value in a.attrs.items() if str(b.attrs.get(key)) == str(value)}
    return {**shared, "difference": "first minus second", "units": "nats per example"}


def _require_comparable(a: xr.Dataset, b: xr.Dataset) -> None:
    require_same_grid(a, b, "difference: the two surfaces")
    keys = COMPARED if str(a.attrs.get("normalization")) == "as given" else (*COMPARED, "seed")
    for key in keys:
        if str(a.attrs.get(key)) != str(b.attrs.get(key)):
            raise LandscapeError(
                f"difference: the two surfaces differ in {key}: '{a.attrs.get(key)}' against '{b.attrs.get(key)}'; "
                "measure both alike"
            )
    pairs = [s["loss"].sizes.get("pair", 1) for s in (a, b)]
    if pairs[0] != pairs[1] or ("pair" in a["loss"].dims) != ("pair" in b["loss"].dims):
        raise LandscapeError(
            f"difference: expected the same direction pairs, got {pairs[0]} and {pairs[1]}; choose with .isel(pair=...)"
        )


def _require_same_images(a: xr.Dataset, b: xr.Dataset) -> None:
    for name in ("example_split", "example_class", "example_row"):
        if (name in a) != (name in b):
            raise LandscapeError(f"difference: only one of the two cubes has '{name}': measure both anew")
        if name in a and not np.array_equal(a[name].values, b[name].values):
            what = f"{a.sizes['example']} against {b.sizes['example']} examples"
            if a.sizes["example"] == b.sizes["example"]:
                what = f"{int((a[name].values != b[name].values).sum())} of {a.sizes['example']} examples"
            raise LandscapeError(f"difference: the two cubes hold other images: {name} differs, {what}")


def _without_examples(a: xr.Dataset, b: xr.Dataset, reference: Reference) -> xr.Dataset:
    dims = (*grid_dims(a["loss"]), "lane")
    if "num_examples" in a and "num_examples" in b and (a["num_examples"].values != b["num_examples"].values).any():
        raise LandscapeError("difference: the two surfaces differ in num_examples: measure both on the same images")
    a, b = with_increase(a, reference), with_increase(b, reference)
    out = xr.Dataset(coords=a["loss"].coords)
    for name, source in zip(NAMES, ("loss", "increase")):
        if source in a and source in b:
            out[name] = (dims, a[source].transpose(*dims).values - b[source].transpose(*dims).values)
            for part in ("low", "high", "stderr"):
                out[f"{name}_{part}"] = out[name] * np.nan
    if NAMES[1] in out and "increase_stderr" in a and "increase_stderr" in b:
        both = [s["increase_stderr"].transpose(*dims).values for s in (a, b)]
        out[f"{NAMES[1]}_stderr_bound"] = (dims, both[0] + both[1])
    if "num_examples" in a:
        out["num_examples"] = a["num_examples"]
    note = "no interval: the surfaces hold no single images; measure both with their examples kept"
    out["interval_note"] = ("lane", [note] * out.sizes["lane"])
    out.attrs = {
        **_shared_attributes(a, b),
        "interval": "none: the bound takes the two errors as if they always added up (unpaired)",
    }
    return out

"""Error bars without single examples: over images from stored standard errors, over directions, over trainings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.stats
import xarray as xr

from landscape.errors import LandscapeError
from landscape.surface.cube import Reference, grid_dims, reference_of, require_reference

PREFIXES = ("", "recalibrated_", "held_out_", "recalibrated_held_out_")
MEASURED = ("loss", "own_loss", "error", "margin", "increase")
# Stored variances of a lane and of its classes agree to this, if the lane weighs its classes as assumed.
SAME_VARIANCE = 1e-6


def measured_names(surface: xr.Dataset) -> list[str]:
    """Return the variables of a surface that are measured at its points, prefixes included."""
    return [prefix + name for prefix in PREFIXES for name in MEASURED if prefix + name in surface]


def with_increase(surface: xr.Dataset, reference: Reference = "centre") -> xr.Dataset:
    """Return the surface with ``increase`` = loss - loss at the weights beside each loss, where the grid holds them."""
    out = surface
    for prefix in PREFIXES:
        if f"{prefix}loss" in surface and f"{prefix}increase" not in surface:
            values = surface[f"{prefix}loss"]
            centre = reference_of(values, reference)
            if centre is not None:
                out = out.assign({f"{prefix}increase": values - centre})
    return out


def image_interval(surface: xr.Dataset, *, level: float = 0.95) -> xr.Dataset:
    r"""Return Student's interval of every lane's increase from the stored standard errors over images.

    :math:`m \pm t_{\nu, (1+\text{level})/2}\, s` with Welch and Satterthwaite's degrees of freedom
    :math:`\nu = (\sum_c v_c)^2 / \sum_c v_c^2 / (n_c - 1)`, :math:`v_c = w_c^2 s_c^2 / n_c`.

    Parameters
    ----------
    surface
        ``loss`` and ``increase_stderr`` (pair, beta, alpha, lane), ``num_examples`` (lane), of ``measure_surface``.
    level
        Confidence of each interval on its own.

    Returns
    -------
    xarray.Dataset
        ``increase``, ``increase_low``, ``increase_high``, ``increase_stderr`` and ``increase_degrees`` (pair, beta,
        alpha, lane), likewise for every prefix. The degrees of a class are n - 1. Those of a group or the whole need the
        lanes of its classes; where these are not there, or the lane weighs them otherwise, they are infinite (a normal
        interval), and ``interval_note`` (lane) says so.

    Raises
    ------
    LandscapeError
        For a surface without standard errors or without the weights on its grid, or a level outside (0, 1).

    Notes
    -----
    It ignores skewness: a class whose increase sits in a few images is covered less often than the level says. The
    studentised bootstrap of a cube does not: :func:`landscape.surface.resampling.paired_bootstrap`.

    Examples
    --------
    >>> surface = xr.Dataset(
    ...     {
    ...         "loss": (("alpha", "lane"), [[1.0], [1.5]]),
    ...         "increase_stderr": (("alpha", "lane"), [[0.0], [0.1]]),
    ...         "num_examples": ("lane", [5]),
    ...     },
    ...     coords={"alpha": [0.0, 1.0], "lane": ["9"], "lane_kind": ("lane", ["class"])},
    ... )
    >>> round(image_interval(surface).increase_high.sel(alpha=1.0).item(), 4)  # 0.5 + 2.776 x 0.1
    0.7776
    """
    if not 0 < level < 1:
        raise LandscapeError(f"level: expected a probability between 0 and 1, got {level}")
    if "increase_stderr" not in surface:
        raise LandscapeError(
            "the surface has no 'increase_stderr': measure it anew, or resample a cube of its examples"
        )
    out, notes = xr.Dataset(attrs=dict(surface.attrs)), [""] * surface.sizes["lane"]
    for prefix in PREFIXES:
        name = f"{prefix}increase"
        if f"{name}_stderr" not in surface or f"{prefix}loss" not in surface:
            continue
        require_reference(surface[f"{prefix}loss"])
        stderr = surface[f"{name}_stderr"]
        held_out = f"{prefix.removeprefix('recalibrated_')}num_examples"
        degrees, notes = _degrees(surface, stderr, surface[held_out if held_out in surface else "num_examples"])
        half = stderr * scipy.stats.t.ppf((1 + level) / 2, np.where(np.isfinite(degrees), degrees, 1e9))
        mean = with_increase(surface)[name]
        out = out.assign({name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half})
        out = out.assign({f"{name}_stderr": stderr, f"{name}_degrees": degrees})
    out["interval_note"] = ("lane", notes)
    out.attrs |= {"interval": "Student's, from standard errors over images", "interval_level": level}
    return out


def _degrees(surface: xr.Dataset, stderr: xr.DataArray, num_examples: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """Return degrees of freedom in the shape of ``stderr``, and a note per lane."""
    kinds = [str(kind) for kind in surface["lane_kind"].values]
    groups = [str(g) for g in surface["lane_group"].values] if "lane_group" in surface else [""] * len(kinds)
    counts = num_examples.values
    parts, notes = [], []
    for position, kind in enumerate(kinds):
        own = stderr.isel(lane=position)
        if kind == "class":
            parts.append(xr.full_like(own, counts[position] - 1.0))
            notes.append("no interval: one image, whose spread is unknown" if counts[position] < 2 else "")
            continue
        name = str(surface["lane"].values[position])
        members = [m for m, other in enumerate(kinds) if other == "class" and (kind == "all" or groups[m] == name)]
        found = None
        if members and kind in ("group", "all"):
            sizes = xr.DataArray(counts[members].astype(float), dims="lane")
            weights = sizes if surface.attrs.get("group_average", "examples") == "examples" else xr.ones_like(sizes)
            shares = (weights / weights.sum() * stderr.isel(lane=members).drop_vars("lane")) ** 2
            total = shares.sum("lane", skipna=False)
            if np.allclose(total, own**2, rtol=SAME_VARIANCE, atol=0.0, equal_nan=True):
                squares = (shares**2 / np.maximum(sizes - 1, 1)).sum("lane", skipna=False)
                found = xr.where(total > 0, total**2 / squares.where(squares > 0), np.inf)
        parts.append(xr.full_like(own, np.inf) if found is None else found)
        notes.append("normal interval: the classes of this lane are not stored beside it" if found is None else "")
    degrees = xr.concat([part.reset_coords(drop=True) for part in parts], dim="lane")
    return degrees.transpose(*stderr.dims).assign_coords(lane=stderr["lane"]), notes


def over_directions(surface: xr.Dataset, *, band: tuple[float, float] = (0.1, 0.9)) -> xr.Dataset:
    r"""Return what the direction pairs of a surface say together.

    Parameters
    ----------
    surface
        A surface over (pair, ...), of a measurement, a bootstrap or a difference.
    band
        Quantiles of the band.

    Returns
    -------
    xarray.Dataset
        Without ``pair``: of each measured variable v its mean ``v``, ``v_direction_stderr`` (the standard error of this
        mean over the R pairs, sd / sqrt(R); NaN for one pair), ``v_direction_median``, ``v_direction_low``,
        ``v_direction_high`` (the band: where single directions lie, not where the mean does). ``increase_image_stderr``
        is the mean of the pairs' standard errors over images: an upper bound of that of the mean over directions,
        because the pairs share their images; the bootstrap of an averaged cube
        (:func:`landscape.surface.cube.average_directions`) gives it exactly.

    Raises
    ------
    LandscapeError
        For a surface without direction pairs, or a band that is none.

    Examples
    --------
    >>> surface = xr.Dataset({"loss": (("pair", "alpha", "lane"), [[[1.0]], [[3.0]]])})
    >>> pooled = over_directions(surface)
    >>> pooled.loss.item(), pooled.loss_direction_stderr.item()
    (2.0, 1.0)
    """
    if not any("pair" in surface[name].dims for name in _with_differences(surface)):
        raise LandscapeError("the surface has no direction pairs: expected variables over 'pair'")
    if not 0 <= band[0] < band[1] <= 1:
        raise LandscapeError(f"band: expected two increasing quantiles, got {band}")
    surface = with_increase(surface)
    num = surface.sizes["pair"]
    out: dict[str, xr.DataArray] = {}
    for name in _with_differences(surface):
        values = surface[name]
        sd = values.std("pair", ddof=1, skipna=False) if num > 1 else values.isel(pair=0, drop=True) * np.nan
        quantiles = values.quantile([band[0], 0.5, band[1]], "pair", skipna=False)
        out |= {name: values.mean("pair", skipna=False), f"{name}_direction_stderr": sd / np.sqrt(num)}
        for position, label in enumerate(("low", "median", "high")):
            out[f"{name}_direction_{label}"] = quantiles.isel(quantile=position, drop=True)
        if f"{name}_stderr" in surface:
            out[f"{name}_image_stderr"] = surface[f"{name}_stderr"].mean("pair", skipna=False)
    pooled = xr.Dataset(out, attrs={**surface.attrs, "num_pairs": num, "direction_band": list(band)})
    pooled.attrs["errors"] = (
        "direction: standard error of the mean over pairs; image: mean of the pairs' standard errors, an upper bound"
    )
    return pooled.assign({n: surface[n] for n in ("num_examples", "interval_note") if n in surface})


def _with_differences(surface: xr.Dataset) -> list[str]:
    return [*measured_names(surface), *(n for n in ("loss_difference", "increase_difference") if n in surface)]


def over_seeds(surfaces: Mapping[str, xr.Dataset], *, level: float = 0.95) -> xr.Dataset:
    r"""Return what several trainings (seeds) of one recipe say together.

    Each training first is averaged over its direction pairs; with S trainings the interval is Student's,
    :math:`m \pm t_{S-1}\, \mathrm{sd} / \sqrt S`.

    Parameters
    ----------
    surfaces
        The surface of each training, of the same grid and lanes.
    level
        Confidence of each interval on its own.

    Returns
    -------
    xarray.Dataset
        Without ``pair``: of each variable v (``loss``, ``error``, ``margin``, ``increase``, ...) the mean ``v``,
        ``v_seed_sd`` between trainings, ``v_seed_stderr`` of the mean, ``v_seed_low``, ``v_seed_high``. Beside them,
        never added to them, what the other two sources make *within one training* (root mean square over trainings):
        ``v_direction_stderr`` over its direction pairs and ``increase_image_stderr`` over its images. The spread between
        trainings already holds the part of these two that differs between trainings (fresh directions; images, where
        each training drew its own), and none of the part that they share.

    Raises
    ------
    LandscapeError
        For fewer than two trainings, or ones that differ in grid, lanes or variables.

    Examples
    --------
    >>> one = xr.Dataset({"loss": (("pair", "alpha", "lane"), [[[1.0], [3.0]]])}, coords={"alpha": [0.0, 1.0]})
    >>> pooled = over_seeds({"a": one, "b": one + 1})
    >>> pooled.loss.values[1].item(), round(pooled.loss_seed_stderr.values[1].item(), 3)
    (3.5, 0.5)
    """
    if len(surfaces) < 2:
        raise LandscapeError(f"expected the surfaces of at least two trainings, got {len(surfaces)}")
    if not 0 < level < 1:
        raise LandscapeError(f"level: expected a probability between 0 and 1, got {level}")
    (first_name, first), *others = surfaces.items()
    for name, surface in others:
        require_same_grid(first, surface, f"{first_name} and {name}")
        if measured_names(first) != measured_names(surface):
            raise LandscapeError(
                f"{first_name} and {name} differ in what was measured: "
                f"{', '.join(measured_names(first))} against {', '.join(measured_names(surface))}"
            )
    pooled = [over_directions(s if "pair" in s["loss"].dims else s.expand_dims("pair")) for s in surfaces.values()]
    num = len(pooled)
    out: dict[str, xr.DataArray] = {}
    quantile = float(scipy.stats.t.ppf((1 + level) / 2, num - 1))
    for name in measured_names(pooled[0]):
        values = _stacked(pooled, name)
        mean, sd = values.mean("training", skipna=False), values.std("training", ddof=1, skipna=False)
        half = quantile * sd / np.sqrt(num)
        out |= {name: mean, f"{name}_seed_sd": sd, f"{name}_seed_stderr": sd / np.sqrt(num)}
        out |= {f"{name}_seed_low": mean - half, f"{name}_seed_high": mean + half}
        for source in ("direction_stderr", "image_stderr"):
            if all(f"{name}_{source}" in p for p in pooled):
                errors = _stacked(pooled, f"{name}_{source}")
                out[f"{name}_{source}"] = (errors**2).mean("training", skipna=False) ** 0.5
    attrs = {key: value for key, value in first.attrs.items() if all(s.attrs.get(key) == value for _, s in others)}
    result = xr.Dataset(out, attrs={**attrs, "trainings": list(surfaces), "interval_level": level})
    result.attrs["errors"] = (
        "seed: of the mean over trainings; direction and image: within one training, root mean square over trainings; "
        "the three overlap and are not to be added"
    )
    return result.assign({"num_examples": first["num_examples"]} if "num_examples" in first else {})


def _stacked(pooled: list[xr.Dataset], name: str) -> xr.DataArray:
    first = pooled[0][name]
    arrays = np.stack([p[name].transpose(*first.dims).values for p in pooled])
    return xr.DataArray(arrays, dims=("training", *first.dims), coords=first.coords)


def require_same_grid(a: xr.Dataset, b: xr.Dataset, names: str) -> None:
    """Raise LandscapeError unless two surfaces have the same points and lanes (or examples)."""
    for dim in (*grid_dims(a["loss"]), "lane"):
        has = [dim in s["loss"].dims for s in (a, b)]
        if has == [False, False] or dim == "pair":
            continue
        if has != [True, True] or a.sizes[dim] != b.sizes[dim] or (a[dim].values != b[dim].values).any():
            raise LandscapeError(
                f"{names} differ in {dim}: measure both on the same {'lanes' if dim == 'lane' else 'grid'}"
            )
    if set(grid_dims(a["loss"])) - {"pair"} != set(grid_dims(b["loss"])) - {"pair"}:
        raise LandscapeError(f"{names} differ in kind: one is a line, the other a plane")

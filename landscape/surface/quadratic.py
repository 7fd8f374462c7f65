"""The quadratic models of a measured surface: from exact derivatives at the weights, and fitted within a radius."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.surface.directional import DirectionalDerivatives, directional_derivatives
from landscape.surface.fit import RESIDUAL_LIMIT, QuadraticFit, fit_quadratic, fit_widest

AXES = ("alpha", "beta")
# A risk whose loss at the weights differs by more than this share (of 0.1 nats, where it is smaller) is another one.
SAME_VALUE = 0.02
CAVEAT = (
    "derivatives at a point do not see the kinks of ReLUs and of max pooling, which carry curvature at a distance: "
    "the fitted quadratic, which includes them up to its radius, may differ by any factor; neither is wrong"
)


def quadratic_models(
    surface: xr.Dataset,
    risk: ClassRisk,
    directions: Sequence[Tensor] | Sequence[Sequence[Tensor]],
    *,
    held_out: ClassRisk | None = None,
    lanes: LaneChoice | None = None,
    radius: float | None = None,
    limit: float = RESIDUAL_LIMIT,
) -> xr.Dataset:
    r"""Add to a measured line or plane the quadratic of every lane's exact derivatives, and the fitted one.

    .. math:: q_l(\alpha, \beta) = L_l + b_l^T (\alpha, \beta) + \tfrac12 (\alpha, \beta) A_l (\alpha, \beta)^T,
        \qquad b_{l,i} = \sum_c w_{lc}\, g_c^T d_i, \quad A_{l,ij} = \sum_c w_{lc}\, d_i^T H_c d_j

    Parameters
    ----------
    surface
        From :func:`landscape.surface.measure_surface`.
    risk
        The one that was measured, with frozen BatchNorm statistics (recalibrated ones depend on the weights: their
        surface is only fitted).
    directions
        Those that were measured: per direction pair a list of one (line) or two (plane) vectors (n,); the list alone
        for a single pair.
    held_out
        The risk on the held-out images, where they were measured too.
    lanes
        What ``lanes`` was for the surface; needed for mixtures only, whose weights a surface does not hold.
    radius, limit
        As for :func:`fitted_models`.

    Returns
    -------
    xarray.Dataset
        The surface with, for ``loss``: ``centre`` (lane), ``slope`` (pair, axis, lane), ``curvature`` (pair, axis,
        other_axis, lane), ``slope_stderr``, ``curvature_stderr``, exact up to rounding, their standard errors over
        images :math:`\sqrt{\sum_c w_{lc}^2 s_c^2 / n_c}` (NaN where a class has one image, or no nested forward
        derivative), and what :func:`fitted_models` adds. Every other loss has the same with its own prefix:
        ``own_slope``, ``held_out_slope``.

    Raises
    ------
    LandscapeError
        If the directions do not belong to the surface, the risk is not the one measured, or a mixture's weights are
        missing.

    Examples
    --------
    >>> from landscape import AnalyticRisk, measure_surface
    >>> risk = AnalyticRisk(lambda t: (2 + t[0] + 3 * t[0] ** 2)[None], torch.zeros(1, dtype=torch.float64))
    >>> line = measure_surface(risk, "all", directions=[torch.ones(1)], x=np.linspace(-1, 1, 11))
    >>> line = quadratic_models(line, risk, [torch.ones(1)])
    >>> line.slope.item(), line.curvature.item(), round(line.fitted_curvature.item(), 9), line.fitted_radius.item()
    (1.0, 6.0, 6.0, 1.0)
    """
    pairs = _pairs_of(surface, directions)
    result = fitted_models(surface, radius=radius, limit=limit)
    sources = {"": risk, **({} if held_out is None else {"held_out_": held_out})}
    routes: dict[str, str] = {}
    for prefix, source in sources.items():
        wanted = [name for name in _losses_of(surface) if name in (f"{prefix}loss", f"{prefix}own_loss")]
        if str(surface.attrs.get("batchnorm", "")).startswith("recalibrate") or not wanted:
            continue
        _require_same(surface, source, held_out=bool(prefix))
        chosen = _lanes_of(surface, source, lanes)
        found = [directional_derivatives(source, axes) for axes in pairs]
        for name in wanted:
            terms = [of_pair[name.removeprefix(prefix)] for of_pair in found]
            routes[name] = terms[0].route
            _add_derivatives(result, name.removesuffix("loss"), terms, chosen)
            _require_value(surface, result, name)
    result.attrs.update(
        quadratic_derivatives=json.dumps(routes),
        quadratic_exactness="slopes and curvatures exact up to rounding; standard errors over images",
        quadratic_caveat=CAVEAT,
    )
    return result


def fitted_models(surface: xr.Dataset, *, radius: float | None = None, limit: float = RESIDUAL_LIMIT) -> xr.Dataset:
    r"""Add to a measured line or plane, also one from elsewhere, the least-squares quadratic of every lane.

    Fitted are the points with :math:`\alpha^2 + (\beta / a)^2 \le r^2`, a being the ratio of the ranges of the two
    coordinates (1 for a square grid), and the value at the weights is the measured one where the grid holds it.

    Parameters
    ----------
    surface
        Any number of losses (..., pair, [beta,] alpha, lane).
    radius
        The r for all lanes; by default each lane's own, the largest at which the relative residual is at most ``limit``.
    limit
        Largest root mean square residual as a share of the range of the values inside.

    Returns
    -------
    xarray.Dataset
        The surface with ``fitted_centre``, ``fitted_radius``, ``fitted_residual``, ``fitted_points`` (pair, lane),
        ``fitted_slope`` (pair, axis, lane), ``fitted_curvature`` (pair, axis, other_axis, lane) and the
        coefficients' standard errors ``fitted_*_stderr`` from the residuals; NaN where no radius qualifies. Another
        loss's names begin like its own: ``recalibrated_fitted_slope``.

    Raises
    ------
    LandscapeError
        If the Dataset holds no loss, or the radius or limit is not positive.
    """
    names = _losses_of(surface)
    axes = [axis for axis in AXES if axis in surface.dims]
    grid = [np.asarray(surface[axis].values, dtype=np.float64) for axis in axes]
    reach = [float(np.abs(values).max()) for values in grid]
    aspect = reach[1] / reach[0] if len(axes) == 2 else 1.0
    offsets = np.stack([part.ravel() for part in np.meshgrid(*grid, indexing="ij")], 1)
    result = surface.assign_coords(axis=axes, other_axis=axes)
    for name in names:
        values = surface[name].where(surface["done"]) if "done" in surface else surface[name]
        fits = []
        for pair in surface["pair"].values:
            points = values.sel(pair=pair).transpose(*axes, "lane").values.reshape(len(offsets), -1)
            if radius is None:
                fits.append(fit_widest(offsets, points, limit=limit, aspect=aspect))
            else:
                fits.append(fit_quadratic(offsets, points, radius=radius, aspect=aspect))
        _add_fits(result, name.removesuffix("loss"), fits)
    rule = f"the largest whose root mean square residual is at most {limit:g} of the range of the values inside"
    result.attrs = {
        **surface.attrs,
        "fitted_radius_rule": rule if radius is None else "given",
        "fitted_limit": limit if radius is None else float("nan"),
        "fitted_aspect": aspect,
        "fitted_stderr": "from the residuals as if they were independent; on an exact surface they are what a quadratic misses",
    }
    return result


def _losses_of(surface: xr.Dataset) -> list[str]:
    names = [
        str(name)
        for name, values in surface.data_vars.items()
        if (name == "loss" or str(name).endswith("_loss")) and {"pair", "alpha", "lane"} <= set(values.dims)
    ]
    if not names:
        raise LandscapeError(
            f"expected a loss on a line or plane, got {', '.join(map(str, surface.data_vars)) or 'nothing'}: "
            "measure the surface first"
        )
    return names


def _pairs_of(
    surface: xr.Dataset, directions: Sequence[Tensor] | Sequence[Sequence[Tensor]]
) -> Sequence[Sequence[Tensor]]:
    pairs = cast(
        Sequence[Sequence[Tensor]],
        [directions]
        if len(directions) and isinstance(directions[0], Tensor) and directions[0].dim() == 1
        else directions,
    )
    num_axes = 2 if "beta" in surface.dims else 1
    num_pairs = surface.sizes.get("pair", 0)
    if len(pairs) != num_pairs or any(len(axes) != num_axes for axes in pairs):
        raise LandscapeError(
            f"expected the {num_axes} direction(s) of each of the {num_pairs} pair(s) of the surface, "
            f"got {[len(axes) for axes in pairs]}"
        )
    norms = _recorded(surface.attrs.get("direction_norms"))
    for axes, recorded in zip(pairs, norms):
        for d, norm in zip(axes, recorded):
            found = float(torch.linalg.vector_norm(torch.as_tensor(d).double()))
            if abs(found - norm) > 1e-4 * norm:
                raise LandscapeError(
                    f"expected the directions of the surface, of norm {norm:.6g}, got one of norm {found:.6g}: "
                    "draw them with the seed and for the weights of the surface"
                )
    return pairs


def _recorded(norms: Any) -> list[list[float]]:
    """Return an attribute as it was before it was saved."""
    try:
        return list(json.loads(norms) if isinstance(norms, str) else norms or [])
    except ValueError:
        return []


def _require_same(surface: xr.Dataset, risk: ClassRisk, *, held_out: bool) -> None:
    keys = (
        ("checkpoint_sha256", "objective") if held_out else ("checkpoint_sha256", "objective", "split", "max_per_class")
    )
    for key in keys:
        measured, given = surface.attrs.get(key), risk.attributes.get(key)
        if measured is not None and given is not None and str(measured) != str(given):
            raise LandscapeError(
                f"the surface was measured with {key} {measured}, the risk has {given}: load it the same way"
            )


def _lanes_of(surface: xr.Dataset, risk: ClassRisk, choice: LaneChoice | None) -> Lanes:
    names = [str(name) for name in surface["lane"].values]
    kinds = surface["lane_kind"].values.tolist() if "lane_kind" in surface else []
    if choice is None and "mixture" in kinds:
        raise LandscapeError(
            f"lane '{names[kinds.index('mixture')]}' is a mixture, whose weights the surface does not hold: pass lanes="
        )
    average = cast(GroupAverage, surface.attrs.get("group_average", "examples"))
    found = lanes_of(risk, names if choice is None else choice, group_average=average)
    if list(found.names) != names:
        raise LandscapeError(f"expected the lanes of the surface, {', '.join(names)}, got {', '.join(found.names)}")
    return found


def _weighted(weights: Tensor, values: Tensor) -> np.ndarray:
    """Return sums over classes (..., L) of values (..., C); classes without weight, perhaps NaN, do not enter."""
    products = weights * values[..., None, :]
    return torch.where(weights != 0, products, torch.zeros_like(products)).sum(-1).numpy()


def _add_derivatives(result: xr.Dataset, prefix: str, terms: Sequence[DirectionalDerivatives], lanes: Lanes) -> None:
    weights = lanes.weights
    result[f"{prefix}centre"] = ("lane", _weighted(weights, terms[0].value))
    for name, dims in _TERMS:
        exact = [_weighted(weights, getattr(of_pair, name)) for of_pair in terms]
        errors = [np.sqrt(_weighted(weights**2, getattr(of_pair, f"{name}_stderr") ** 2)) for of_pair in terms]
        units = _UNITS[name]
        result[f"{prefix}{name}"] = (dims, np.stack(exact), {"units": units})
        result[f"{prefix}{name}_stderr"] = (dims, np.stack(errors), {"units": units})


_TERMS = (("slope", ("pair", "axis", "lane")), ("curvature", ("pair", "axis", "other_axis", "lane")))
_UNITS = {"slope": "loss per unit of the coordinates", "curvature": "loss per unit of the coordinates squared"}


def _add_fits(result: xr.Dataset, prefix: str, fits: Sequence[QuadraticFit]) -> None:
    def put(name: str, field: str, dims: tuple[str, ...], units: str) -> None:
        result[f"{prefix}fitted_{name}"] = (dims, np.stack([getattr(fit, field) for fit in fits]), {"units": units})

    per_lane = ("pair", "lane")
    put("centre", "centre", per_lane, "loss")
    put("centre_stderr", "centre_stderr", per_lane, "loss")
    put("radius", "radius", per_lane, "units of the first coordinate")
    put("residual", "residual", per_lane, "loss, root mean square")
    put("points", "num_points", per_lane, "points")
    for name, dims in _TERMS:
        put(name, name, dims, _UNITS[name])
        put(f"{name}_stderr", f"{name}_stderr", dims, _UNITS[name])


def _require_value(surface: xr.Dataset, result: xr.Dataset, name: str) -> None:
    """Compare the loss at the weights with the measured one, where the grid holds it: another risk would be told apart."""
    centre = surface[name]
    for axis in (axis for axis in AXES if axis in surface.dims):
        at = np.flatnonzero(surface[axis].values == 0)
        if not len(at):
            return
        centre = centre.isel({axis: int(at[0])})
    exact = result[f"{name.removesuffix('loss')}centre"]
    for lane in _finite_lanes(centre.isel(pair=0), exact):
        measured, given = float(centre.isel(pair=0).sel(lane=lane)), float(exact.sel(lane=lane))
        if abs(measured - given) > SAME_VALUE * max(abs(measured), 0.1):
            raise LandscapeError(
                f"the surface has the {name} {measured:.6g} of '{lane}' at the weights, the risk {given:.6g}: "
                "expected the risk that was measured, on the same images"
            )


def _finite_lanes(*values: xr.DataArray) -> Iterator[str]:
    for lane in values[0]["lane"].values:
        if all(np.isfinite(float(v.sel(lane=lane))) for v in values):
            yield str(lane)

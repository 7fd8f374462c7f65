"""Quadratics fitted to measured points within a radius, and the widest radius within which a quadratic describes them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.errors import LandscapeError

Array = NDArray[np.float64]

# A fit is taken as a description of the surface while its root mean square residual is at most this share of the
# values' range inside: the eye hardly tells such curves apart.
RESIDUAL_LIMIT = 0.02
# Points beyond the coefficients that a fit needs, for a residual that means something.
SPARE_POINTS = 2
# Points that lie on the rim belong to the disc.
ON_THE_RIM = 1 + 1e-9
# A design whose smallest singular value is below this share of its largest does not determine every coefficient.
RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class QuadraticFit:
    r"""Least-squares quadratics :math:`q(t) = c + b^T t + t^T A t / 2` of L lanes in A axes, all float64.

    Attributes
    ----------
    centre
        (L,) value c at the weights: the measured one where the weights are on the grid, else a coefficient.
    slope, curvature
        (A, L) b and (A, A, L) A, per unit of the coordinates and per unit squared.
    centre_stderr, slope_stderr, curvature_stderr
        Standard errors of the coefficients from the residuals; 0 for a measured centre.
    residual
        (L,) root mean square of the residuals inside, in the values' units.
    radius
        (L,) within which points were fitted; NaN, like all the rest, where there is no fit.
    num_points
        (L,) int64 points inside, without a measured centre.
    """

    centre: Array
    slope: Array
    curvature: Array
    centre_stderr: Array
    slope_stderr: Array
    curvature_stderr: Array
    residual: Array
    radius: Array
    num_points: NDArray[np.int64]


def fit_quadratic(offsets: ArrayLike, values: ArrayLike, *, radius: float, aspect: float = 1.0) -> QuadraticFit:
    r"""Fit a quadratic by least squares to the points with :math:`\alpha^2 + (\beta / a)^2 \le r^2`.

    Parameters
    ----------
    offsets
        (m,) coordinates on a line or (m, 2) on a plane; 0 is the weights. Any points, in any order.
    values
        (m,) or (m, L). NaN is not measured and left out; a lane with an infinite value inside is not fitted.
    radius
        The r, along the first axis.
    aspect
        The a: how far the second axis reaches for 1 of the first.

    Returns
    -------
    QuadraticFit
        NaN for lanes with fewer points inside than coefficients and two more, or with points that do not determine
        every coefficient. The standard errors take the residuals for independent errors of one size. Residuals of an
        exactly evaluated surface are what a quadratic misses instead, which neighbours share: then read them as the
        scale of what another choice of points would change.

    Raises
    ------
    LandscapeError
        For offsets that are not of one or two axes, values of another length, or a radius that is not positive.

    Examples
    --------
    >>> t = np.linspace(-1, 1, 11)
    >>> fit = fit_quadratic(t, 5 - t + 3 * t**2, radius=0.5)
    >>> fit.centre.tolist(), fit.slope.round(9).tolist(), fit.curvature.round(9).tolist(), fit.num_points.tolist()
    ([5.0], [[-1.0]], [[[6.0]]], [4])
    """
    points, columns = _points(offsets, values)
    if not (np.isfinite(radius) and radius > 0 and np.isfinite(aspect) and aspect > 0):
        raise LandscapeError(f"expected a positive radius and aspect, got {radius} and {aspect}")
    found = _nothing(points.shape[1], columns.shape[1])
    measured = ~np.isnan(columns)
    for mask in np.unique(measured, axis=1).T:  # lanes of one mask share a design
        lanes = np.flatnonzero((measured == mask[:, None]).all(0))
        found = _merged(found, _fit(points[mask], columns[mask][:, lanes], radius, aspect), lanes)
    return found


def fit_widest(
    offsets: ArrayLike, values: ArrayLike, *, limit: float = RESIDUAL_LIMIT, aspect: float = 1.0
) -> QuadraticFit:
    """Fit each lane within the largest radius at which a quadratic still describes its values.

    That is the largest distance of a point at which the root mean square residual is at most ``limit`` times the range
    (largest minus smallest) of the values inside. Searched from outside inwards: in networks with kinks, or where
    rounding is all there is to see, small radii fail while larger ones hold.

    Parameters
    ----------
    offsets, values, aspect
        As for :func:`fit_quadratic`.
    limit
        Share of the range.

    Returns
    -------
    QuadraticFit
        Lanes that no radius with enough points satisfies are NaN.

    Raises
    ------
    LandscapeError
        As :func:`fit_quadratic`, and for a limit that is not positive.

    Examples
    --------
    >>> t = np.linspace(-2, 2, 41)
    >>> kinked = t**2 + np.maximum(abs(t) - 1, 0) * 20  # a parabola up to a distance of 1
    >>> fit = fit_widest(t, np.stack([t**2, kinked], 1))
    >>> fit.radius.tolist(), fit.curvature[0, 0].round(9).tolist()
    ([2.0, 1.0], [2.0, 2.0])
    """
    points, columns = _points(offsets, values)
    if not (np.isfinite(limit) and limit > 0):
        raise LandscapeError(f"expected a positive limit of the relative residual, got {limit}")
    distances = _distances(points, aspect)
    found = _nothing(points.shape[1], columns.shape[1])
    waiting = np.arange(columns.shape[1])
    radii = np.unique(np.round(distances[distances > 0], 12))[::-1]
    for radius in radii:
        inside = distances <= radius * ON_THE_RIM
        if inside.sum() < _num_coefficients(points.shape[1]) + SPARE_POINTS or not len(waiting):
            break
        fit = fit_quadratic(points, columns[:, waiting], radius=float(radius), aspect=aspect)
        kept = np.where(np.isinf(columns[inside][:, waiting]), np.nan, columns[inside][:, waiting])
        fits = np.isfinite(fit.radius)
        spread = np.zeros(len(waiting))
        spread[fits] = np.nanmax(kept[:, fits], 0) - np.nanmin(kept[:, fits], 0)
        is_good = fits & (np.nan_to_num(fit.residual, nan=np.inf) <= limit * spread)
        found = _merged(found, _chosen(fit, is_good), waiting[is_good])
        waiting = waiting[~is_good]
    return found


def _points(offsets: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    points, columns = np.asarray(offsets, dtype=np.float64), np.asarray(values, dtype=np.float64)
    points = points[:, None] if points.ndim == 1 else points
    columns = columns[:, None] if columns.ndim == 1 else columns
    if points.ndim != 2 or points.shape[1] not in (1, 2) or not np.isfinite(points).all():
        raise LandscapeError(f"expected finite offsets (m,) or (m, 2), got {np.shape(offsets)}")
    if columns.ndim != 2 or len(columns) != len(points):
        raise LandscapeError(
            f"expected a value or a row of values for each of {len(points)} points, got {columns.shape}"
        )
    return points, columns


def _distances(points: Array, aspect: float) -> Array:
    return np.asarray(np.sqrt(((points / np.array([1.0, aspect])[: points.shape[1]]) ** 2).sum(1)))


def _num_coefficients(num_axes: int) -> int:
    return num_axes + num_axes * (num_axes + 1) // 2


def _nothing(num_axes: int, num_lanes: int) -> QuadraticFit:
    def missing(*shape: int) -> Array:
        return np.full((*shape, num_lanes), np.nan)

    a = num_axes
    points = np.zeros(num_lanes, np.int64)
    return QuadraticFit(
        missing(), missing(a), missing(a, a), missing(), missing(a), missing(a, a), missing(), missing(), points
    )


def _chosen(fit: QuadraticFit, lanes: NDArray[np.bool_]) -> QuadraticFit:
    return replace(fit, **{name: part[..., lanes] for name, part in vars(fit).items()})


def _merged(whole: QuadraticFit, part: QuadraticFit, lanes: NDArray[np.int64]) -> QuadraticFit:
    """Return ``whole`` with the given lanes taken from ``part``."""
    merged = {name: array.copy() for name, array in vars(whole).items()}
    for name, array in vars(part).items():
        merged[name][..., lanes] = array
    return QuadraticFit(**merged)


def _fit(points: Array, values: Array, radius: float, aspect: float) -> QuadraticFit:
    """Fit lanes that were all measured at all points."""
    num_axes, num_lanes = points.shape[1], values.shape[1]
    result = _nothing(num_axes, num_lanes)
    inside = _distances(points, aspect) <= radius * ON_THE_RIM
    points, values = points[inside], values[inside]
    finite = np.isfinite(values).all(0)
    at_centre = (points == 0).all(1)
    has_centre = bool(at_centre.any())
    scales = radius * np.array([1.0, aspect])[:num_axes]
    # Without its value at the weights: what is left is small there, so that no digit is lost.
    start = values[at_centre].mean(0) if has_centre else np.where(finite, values.mean(0), 0.0) if len(values) else 0.0
    u, y = points[~at_centre] / scales, (values - start)[~at_centre]
    pairs = list(itertools.combinations_with_replacement(range(num_axes), 2))
    terms = [u[:, i] * u[:, j] / (2 if i == j else 1) for i, j in pairs]
    constant = [] if has_centre else [np.ones(len(u))]
    design = np.stack([*u.T, *terms, *constant], 1)
    if len(design) < design.shape[1] + SPARE_POINTS or not finite.any():
        return result
    left, sizes, right = np.linalg.svd(design, full_matrices=False)
    if sizes[-1] < RANK_TOLERANCE * sizes[0]:
        return result
    units = np.concatenate([scales, [scales[i] * scales[j] for i, j in pairs], np.ones(len(constant))])[:, None]
    y = y[:, finite]
    coefficients = right.T @ ((left.T @ y) / sizes[:, None])
    squares = ((y - design @ coefficients) ** 2).sum(0)
    variance = squares / (len(design) - design.shape[1])
    errors = np.sqrt(((right.T / sizes) ** 2).sum(1)[:, None] * variance) / units
    coefficients = coefficients / units
    base = np.broadcast_to(start, num_lanes)[finite]
    for name, entries in (("", coefficients), ("_stderr", errors)):
        getattr(result, f"slope{name}")[:, finite] = entries[:num_axes]
        for (i, j), entry in zip(pairs, entries[num_axes:]):
            getattr(result, f"curvature{name}")[i, j, finite] = entry
            getattr(result, f"curvature{name}")[j, i, finite] = entry
    result.centre[finite] = base if has_centre else base + coefficients[-1]
    result.centre_stderr[finite] = 0.0 if has_centre else errors[-1]
    result.residual[finite] = np.sqrt(squares / len(design))
    result.radius[finite] = radius
    result.num_points[finite] = len(design)
    return result

"""Axes that are given by derivatives of a lane at the weights: its gradient, and its extreme eigenvectors."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.randomness import stream
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.spectrum import SpectrumOptions, find_extremes
from landscape.surface.axes import ORTHOGONAL, Axes, Mark, cosine, origin_of, orthogonal_to

Ends = Literal["both", "min", "max"]
# Length of an axis in units of |theta|: comparable between models whose weights differ in size.
RELATIVE_LENGTH = 0.1


def gradient_axes(
    risk: ClassRisk, lane: LaneChoice, *, length: float | None = None, group_average: GroupAverage = "examples"
) -> Axes:
    r"""Return the gradient of a lane as an axis, or those of two lanes as a plane.

    .. math:: d_1 = \ell\, \frac{g_1}{|g_1|}, \qquad d_2 = \ell\, \frac{\tilde g_2}{|\tilde g_2|}, \quad
              \tilde g_2 = g_2 - \frac{\langle g_2, g_1 \rangle}{|g_1|^2} g_1

    Parameters
    ----------
    risk
        Gives weights and gradients.
    lane
        One lane (a line), or two (a plane): a class, a group, ``"head,tail"``, ``{name: weights}``.
    length
        Of the axes, in weight units; by default a tenth of |theta|.
    group_average
        As in :func:`landscape.risk.choose_lanes`.

    Returns
    -------
    Axes
        Positive coordinates are uphill. ``attributes``: ``gradient_norms``; ``slope_per_unit``, the slope of each lane along
        its own axis per unit of the coordinate at the weights, |g| times the length on a line; ``gradient_cosine`` of the
        two lanes. Gradients are exact derivatives, in the risk's precision.

    Raises
    ------
    LandscapeError
        If a gradient is zero, or two are parallel.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (3 * t[0] + 4 * t[1])[None], torch.zeros(2))
    >>> axes = gradient_axes(risk, "all", length=2.0)
    >>> axes.attributes["slope_per_unit"]
    [10.0]
    """
    require_fixed(risk, "a gradient axis")
    chosen = lanes_of(risk, lane, group_average=group_average)
    if len(chosen) > 2:
        raise LandscapeError(f"gradient axes: expected one lane (line) or two (plane), got {len(chosen)}")
    unit, described = _unit(risk, length)
    gradients = risk.gradients(risk.theta, chosen.weights).double()
    norms = [float(torch.linalg.vector_norm(g)) for g in gradients]
    for name, norm in zip(chosen.names, norms):
        if not 0 < norm < math.inf:
            raise LandscapeError(f"lane '{name}': its gradient has norm {norm}: it gives no direction")
    raw = [gradients[0], *(orthogonal_to(g, gradients[0]) for g in gradients[1:])]
    vectors = tuple(unit * g / torch.linalg.vector_norm(g) for g in raw)
    return Axes(
        vectors,
        "gradient",
        f"gradients rescaled to {described}" + (", the second without its part along the first" * (len(chosen) - 1)),
        tuple(f"along the gradient of {name}, in {described}" for name in chosen.names),
        {"kind": "gradient", "lanes": _weights(chosen), "length": length, **origin_of(risk)},
        marks=(Mark(0.0, 0.0, "weights"),),
        attributes={
            "lanes": list(chosen.names),
            "gradient_norms": norms,
            "slope_per_unit": [float(g @ v) for g, v in zip(gradients, vectors)],
            "gradient_cosine": cosine(*gradients) if len(chosen) == 2 else None,
            "direction_unit": unit,
        },
    )


@precise_arithmetic()
def eigen_axes(
    risk: ClassRisk,
    lane: LaneChoice,
    *,
    ends: Ends = "both",
    length: float | None = None,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
) -> Axes:
    r"""Return the plane of the lowest and highest eigenvectors of a lane's Hessian, or a line along one of them.

    .. math:: d_1 = \ell\, v_{\min}, \qquad d_2 = \ell\, v_{\max}, \qquad H v = \lambda v, \; |v| = 1

    Each vector is turned so that the lane falls along it to first order (where its cosine to the gradient is below 1e-6: so
    that its largest entry is positive); the sign that a solver gives means nothing.

    Parameters
    ----------
    risk, options, seed
        As in :func:`landscape.spectrum.extreme_directions`; with the seed of a spectrum, the vectors are the spectrum's.
    lane
        One lane: a class, a group, ``"all"``, or ``{name: weights}``.
    ends
        ``"both"`` for the plane, ``"min"`` or ``"max"`` for a line.
    length
        Of the axes, in weight units; by default a tenth of |theta|.
    group_average
        As in :func:`landscape.risk.choose_lanes`.

    Returns
    -------
    Axes
        ``attributes``: ``lane``, ``lambda_min``, ``lambda_max``, each with ``_residual`` |Hv - lambda v| and ``_error`` (how
        far an eigenvalue may be), and ``slope_along_v_min``, ``slope_along_v_max`` per weight unit. The second derivative
        of the lane along an axis of length l is l^2 lambda, to l^2 times the residual.

    Raises
    ------
    LandscapeError
        If more than one lane is named, or as in :func:`landscape.spectrum.find_extremes`.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> saddle = AnalyticRisk(lambda t: (t[0] ** 2 - t[1] ** 2)[None], torch.zeros(2, dtype=torch.float64))
    >>> axes = eigen_axes(saddle, "all", length=1.0)
    >>> round(axes.attributes["lambda_min"], 9), [round(abs(x), 9) for x in axes.vectors[0].tolist()]
    (-2.0, [0.0, 1.0])
    """
    if ends not in get_args(Ends):
        raise unknown_name("ends", ends, get_args(Ends))
    require_fixed(risk, "an eigen-plane")
    chosen = lanes_of(risk, lane, group_average=group_average)
    if len(chosen) != 1:
        raise LandscapeError(f"eigen axes: expected one lane, got {len(chosen)}: {', '.join(chosen.names[:4])}")
    name, settings = chosen.names[0], options or SpectrumOptions()
    unit, described = _unit(risk, length)
    # The stream is the spectrum's, hence so are the vectors.
    found = find_extremes(risk, chosen.weights[0], settings, stream(seed, f"spectrum/{name}/extremes"), name=name)
    v_min, v_max = found.v_min.double(), found.v_max.double()
    if abs(cosine(v_min, v_max)) > 1 - 1e-6 and ends == "both":
        v_max = _another(v_min, stream(seed, f"eigen-plane/{name}"))
    gradient = risk.gradients(risk.theta, chosen.weights)[0].double()
    kept = {"both": ("min", "max"), "min": ("min",), "max": ("max",)}[ends]
    vectors = {"min": _turned(v_min, gradient), "max": _turned(v_max, gradient)}
    return Axes(
        tuple(unit * vectors[end] for end in kept),
        "eigen",
        f"eigenvectors rescaled to {described}",
        tuple(f"along v_{end} of {name}, in {described}" for end in kept),
        {
            "kind": "eigen",
            "lanes": _weights(chosen),
            "ends": ends,
            "length": length,
            "seed": seed,
            "options": asdict(settings),
            **origin_of(risk),
        },
        marks=(Mark(0.0, 0.0, "weights"),),
        attributes={
            "lane": name,
            "lambda_min": found.lambda_min,
            "lambda_min_residual": found.residual_min,
            "lambda_min_error": found.error_min,
            "lambda_max": found.lambda_max,
            "lambda_max_residual": found.residual_max,
            "lambda_max_error": found.error_max,
            "slope_along_v_min": float(gradient @ vectors["min"]),
            "slope_along_v_max": float(gradient @ vectors["max"]),
            "direction_unit": unit,
        },
    )


def _unit(risk: ClassRisk, length: float | None) -> tuple[float, str]:
    """Return the length of an axis and what it is, for labels."""
    if length is None:
        norm = RELATIVE_LENGTH * float(torch.linalg.vector_norm(risk.theta.double()))
        return (norm, "tenths of |theta|") if norm > 0 else (1.0, "weight units")
    if not 0 < length < math.inf:
        raise LandscapeError(f"length: expected a positive length in weight units, got {length}")
    return float(length), "weight units" if length == 1 else f"units of {length:g} in weight space"


def _another(v: Tensor, generator: torch.Generator) -> Tensor:
    """Return a unit vector orthogonal to v: with one eigenvalue only, any other direction belongs to it as well."""
    draw = torch.randn(v.shape, generator=generator, dtype=torch.float32).to(v)
    return torch.nn.functional.normalize(orthogonal_to(draw, v), dim=0)


def _turned(v: Tensor, gradient: Tensor) -> Tensor:
    slope = float(gradient @ v)
    is_flat = abs(slope) <= ORTHOGONAL * float(torch.linalg.vector_norm(gradient))  # its sign would be rounding
    sign = float(v[v.abs().argmax()]) if is_flat else -slope
    return v if sign > 0 else -v


def _weights(chosen: Lanes) -> dict[str, Any]:
    return {name: row.tolist() for name, row in zip(chosen.names, chosen.weights)}

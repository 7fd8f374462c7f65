"""The grid of a surface: its axes and coordinates before the measurement, its Dataset after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.errors import LandscapeError, require_whole
from landscape.risk import ClassRisk, Lanes
from landscape.risk.points import example_dimension
from landscape.surface.axes import Axes, random_axes

Kind = Literal["line", "plane"]
KINDS: tuple[Kind, ...] = ("line", "plane")
DEFAULT_LINE = np.linspace(-1.0, 1.0, 51)
DEFAULT_PLANE = np.linspace(-1.0, 1.0, 21)
DEFAULT_LABELS = ("alpha (first direction)", "beta (second direction)")

Directions = Sequence[Tensor] | Axes | Sequence[Axes]


def coordinates(values: ArrayLike | None, default: np.ndarray, name: str) -> np.ndarray:
    """Return increasing finite coordinates; LandscapeError for anything else."""
    try:
        array = default if values is None else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise LandscapeError(f"{name}: expected at least two finite, increasing coordinates, got {values!r}")
    return array


def choose_axes(
    risk: ClassRisk, kind: Kind, directions: Directions | None, *, num_pairs: int, seed: int, **how: Any
) -> list[Axes]:
    """Return the axes of every pair: those given, or ``num_pairs`` random ones; ``how`` are options of the latter.

    Raises
    ------
    LandscapeError
        If they are not as many as the kind needs, do not fit the weights, are zero or not finite.
    """
    num = 1 if kind == "line" else 2
    if directions is None:
        require_whole("num_pairs", num_pairs, 1)
        return [random_axes(risk, num=num, seed=seed, pair=pair, **how) for pair in range(num_pairs)]
    chosen = _as_axes(risk, directions, kind, num)
    for axes in chosen:
        if len(axes.vectors) != num:
            raise LandscapeError(f"a {kind} needs {num} direction(s), got {len(axes.vectors)}")
        for d in axes.vectors:
            if d.shape != risk.theta.shape:
                raise LandscapeError(f"expected directions of shape {tuple(risk.theta.shape)}, got {tuple(d.shape)}")
    return chosen


def _as_axes(risk: ClassRisk, directions: Directions, kind: Kind, num: int) -> list[Axes]:
    if isinstance(directions, Axes):
        return [directions]
    given = list(directions)
    if given and all(isinstance(entry, Axes) for entry in given):
        return [entry for entry in given if isinstance(entry, Axes)]
    if len(given) != num:
        raise LandscapeError(f"a {kind} needs {num} direction(s), got {len(given)}")
    vectors = tuple(torch.as_tensor(d).to(device=risk.theta.device, dtype=torch.float64) for d in given)
    return [Axes(vectors, "given", "as given", DEFAULT_LABELS[:num], {"kind": "given"})]


def point_at(risk: ClassRisk, axes: Axes, alpha: float, beta: float = 0.0) -> Tensor:
    """Return the point (n,) at some coordinates: from the centre, summed in float64, rounded once."""
    centre = risk.theta if axes.origin is None else axes.origin.to(risk.theta.device)
    point = centre.double()
    if len(axes.vectors) > 1:
        point = point + beta * axes.vectors[1].to(point)
    return (point + alpha * axes.vectors[0].to(point)).to(risk.theta.dtype)


def corners(alphas: np.ndarray, betas: np.ndarray) -> list[tuple[float, float]]:
    """Return the corners of a grid and its centre."""
    ends = [(float(a), float(b)) for b in {betas[0], betas[-1]} for a in (alphas[0], alphas[-1])]
    return [(0.0, 0.0), *sorted(ends)]


def assemble(
    values: Mapping[str, np.ndarray],
    *,
    pairs: Sequence[Axes],
    alphas: np.ndarray,
    betas: np.ndarray | None,
    lanes: Lanes,
) -> xr.Dataset:
    """Return the Dataset of values (pairs * rows * columns, ...); a line has no rows."""
    rows = [] if betas is None else [len(betas)]
    shape = (len(pairs), *rows, len(alphas))
    dims = ("pair", "alpha") if betas is None else ("pair", "beta", "alpha")
    dataset = xr.Dataset(coords={"pair": np.arange(len(pairs)), "alpha": alphas, "lane": list(lanes.names)})
    if betas is not None:
        dataset = dataset.assign_coords(beta=betas)
    for name, found in values.items():
        last = example_dimension(name) if name.endswith("example_loss") else "lane"
        dataset[name] = ((*dims, last), found.reshape(*shape, found.shape[-1]))
    dataset["done"] = (dims, np.ones(shape, dtype=bool))
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    return dataset.assign_coords(lane_kind=("lane", list(lanes.kinds)), lane_group=("lane", list(lanes.groups)))


def unmoved(risk: ClassRisk, pairs: Sequence[Axes]) -> str:
    """Return which tensors no direction moves: their number, and how many of them are biases and norm parameters."""
    layout = risk.layout
    still = [True] * len(layout.names)
    for vector in (v for axes in pairs for v in axes.vectors):
        still = [was and not bool(part.any()) for was, part in zip(still, layout.unflatten(vector))]
    shapes = [shape for shape, is_still in zip(layout.shapes, still) if is_still]
    if not shapes:
        return "none"
    flat = sum(len(shape) <= 1 for shape in shapes)
    return f"{len(shapes)} of {len(still)} tensors, {flat} of them biases and norm parameters"


def described(pairs: Sequence[Axes], labels: Sequence[str] | None) -> dict[str, Any]:
    """Return the attributes that say what the axes are."""
    first = pairs[0]
    named = list(labels or first.labels)
    named += DEFAULT_LABELS[len(named) :]
    return {
        "normalization": first.normalization,
        "axes_kind": first.kind,
        "alpha_label": named[0],
        "beta_label": named[1],
        "direction_norms": [list(axes.norms) for axes in pairs],
        "direction_cosines": [axes.cosine for axes in pairs if axes.cosine is not None],
        "recipes": json.dumps([dict(axes.recipe) for axes in pairs]),
        "marks": json.dumps([list(mark) for mark in first.marks]),
        "axes": json.dumps(dict(first.attributes)),
    }

"""Surfaces of several checkpoints that can be compared: the same images, seeds and grid, and their paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.results import Journal
from landscape.risk import ClassRisk, LaneChoice, ModelRisk
from landscape.risk.arithmetic import precise_arithmetic
from landscape.surface.cube import examples_of, kept_examples, splits_of
from landscape.surface.differences import difference
from landscape.surface.extent import automatic_range
from landscape.surface.measure import measure_surface
from landscape.surface.radius import RadiusOptions, measure_radii

Axis = Callable[[ClassRisk], Any]


def require_same_images(risks: Mapping[str, ClassRisk]) -> None:
    """Raise LandscapeError, naming what differs, unless all risks are seen on the same images of the same classes."""
    (first_name, first), *others = risks.items()
    for name, risk in others:
        if risk.class_names != first.class_names:
            raise LandscapeError(
                f"'{name}' and '{first_name}' have different classes: compare checkpoints of one data set"
            )
        if not risk.class_counts.equal(first.class_counts):
            raise LandscapeError(
                f"'{name}' and '{first_name}' are seen on different numbers of images: use one split and cap"
            )
        for key in ("dataset", "data_recipe", "split", "max_per_class"):
            if risk.attributes.get(key) != first.attributes.get(key):
                raise LandscapeError(
                    f"'{name}' and '{first_name}' differ in {key}, {risk.attributes.get(key)} and "
                    f"{first.attributes.get(key)}: compare checkpoints on the same images"
                )


@precise_arithmetic()
def measure_surfaces(
    risks: Mapping[str, ClassRisk],
    lanes: LaneChoice | None = None,
    *,
    axes: Axis | None = None,
    held_out: Mapping[str, ModelRisk] | None = None,
    journals: Mapping[str, Journal] | None = None,
    **options: Any,
) -> tuple[dict[str, xr.Dataset], dict[str, xr.Dataset]]:
    """Measure the same line or plane of several checkpoints, and every later one minus the first.

    Parameters
    ----------
    risks
        ``{name: risk}`` on the same images; the directions of each are scaled by its own weights.
    axes
        What ``directions`` is for each risk; by default random ones, from the same draws for all.
    held_out, journals
        By the same names, as for :func:`landscape.surface.measure_surface`.
    **options
        Of :func:`landscape.surface.measure_surface`, the same for all.

    Returns
    -------
    tuple of two dicts
        Surfaces by name; and, for networks, ``{"B minus A": difference}`` with 0.95 intervals over images, paired image
        by image, see :func:`landscape.surface.difference`.

    Raises
    ------
    LandscapeError
        If the risks are not on the same images, or as for one surface.
    """
    if not risks:
        raise LandscapeError("expected at least one checkpoint, got none")
    require_same_images(risks)
    # A refined plane holds its examples only where it was evaluated: no differences of such.
    is_paired = all(isinstance(risk, ModelRisk) for risk in risks.values()) and options.get("refine") is None
    wanted = len(risks) > 1 and is_paired
    surfaces = {
        name: measure_surface(
            risk,
            lanes,
            directions=None if axes is None else axes(risk),
            held_out=None if held_out is None else held_out[name],
            journal=None if journals is None else journals[name],
            **{**options, "keep_examples": wanted or options.get("keep_examples", False)},
        )
        for name, risk in risks.items()
    }
    return surfaces, _differences(surfaces, lanes, seed=int(options.get("seed", 0))) if wanted else {}


def _differences(surfaces: Mapping[str, xr.Dataset], lanes: LaneChoice | None, *, seed: int) -> dict[str, xr.Dataset]:
    cubes = {name: kept_examples(surface) for name, surface in surfaces.items()}
    (first_name, first), *others = cubes.items()
    own = splits_of(first)[0]
    out = {}
    for name, cube in others:
        found = difference(examples_of(cube, split=own), examples_of(first, split=own), lanes=lanes, seed=seed)
        out[f"{name} minus {first_name}"] = found.assign_attrs(first=name, second=first_name)
    return out


def shared_range(
    risks: Mapping[str, ClassRisk],
    lanes: LaneChoice | None = None,
    *,
    vectors: Callable[[ClassRisk], Sequence[Tensor]],
    options: RadiusOptions | None = None,
    num_points: int = 51,
    journal: Journal | None = None,
) -> tuple[np.ndarray, dict[str, xr.Dataset]]:
    """Return coordinates that show every checkpoint's lanes rise by the largest delta, and the radii they come from.

    ``vectors`` gives the directions of one axis for a risk. See :func:`landscape.surface.automatic_range` for the rule.
    """
    radii = {
        name: measure_radii(risk, lanes, directions=list(vectors(risk)), options=options, journal=journal)
        for name, risk in risks.items()
    }
    low, high = automatic_range(list(radii.values()))
    return np.linspace(low, high, num_points), radii

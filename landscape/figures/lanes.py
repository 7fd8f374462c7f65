"""Which lanes a figure draws, in which order and look, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures.style import LANE_LOOKS, Look, class_looks

Results: TypeAlias = xr.Dataset | Mapping[str, xr.Dataset]

GROUP_LANES = ("head", "medium", "tail")


def as_mapping(data: Results, variable: str, *dims: str) -> dict[str, xr.Dataset]:
    """Return ``{optimizer: Dataset}``; a lone Dataset gets its own optimizer's name, or none.

    Raises
    ------
    LandscapeError
        If nothing was given, or a Dataset lacks ``variable``, a dimension that the figure runs over, or lanes.
    """
    if isinstance(data, xr.Dataset):
        optimizer = str(data.attrs.get("optimizer", ""))
        data = {"" if optimizer == "unknown" else optimizer: data}
    if not isinstance(data, Mapping) or not data:
        given = "none" if isinstance(data, Mapping) else type(data).__name__
        raise LandscapeError(
            f"expected a Dataset or a mapping of names to Datasets, got {given}: measure something first"
        )
    for name, dataset in data.items():
        where = f" of '{name}'" if name else ""
        if not isinstance(dataset, xr.Dataset):
            raise LandscapeError(f"expected a Dataset as the results{where}, got {type(dataset).__name__}")
        if variable not in dataset:
            held = ", ".join(map(str, dataset.data_vars)) or "nothing"
            raise LandscapeError(
                f"expected the variable '{variable}' in the results{where}, got {held}: measure it first"
            )
        for dim in ("lane", *dims):
            if dim not in dataset.dims:
                one = (
                    f"one {dim} alone: select with a list, {dim}=[...]"
                    if dim in dataset.coords
                    else "another measurement"
                )
                raise LandscapeError(f"expected the dimension '{dim}' in the results{where}, got {one}")
        if dataset.sizes["lane"] == 0:
            raise LandscapeError(f"expected at least one lane in the results{where}, got none: choose other lanes")
    return {str(name): cast(xr.Dataset, dataset) for name, dataset in data.items()}


def all_lanes(datasets: Iterable[xr.Dataset]) -> list[str]:
    """Return the lanes of several Datasets, each once, in the order of first appearance."""
    return list(dict.fromkeys(str(lane) for dataset in datasets for lane in np.atleast_1d(dataset["lane"].values)))


def _per_lane(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return {lane: value} of a coordinate or variable over lanes; empty where it is not recorded."""
    if name not in dataset.variables:
        return {}
    return dict(zip(all_lanes([dataset]), np.atleast_1d(dataset[name].values).tolist()))


def lane_kind(dataset: xr.Dataset, lane: str) -> str:
    """Return ``class``, ``group`` or ``all``."""
    guess = "group" if lane in GROUP_LANES else "all" if lane == "all" else "class"
    return str(_per_lane(dataset, "lane_kind").get(lane, guess))


def lane_group(dataset: xr.Dataset, lane: str) -> str:
    """Return ``head``, ``medium`` or ``tail`` for a class or group lane, ``all`` for the whole, `` `` if unknown."""
    return lane if lane_kind(dataset, lane) != "class" else str(_per_lane(dataset, "lane_group").get(lane, ""))


def num_examples(dataset: xr.Dataset, lane: str) -> int | None:
    """Return the number of examples behind a lane, or None where it is not recorded."""
    value = float(_per_lane(dataset, "num_examples").get(lane, math.nan))
    return int(value) if math.isfinite(value) else None


def class_lanes(dataset: xr.Dataset) -> list[str]:
    """Return the class lanes from head to tail: by group, then by falling number of examples, then as stored."""
    kinds, groups, counts = (_per_lane(dataset, name) for name in ("lane_kind", "lane_group", "num_examples"))
    guess = dict.fromkeys(GROUP_LANES, "group") | {"all": "all"}
    lanes = [lane for lane in all_lanes([dataset]) if kinds.get(lane, guess.get(lane, "class")) == "class"]
    order = {name: rank for rank, name in enumerate(GROUP_LANES)}

    def rank(lane: str) -> tuple[int, float]:
        count = float(counts.get(lane, 0))
        return order.get(str(groups.get(lane, "")), 3), -count if math.isfinite(count) else 0.0

    return sorted(lanes, key=rank)


def choose_lanes(
    datasets: Mapping[str, xr.Dataset], lanes: str | Sequence[str] | None, default: Sequence[str]
) -> list[str]:
    """Return the lanes to draw.

    Parameters
    ----------
    datasets
        What is drawn; a lane must exist in at least one of them.
    lanes
        Names, or ``"classes"`` (head to tail), ``"groups"``, ``"every"``, or None for ``default``.
    default
        Taken as far as present; if none is, all lanes are drawn.

    Raises
    ------
    LandscapeError
        If a name is unknown, with the nearest known one.
    """
    known = all_lanes(datasets.values())
    first = next(iter(datasets.values()))
    classes = list(dict.fromkeys(lane for dataset in datasets.values() for lane in class_lanes(dataset)))
    rest = [lane for lane in known if lane not in classes]
    if lanes is None:
        return [lane for lane in default if lane in known] or [*classes, *rest]
    if isinstance(lanes, str):
        words = {"classes": classes, "groups": [lane for lane in rest if lane != "all"], "every": [*classes, *rest]}
        chosen = words.get(lanes, [lanes])
        if not chosen:
            raise LandscapeError(f"expected {lanes} among the lanes, got {', '.join(known)}: choose lanes by name")
    else:
        chosen = [str(lane) for lane in lanes]
    for lane in chosen:
        if lane not in known:
            raise unknown_name("lane", lane, [*known, "classes", "groups", "every"])
    if not chosen:
        raise LandscapeError(f"expected at least one lane, got none: choose from {', '.join(all_lanes([first]))}")
    return chosen


def lane_looks(datasets: Mapping[str, xr.Dataset], lanes: Sequence[str]) -> dict[str, Look]:
    """Return a look per lane: fixed for head, medium, tail, all; a head-to-tail ramp for classes."""
    ordered = list(dict.fromkeys(lane for dataset in datasets.values() for lane in class_lanes(dataset)))
    ordered = [lane for lane in ordered if lane in lanes]
    looks = class_looks(ordered)
    looks.update({lane: LANE_LOOKS.get(lane, LANE_LOOKS["all"]) for lane in lanes if lane not in looks})
    return looks


def lane_label(dataset: xr.Dataset, lane: str) -> str:
    """Return the lane's name with its number of examples."""
    count = num_examples(dataset, lane) if lane in all_lanes([dataset]) else None
    return lane if count is None else f"{lane} (n={count})"


def thinned(names: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the names with all but every k-th blank, so that at most about ``most`` remain legible."""
    every = max(1, math.ceil(len(names) / most))
    return tuple(name if k % every == 0 else "" for k, name in enumerate(names))

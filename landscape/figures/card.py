"""The scale card: what a reader must know before comparing a figure with another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from landscape.figures.lanes import all_lanes, num_examples
from landscape.figures.numbers import short

_FIRST = (("objective", "objective"), ("split", "split"))
_REST = (
    ("normalization", "normalisation"),
    ("excluded", "excluded tensors"),
    ("batchnorm", "BatchNorm"),
    ("augmentation", "augmentation"),
    ("parameters", "parameters"),
    ("group_rule", "groups"),
    ("seed", "seed"),
    ("training_seed", "training seed"),
    ("num_training_seeds", "training seeds"),
    ("dtype", "dtype"),
    ("precision", "precision"),
)
# What a radius or a noise scale is measured in.
_LENGTHS = ("radius", "sigma", "rho", "distance")
# Up to so many numbers stand one by one; more are given as a range.
_MOST_NUMBERS = 5


def scale_card(datasets: Mapping[str, xr.Dataset], *, lanes: Sequence[str] = ()) -> str:
    """Return what a reader must know to compare this figure with another one; what is not recorded is left out.

    Parameters
    ----------
    datasets
        What is drawn.
    lanes
        The lanes that are drawn: their numbers of examples, losses at the weights and logit norms are given.

    Returns
    -------
    str
        Objective, split, examples, norm of the weights, loss level, logit norm, normalisation, excluded tensors,
        BatchNorm policy, lengths, seeds and precision, joined by dots; one line, which the backends wrap.
    """
    parts = [*_texts(datasets, _FIRST)]
    parts += [text for text in (_counts(datasets, lanes), _norms(datasets)) if text]
    parts += [text for text in (_levels(datasets, lanes), _logits(datasets, lanes)) if text]
    parts += [*_texts(datasets, _REST), *_lengths(datasets)]
    return " · ".join(parts)


def centre_of(values: xr.DataArray) -> xr.DataArray | None:
    """Return the values at the weights (alpha = beta = 0), None where the grid does not hold that point."""
    for axis in ("alpha", "beta"):
        if axis in values.dims:
            at = int(np.argmin(np.abs(values[axis].values)))
            if abs(float(values[axis].values[at])) > 1e-9:
                return None
            values = values.isel({axis: at})
    return values


def _texts(datasets: Mapping[str, xr.Dataset], keys: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for key, label in keys:
        found = list(dict.fromkeys(str(d.attrs[key]) for d in datasets.values() if str(d.attrs.get(key, "")) != ""))
        if found:
            parts.append(f"{label}: {' / '.join(found)}")
    return parts


def _counts(datasets: Mapping[str, xr.Dataset], lanes: Sequence[str]) -> str:
    """Return n of the lanes, or the range of the classes' where there are many; per result where they differ."""
    found: dict[str, str] = {}
    for name, dataset in datasets.items():
        known = all_lanes([dataset])
        counts = {lane: n for lane in lanes if lane in known and (n := num_examples(dataset, lane)) is not None}
        if counts:
            found[name] = _listed({lane: float(n) for lane, n in counts.items()})
    return _per_result("n", found)


def _norms(datasets: Mapping[str, xr.Dataset]) -> str:
    norms = {name: _number(dataset.attrs.get("theta_norm")) for name, dataset in datasets.items()}
    return _per_result("‖w‖", {name: short(value) for name, value in norms.items() if value is not None})


def _levels(datasets: Mapping[str, xr.Dataset], lanes: Sequence[str]) -> str:
    """Return the loss of the lanes at the weights: the level on which curvature depends."""
    found = {}
    for name, dataset in datasets.items():
        if "loss_at_weights" in dataset:
            here: xr.DataArray | None = dataset["loss_at_weights"].rename(affected_lane="lane")
        else:
            here = centre_of(dataset["loss"]) if "loss" in dataset and "lane" in dataset["loss"].dims else None
        if here is None:
            continue
        if "pair" in here.dims:
            here = here.isel(pair=0)
        if here.dims == ("lane",):
            found[name] = _listed(_of_lanes(here, lanes))
    return _per_result("loss at the weights", found)


def _logits(datasets: Mapping[str, xr.Dataset], lanes: Sequence[str]) -> str:
    found = {}
    for name, dataset in datasets.items():
        value = _number(dataset.attrs.get("logit_norm"))
        if "logit_norm" in dataset and dataset["logit_norm"].dims == ("lane",):
            found[name] = _listed(_of_lanes(dataset["logit_norm"], lanes))
        elif value is not None:
            found[name] = short(value)
    return _per_result("logit norm", found)


def _lengths(datasets: Mapping[str, xr.Dataset]) -> list[str]:
    """Return what radii and noise scales are measured in."""
    parts: dict[str, None] = {}
    for dataset in datasets.values():
        for key in _LENGTHS:
            if key in dataset.coords and dataset[key].attrs.get("units"):
                parts[f"{key}: {dataset[key].attrs['units']}"] = None
    return list(parts)


def _of_lanes(values: xr.DataArray, lanes: Sequence[str]) -> dict[str, float]:
    known = values["lane"].values.tolist()
    chosen = {lane: float(values.sel(lane=lane)) for lane in lanes if lane in known}
    return {lane: value for lane, value in chosen.items() if math.isfinite(value)}


def _listed(values: Mapping[str, float]) -> str:
    """Return ``head 0.02, tail 1.3``; a range where there are many; nothing for nothing."""
    if len(values) <= _MOST_NUMBERS:
        return ", ".join(f"{lane} {_written(value)}" for lane, value in values.items())
    return f"{_written(min(values.values()))} to {_written(max(values.values()))} ({len(values)} lanes)"


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else short(value)


def _per_result(label: str, found: Mapping[str, str]) -> str:
    """Return one text for all results where they agree, else one each with its name."""
    told = {name: text for name, text in found.items() if text}
    if not told:
        return ""
    if len(set(told.values())) == 1:
        return f"{label}: {next(iter(told.values()))}"
    return f"{label}: {'; '.join(f'{name} {text}'.strip() for name, text in told.items())}"


def _number(value: object) -> float | None:
    if isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value):
        return float(value)
    return None

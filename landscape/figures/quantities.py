"""What the variables of a surface are called and mean, where their errors stand, and what was really evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures import preparation as prep
from landscape.figures.picture import Array, Line, Mark, Points, Text
from landscape.figures.style import INK, PAPER

# Longest first: a name is stripped of the first that fits.
PREFIXES = {
    "recalibrated_held_out_": "held-out, recalibrated",
    "recalibrated_": "recalibrated",
    "held_out_": "held-out",
}
# Plain cross-entropy is the loss of these objectives themselves.
_TOYS = ("analytic", "")
_MEANINGS = {
    "error": ("error", "share of examples"),
    "margin": ("margin of the logits, true class minus best other", ""),
}
# Among so many marked points each one is named; of a longer path only its ends and a few between.
_MOST_NAMED = 5


def split_name(variable: str) -> tuple[str, str]:
    """Return (prefix, plain name) of a variable.

    Examples
    --------
    >>> split_name("recalibrated_held_out_loss"), split_name("error")
    (('recalibrated_held_out_', 'loss'), ('', 'error'))
    """
    for prefix in PREFIXES:
        if variable.startswith(prefix):
            return prefix, variable.removeprefix(prefix)
    return "", variable


def meaning(dataset: xr.Dataset, variable: str, *, relative: bool = False) -> str:
    """Return what an axis says of a variable: its meaning and its unit."""
    prefix, plain = split_name(variable)
    objective = str(dataset.attrs.get("objective", ""))
    if plain == "loss":
        name, unit = "loss" if objective in _TOYS else "cross-entropy", "nats per example"
    elif plain == "own_loss":
        name, unit = "training loss" + (f" ({objective})" if 0 < len(objective) <= 24 else ""), "per example"
    else:
        name, unit = _MEANINGS.get(plain, (plain.replace("_", " "), str(dataset[variable].attrs.get("units", ""))))
    named = f"{name} ({PREFIXES[prefix]})" if prefix else name
    if relative:
        named = f"{named}\nminus its value at the weights"
    return ", ".join(text for text in (named, unit) if text)


def is_loss(variable: str) -> bool:
    """Whether a variable is a loss, which may span decades."""
    return split_name(variable)[1] in ("loss", "own_loss")


def noun(variable: str) -> str:
    """Return the word for titles: Loss, Training loss, Error, Margin."""
    return split_name(variable)[1].replace("own_loss", "training loss").replace("_", " ").capitalize()


def stderr_name(dataset: xr.Dataset, variable: str) -> str:
    """Return the variable that holds the paired standard error over images of a change of ``variable``, or ``""``."""
    prefix, plain = split_name(variable)
    for name in (f"{plain}_increase_stderr", "increase_stderr" if plain == "loss" else f"{plain}_stderr"):
        if f"{prefix}{name}" in dataset:
            return f"{prefix}{name}"
    return ""


def masked(dataset: xr.Dataset, variable: str) -> xr.DataArray:
    """Return the values with everything that is neither done nor interpolated, or not finite, as NaN."""
    values = dataset[variable]
    if "done" in dataset:
        kept = dataset["done"]
        if "interpolated" in dataset:
            kept = kept | dataset["interpolated"]
        values = values.where(kept.astype(bool))
    return values.where(np.isfinite(values))


def minus_centre(values: xr.DataArray) -> xr.DataArray:
    """Return the values minus their own at the weights.

    Raises
    ------
    LandscapeError
        If the grid does not hold the weights, or they are not finished.
    """
    here = prep.centre_of(values)
    if here is None or not bool(np.isfinite(here).any()):
        origin = "(0, 0)" if "beta" in values.dims else "0"
        raise LandscapeError(
            f"expected the weights {origin} among the finished grid points, got none: use an odd number of points"
        )
    return values - here.drop_vars(["alpha", "beta"], errors="ignore")


def axis_label(dataset: xr.Dataset, axis: str) -> str:
    """Return what an axis through the weights means, with its unit."""
    units = str(dataset[axis].attrs.get("units", ""))
    default = {"alpha": "α, along direction 1", "beta": "β, along direction 2"}[axis]
    if "beta" not in dataset.dims:
        default = "α, along the direction"
    label = str(dataset.attrs.get(f"{axis}_label", default))
    return f"{label} [{units}]" if units else label


def evaluated(dataset: xr.Dataset, pair: int | None = None) -> Array | None:
    """Return (beta, alpha) or (alpha,): where the loss was evaluated; None where nothing was interpolated."""
    if "interpolated" not in dataset or not bool(dataset["interpolated"].any()):
        return None
    guessed = dataset["interpolated"].astype(bool)
    done = dataset["done"].astype(bool) if "done" in dataset else xr.ones_like(guessed)
    kept = done & ~guessed
    if "pair" in kept.dims:
        kept = kept.sel(pair=pair) if pair is not None else kept.isel(pair=0)
    return np.asarray(kept.transpose(..., "alpha").values, dtype=bool)


def interpolation_note(datasets: Iterable[xr.Dataset], lanes: Sequence[str], pair: int | None = None) -> str:
    """Return how much of a picture was evaluated and how well the rest was checked; nothing where all was evaluated."""
    notes = []
    for dataset in datasets:
        kept = evaluated(dataset, pair)
        if kept is None:
            continue
        text = f"{int(kept.sum())} of {kept.size} points evaluated (dots), the rest interpolated"
        error = _checked_error(dataset, lanes, pair)
        text += f", checked error ≤ {prep.short(error)}" if np.isfinite(error) else ", error not recorded"
        notes.append(text)
    return "; ".join(dict.fromkeys(notes)) + "." if notes else ""


def _checked_error(dataset: xr.Dataset, lanes: Sequence[str], pair: int | None) -> float:
    if "interpolation_error" not in dataset:
        return float("nan")
    error = dataset["interpolation_error"]
    if "pair" in error.dims:
        error = error.sel(pair=pair) if pair is not None else error.isel(pair=0)
    known = [lane for lane in lanes if lane in error["lane"].values.tolist()] if "lane" in error.dims else []
    values = error.sel(lane=known).values if known else error.values
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else float("nan")


def marked_points(dataset: xr.Dataset) -> list[tuple[float, float, str]]:
    """Return (alpha, beta, label) of the points that a result names: checkpoints of a path, or those of a plane.

    Raises
    ------
    LandscapeError
        If the attribute ``marks`` is not a list of such triples.
    """
    given: Any = dataset.attrs.get("marks", [])
    try:
        listed = json.loads(given) if isinstance(given, str) and given else given or []
        return [(float(alpha), float(beta), str(label)) for alpha, beta, label in listed]
    except (ValueError, TypeError):
        raise LandscapeError(
            f"expected marks as a list of [alpha, beta, label], got {str(given)[:60]!r}: record each marked point so"
        ) from None


def path_marks(
    points: Sequence[tuple[float, float, str]], limits: tuple[tuple[float, float], tuple[float, float]]
) -> list[Mark]:
    """Return marked points of a plane as a line with markers, named where they lie within the plane."""
    if not points:
        return []
    x, y = np.array([point[0] for point in points]), np.array([point[1] for point in points])
    marks: list[Mark] = [
        Line(x, y, INK, "", width=2.0),
        Line(x, y, PAPER, "", width=1.1),
        Points(x, y, INK, "circle", "", 4.6),
        Points(x, y, PAPER, "circle", "", 3.0, hover=tuple(label for _, _, label in points)),
    ]
    step = 1 if len(points) <= _MOST_NAMED else -(-len(points) // 3)
    (left, right), (low, high) = limits
    middle = (left + right) / 2
    for k, (alpha, beta, label) in enumerate(points):
        named = k % step == 0 or k == len(points) - 1
        if named and label and left <= alpha <= right and low <= beta <= high:
            side = -1 if alpha > middle else 1
            marks.append(Text(alpha, beta, label, PAPER, "left" if side > 0 else "right", (5.0 * side, -5.0), 6.5))
    return marks


def error_note(data: Mapping[str, xr.Dataset], variable: str, lanes: Sequence[str]) -> str:
    """Return the largest standard error over images of what is drawn, or nothing where none is recorded."""
    largest = []
    for dataset in data.values():
        name = stderr_name(dataset, variable)
        if name:
            known = [lane for lane in lanes if lane in dataset["lane"].values.tolist()]
            values = masked(dataset[[name, *({"done"} & set(dataset.data_vars))]], name).sel(lane=known).values
            largest.append(values[np.isfinite(values)].max(initial=0.0))
    if not largest:
        return ""
    return (
        f"Standard error over images of a change from the weights (paired): at most {prep.short(float(max(largest)))}."
    )

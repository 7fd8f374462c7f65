"""Figures of spectra layer by layer, and of head against tail at one sample size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.perturbations import value_axis
from landscape.figures.picture import Array, Axis, Backend, Mark, Panel, Picture, Points
from landscape.figures.style import INK, LANE_LOOKS, Look

# Above so many layers every other name is left out.
MOST_NAMES = 48
# value, its error below and above, what the axis says; "{}" in a key is the variable itself.
_LAYER_ROWS = (
    ("lambda_max", "λmax of the block"),
    ("lambda_min", "λmin of the block"),
    ("trace", "trace of the block"),
    ("negative_energy", "negative energy"),
)
_MATCHED = (
    ("lambda_max", "λmax"),
    ("lambda_min", "λmin"),
    ("ratio", "max(−λmin, 0) / λmax"),
    ("gradient_norm", "gradient norm"),
)
_ALONE = Look("#0072B2")


def plot_layers(
    layers: prep.Results, *, lanes: str | Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw the spectrum of every layer's diagonal block: both ends, trace and negative energy, with their errors.

    Parameters
    ----------
    layers
        A ``layers`` Dataset, or ``{optimizer: Dataset}``: a column of panels each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; head and tail by default.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
    """
    data = prep.as_mapping(layers, "lambda_min", "layer")
    chosen = prep.choose_lanes(data, lanes, ("head", "tail"))
    looks = prep.lane_looks(data, chosen)
    named = set(prep.thinned(chosen, 16))
    rows = []
    for key, label in _LAYER_ROWS:
        drawn = {name: _layer_marks(dataset, key, chosen, looks, named) for name, dataset in data.items()}
        y = value_axis(label, [mark for marks in drawn.values() for mark in marks])
        if key == "negative_energy" and y.scale == "linear" and y.limits is not None:  # a share is never negative
            y = Axis(label, limits=(-0.08 * y.limits[1], y.limits[1]))
        row: list[Panel | None] = []
        for name, dataset in data.items():
            is_last = key == _LAYER_ROWS[-1][0]
            found = [str(layer) for layer in dataset["layer"].values]
            names = prep.thinned(found, MOST_NAMES) if is_last else ("",) * len(found)
            x = Axis("", limits=(-0.6, len(found) - 0.4), categories=names, tilted=is_last)
            shown = y if not row else Axis("", y.scale, y.limits, y.linear_within)
            row.append(Panel(name if key == _LAYER_ROWS[0][0] else "", x, shown, drawn[name]))
        rows.append(tuple(row))
    widest = max(dataset.sizes["layer"] for dataset in data.values())
    size = (min(max(5.2, 0.26 * widest + 1.0), 12.0) if len(data) == 1 else 4.4, 1.5)
    note = (
        "Layers in the order of the network. λmin of a block is at least that of the whole, λmax at most; traces add up. "
        "Bars: residual and rounding (λ), standard error (trace), 95 % interval (negative energy)."
    )
    return render(
        Picture("Spectrum layer by layer", tuple(rows), prep.scale_card(data), note, panel_size=size), backend
    )


def _layer_marks(
    dataset: xr.Dataset, key: str, lanes: Sequence[str], looks: dict[str, Look], named: set[str]
) -> tuple[Mark, ...]:
    present = [lane for lane in lanes if lane in prep.all_lanes([dataset])]
    reach = min(0.09 * (len(present) - 1), 0.35)
    spread = np.linspace(-reach, reach, len(present))
    marks: list[Mark] = []
    for lane, shift in zip(present, spread):
        at = dataset.sel(lane=lane)
        values = at[key].values
        hover = tuple(f"{lane}, {layer}: {prep.short(v)}" for layer, v in zip(at["layer"].values, values))
        label = prep.lane_label(dataset, lane) if lane in named else ""
        look, x = looks[lane], np.arange(len(values)) + shift
        marks.append(Points(x, values, look.colour, look.marker, label, 3.6, 0.9, _error(at, key), hover))
    return tuple(marks)


def _error(at: xr.Dataset, key: str) -> Array | None:
    """Return the error bars (2, k) of a variable, zero where none is known."""
    values = at[key].values
    if f"{key}_residual" in at:
        rounding = np.nan_to_num(at["noise_floor"].values) if "noise_floor" in at else 0.0
        both = np.stack([at[f"{key}_residual"].values + rounding] * 2)
    elif key == "negative_energy" and f"{key}_low" in at:
        both = np.stack([values - at[f"{key}_low"].values, at[f"{key}_high"].values - values])
    elif f"{key}_stderr" in at:
        both = np.stack([at[f"{key}_stderr"].values] * 2)
    else:
        return None
    return np.maximum(np.nan_to_num(both), 0.0)


def plot_matched(
    matched: prep.Results, *, lanes: str | Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw extremes, ratio and gradient norm of each lane at one sample size, beside their values at full size.

    Parameters
    ----------
    matched
        A ``matched`` Dataset, or ``{optimizer: Dataset}``: a column of panels each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Every draw, mean ± standard error over draws, and a hollow mark for the value at full size.
    """
    data = prep.as_mapping(matched, "lambda_min_mean")
    chosen = prep.choose_lanes(data, lanes, ())
    first = next(iter(data.values()))
    panels = []
    for name, dataset in data.items():
        known = dataset.reindex(lane=chosen)
        for key, label in _MATCHED:
            marks = _matched_marks(dataset, known, key, chosen)
            marks = (
                *marks,
                Points(np.full(1, np.nan), np.full(1, np.nan), INK, "circle", "all images", 4.0, hollow=True),
            )
            heading = " · ".join(text for text in (name, label) if text)
            names = prep.thinned(chosen, 24 if len(chosen) > 24 else len(chosen))
            x = Axis("", limits=(-0.6, len(chosen) - 0.4), categories=names, tilted=True)
            panels.append(Panel(heading, x, value_axis("", marks), marks))
    width = min(max(3.2, 0.2 * len(chosen)), 6.0)
    size = first.attrs.get("size", "")
    note = (
        f"Every class cut down to {size or 'the same number of'} images, drawn without replacement: small marks are draws, "
        "filled ones their mean ± standard error, hollow ones all images. A class that has no more images is the same in "
        "every draw. What differs between head and tail at one size, beyond the errors, is not the sample size."
    )
    title = "Head against tail at matched sample size"
    picture = Picture(
        title, arrange(panels, len(panels) // 2, 2, ""), prep.scale_card(data), note, panel_size=(width, 2.1)
    )
    return render(picture, backend)


def _matched_marks(dataset: xr.Dataset, known: xr.Dataset, key: str, lanes: Sequence[str]) -> tuple[Mark, ...]:
    size = 4.4 if len(lanes) <= 40 else 2.4
    owners = [prep.lane_group(dataset, lane) if lane in prep.all_lanes([dataset]) else "" for lane in lanes]
    marks: list[Mark] = []
    for group in dict.fromkeys(owners):
        members = np.array([k for k, owner in enumerate(owners) if owner == group])
        look = LANE_LOOKS.get(group, _ALONE)
        at = known.isel(lane=members)
        mean, full = at[f"{key}_mean"].values, at[f"{key}_full"].values
        error = np.nan_to_num(at[f"{key}_stderr"].values)
        draws = at[key].transpose("lane", "draw").values
        x = members[:, None] + np.linspace(-0.22, 0.22, draws.shape[1])[None]
        hover = tuple(
            f"{lanes[k]}: {prep.with_error(m, e)} at matched size, {prep.short(f)} on all"
            for k, m, e, f in zip(members, mean, error, full)
        )
        marks += [
            Points(x.ravel(), draws.ravel(), look.colour, look.marker, "", 0.45 * size, 0.5),
            Points(members.astype(float), mean, look.colour, look.marker, group or "lanes", size, 1.0, error, hover),
            Points(members + 0.36, full, INK, look.marker, "", size * 0.9, 1.0, hollow=True),
        ]
    return tuple(marks)

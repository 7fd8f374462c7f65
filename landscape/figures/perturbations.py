"""Figures of the loss under perturbed weights: every random draw, its mean, and the worst case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.picture import Array, Axis, Backend, Bars, Mark, Panel, Picture, Points
from landscape.figures.style import INK, LANE_LOOKS, Look, optimizer_looks

_UNGROUPED = Look("#0072B2")
_KINDS = {
    "loss_increase": ("radius", "filter-normalised random direction, relative radius"),
    "gaussian_loss_increase": ("sigma", "Gaussian noise on the weights, standard deviation"),
    "own_loss_increase": ("radius", "training loss, filter-normalised random direction, relative radius"),
}


def plot_fluctuation(
    perturbation: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    variable: str = "loss_increase",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw how much the loss of each lane rises under random and under worst-case perturbations.

    Parameters
    ----------
    perturbation
        A ``perturbation`` Dataset, or ``{optimizer: Dataset}``, drawn side by side in the same panels.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default all, or the groups for more than
        three results.
    variable
        ``"loss_increase"``, ``"gaussian_loss_increase"`` or ``"own_loss_increase"``.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A row per radius with every draw as a point and the recorded mean ± standard error; then a row per worst-case
        radius.

    Raises
    ------
    LandscapeError
        If the variable or a lane is unknown, or there is nothing to draw.
    """
    if variable not in _KINDS:
        raise unknown_name("perturbation", variable, _KINDS)
    data = prep.as_mapping(perturbation, variable)
    chosen = prep.choose_lanes(data, lanes, ("head", "medium", "tail", "all") if len(data) > 3 else ())
    data = {
        name: dataset.reindex(lane=chosen) if list(dataset["lane"].values) != chosen else dataset
        for name, dataset in data.items()
    }
    dimension, meaning = _KINDS[variable]
    first = next(iter(data.values()))
    names = prep.thinned([prep.lane_label(first, lane) for lane in chosen], 40)
    width = 0.8 / len(data)
    offsets = {name: (k - (len(data) - 1) / 2) * width for k, name in enumerate(data)}
    panels: list[tuple[str, str, tuple[Mark, ...]]] = []
    for radius in np.unique(np.concatenate([d[dimension].values for d in data.values()])):
        marks = _draws(data, variable, dimension, float(radius), offsets, chosen)
        panels.append((f"{meaning} {prep.short(float(radius))}", "increase of the loss", marks))
    if variable == "loss_increase" and all("worst_case_increase" in d for d in data.values()):
        for rho in np.unique(np.concatenate([d["rho"].values for d in data.values()])):
            marks = _worst_case(data, float(rho), offsets, width, chosen)
            panels.append(
                (f"worst case within the L2 radius ρ = {prep.short(float(rho))}", "increase of the loss", marks)
            )
    rows = []
    for k, (title, label, drawn) in enumerate(panels):
        x = Axis(
            "",
            limits=(-0.6, len(chosen) - 0.4),
            categories=names if k == len(panels) - 1 else ("",) * len(chosen),
            tilted=k == len(panels) - 1,
        )
        rows.append((Panel(title, x, value_axis(label, drawn), drawn),))
    note = (
        "Points: single draws; black-rimmed marks: mean ± standard error over draws; bars: largest "
        "increase found within the radius."
    )
    size = (min(max(7.2, 0.3 * len(chosen) * max(1.0, 0.4 * len(data))), 14.0), 1.75)
    title = "Loss under perturbed weights"
    return render(Picture(title, tuple(rows), prep.scale_card(data), note, panel_size=size), backend)


def _draws(
    data: Mapping[str, xr.Dataset],
    variable: str,
    dimension: str,
    radius: float,
    offsets: Mapping[str, float],
    lanes: Sequence[str],
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for name, dataset in data.items():
        if radius not in dataset[dimension].values:
            continue
        at = dataset.sel({dimension: radius})
        values = at[variable].transpose("lane", "draw").values
        spread = np.linspace(-0.3, 0.3, values.shape[1]) * 0.8 / len(data) if values.shape[1] > 1 else np.zeros(1)
        centre = np.arange(len(lanes)) + offsets[name]
        for label, members, look in _looks(data, name, lanes):
            x = centre[members][:, None] + spread[None, :]
            marks.append(Points(x.ravel(), values[members].ravel(), look.colour, look.marker, label, 2.4, 0.55))
            if variable == "loss_increase" and "mean_increase" in at:
                mean, error = (at[key].values[members] for key in ("mean_increase", "mean_increase_stderr"))
                hover = tuple(f"{name} {lanes[m]}: {prep.with_error(a, b)}" for m, a, b in zip(members, mean, error))
                marks.append(Points(centre[members], mean, INK, look.marker, "", 4.2, 1.0, error, hover, hollow=True))
    return tuple(marks)


def _worst_case(
    data: Mapping[str, xr.Dataset], rho: float, offsets: Mapping[str, float], width: float, lanes: Sequence[str]
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for name, dataset in data.items():
        if rho not in dataset["rho"].values:
            continue
        at = dataset.sel(rho=rho)
        centre = np.arange(len(lanes)) + offsets[name]
        for _, members, look in _looks(data, name, lanes):
            height = at["worst_case_increase"].values[members]
            marks.append(
                Bars(
                    centre[members],
                    height,
                    width * 0.85,
                    look.colour,
                    look.hatch,
                )
            )
        if "one_step_increase" in at:
            label = "one gradient-ascent step of length ρ"
            marks.append(Points(centre, at["one_step_increase"].values, INK, "bar", label, 5.0))
    return tuple(marks)


def _looks(data: Mapping[str, xr.Dataset], name: str, lanes: Sequence[str]) -> list[tuple[str, Array, Look]]:
    """Return (legend label, lane positions, look): by optimizer where there are several, else by group."""
    if len(data) > 1:
        return [(name, np.arange(len(lanes)), optimizer_looks(list(data))[name])]
    dataset = next(iter(data.values()))
    groups: dict[str, list[int]] = {}
    for k, lane in enumerate(lanes):
        group = prep.lane_group(dataset, lane)
        groups.setdefault(group if group in LANE_LOOKS else "", []).append(k)
    return [(group, np.array(members), LANE_LOOKS.get(group, _UNGROUPED)) for group, members in groups.items()]


def value_axis(label: str, marks: Sequence[Mark]) -> Axis:
    """Return a linear axis from below zero, or a symlog one where lanes differ by more than a factor of thirty."""
    values = np.concatenate(
        [m.y if isinstance(m, Points) else m.height for m in marks if isinstance(m, Points | Bars)] or [np.zeros(1)]
    )
    values = np.asarray(values[np.isfinite(values)], dtype=float)
    ends = [
        (m.y if isinstance(m, Points) else m.height) + sign * np.nan_to_num(m.error)
        for m in marks
        if isinstance(m, Points | Bars) and m.error is not None
        for sign in (-1, 1)
    ]
    low, high = prep.finite_range([values, np.zeros(1), *ends]) if values.size else (0.0, 1.0)
    sizes = np.abs(values[values != 0])
    if sizes.size and np.quantile(sizes, 0.9) > 30 * np.quantile(sizes, 0.1):
        within = 10.0 ** np.floor(np.log10(np.quantile(sizes, 0.2)))
        return Axis(
            f"{label}\n(linear within ±{within:g})",
            "symlog",
            (min(low * 1.4, -0.25 * within), high * 1.6),
            float(within),
        )
    return Axis(label, limits=prep.padded(low, high, 0.08))

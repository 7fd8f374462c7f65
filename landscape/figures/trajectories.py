"""The figure of a training: both ends of the spectrum and their ratio against the epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import (
    Array,
    Axis,
    Backend,
    Band,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Text,
    symlog,
    symlog_inverse,
)
from landscape.figures.style import INK, MUTED, Look
from landscape.ratios import curvature_ratio

VERDICT_MARKERS = {
    "saddle": "triangle-down",
    "slope": "diamond",
    "no negative curvature": "circle",
    "undecided": "x",
    "refused": "cross",
}
_WIDE = 12.0  # a quotient of largest and smallest from which an axis is logarithmic
_NOTE = (
    "Bands: the intervals that hold the ends themselves, with the stated probability. The markers name the verdict at that "
    "epoch."
)


def plot_trajectory(
    trajectory: xr.Dataset, *, lanes: str | Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw lambda_min, lambda_max and abs(lambda_min) / lambda_max of several lanes against the epoch.

    Parameters
    ----------
    trajectory
        A ``trajectory`` Dataset (:func:`landscape.trajectory.measure_trajectory`).
    lanes
        Lane names, ``"classes"``, ``"groups"`` or ``"every"``; head and tail by default.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Three panels over one axis of epochs; vertical lines where the training changed its rule (deferred
        re-weighting, the optimizer's stage switch, steps of the learning rate), if the checkpoints record it.

    Raises
    ------
    LandscapeError
        If a lane is unknown or there is nothing to draw.
    """
    data = prep.as_mapping(trajectory, "lambda_min")
    chosen = prep.choose_lanes(data, lanes, ("head", "tail"))
    looks = prep.lane_looks(data, chosen)
    panels = [
        _panel(trajectory, chosen, looks, "smallest eigenvalue λmin", _end("lambda_min"), is_first=True),
        _panel(trajectory, chosen, looks, "largest eigenvalue λmax", _end("lambda_max")),
        _panel(trajectory, chosen, looks, "max(−λmin, 0) / λmax", _ratio),
    ]
    name = next(iter(data))
    picture = Picture(
        "Both ends of the Hessian's spectrum over the training" + (f", {name}" if name else ""),
        arrange(panels, len(panels), 1, _epochs_title(trajectory)),
        prep.scale_card(data, lanes=chosen),
        _NOTE + _stage_note(trajectory),
        panel_size=(6.2, 1.95),
    )
    return render(picture, backend)


# One lane of a trajectory -> values, and both edges of the band that holds them.
_Quantity = Callable[[xr.Dataset], tuple[Array, Array, Array]]


def _end(name: str) -> _Quantity:
    def quantity(lane: xr.Dataset) -> tuple[Array, Array, Array]:
        return lane[name].values, *_interval(lane, name)

    return quantity


def _ratio(lane: xr.Dataset) -> tuple[Array, Array, Array]:
    deepest, shallowest = _interval(lane, "lambda_min")
    lowest, highest = _interval(lane, "lambda_max")
    value = curvature_ratio(lane["lambda_min"].values, np.where(lowest > 0, lane["lambda_max"].values, np.nan))
    return value, curvature_ratio(shallowest, highest), curvature_ratio(deepest, lowest)


def _interval(lane: xr.Dataset, name: str) -> tuple[Array, Array]:
    """Return the edges of what holds an end, the value itself where nothing is known."""
    value = lane[name].values
    edges = [lane[f"{name}_{side}"].values if f"{name}_{side}" in lane else value for side in ("low", "high")]
    low, high = (np.where(np.isfinite(edge), edge, value) for edge in edges)
    return low, high


def _panel(
    trajectory: xr.Dataset,
    lanes: Sequence[str],
    looks: dict[str, Look],
    label: str,
    quantity: _Quantity,
    *,
    is_first: bool = False,
) -> Panel:
    epochs = trajectory["epoch"].values.astype(float)
    marks: list[Mark] = []
    seen: list[Array] = []
    for lane in lanes:
        one = trajectory.sel(lane=lane)
        values, low, high = quantity(one)
        seen.append(values)
        look = looks[lane]
        name = prep.lane_label(trajectory, lane)
        marks.append(Band(epochs, low, high, look.colour))
        marks.append(Line(epochs, values, look.colour, name if is_first else "", look.dash, width=1.1))
        marks += _verdicts(one, epochs, values, look.colour, name)
    if is_first:
        marks += _verdict_legend(trajectory, lanes)
    left, right = prep.padded(epochs.min(), epochs.max(), 0.03)
    y = _axis(label, np.concatenate(seen))
    return Panel("", Axis("", limits=(left, right)), y, (*_stage_marks(trajectory, y, (left, right)), *marks))


def _verdicts(lane: xr.Dataset, epochs: Array, values: Array, colour: str, name: str) -> list[Mark]:
    verdicts = lane["verdict"].values.astype(str) if "verdict" in lane else np.full(epochs.shape, "undecided")
    marks: list[Mark] = []
    for verdict, marker in VERDICT_MARKERS.items():
        at = verdicts == verdict
        if at.any():
            hover = tuple(f"{name}, epoch {e:g}: {prep.short(v)}, {verdict}" for e, v in zip(epochs[at], values[at]))
            marks.append(Points(epochs[at], values[at], colour, marker, "", 4.5, hover=hover))
    return marks


def _verdict_legend(trajectory: xr.Dataset, lanes: Sequence[str]) -> list[Mark]:
    found = set(np.unique(trajectory["verdict"].sel(lane=list(lanes)).values.astype(str)))
    nowhere = np.array([np.nan])
    return [Points(nowhere, nowhere, MUTED, m, verdict) for verdict, m in VERDICT_MARKERS.items() if verdict in found]


def _axis(label: str, values: Array) -> Axis:
    """Return an axis in logarithms where the sizes differ much: symmetric where there are both signs, or negative ones."""
    low, high = prep.finite_range([values])
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not sizes.size or sizes.max() / sizes.min() < _WIDE:
        return Axis(label, limits=prep.padded(low, high, 0.08))
    if low > 0:
        return Axis(label, "log", prep.padded(low, high, 0.08, log=True))
    within = 10.0 ** np.floor(np.log10(max(sizes.min(), sizes.max() * 1e-3)))
    edges = symlog(np.array([low, high]), within)
    margin = 0.1 * max(edges[1] - edges[0], 0.5)
    bottom, top = symlog_inverse(edges + np.array([-margin, margin]), within).tolist()
    return Axis(f"{label}\n(linear within ±{within:g})", "symlog", (bottom, top), float(within))


def _epochs_title(trajectory: xr.Dataset) -> str:
    is_position = trajectory.attrs.get("epoch_means") == "position"
    return "position in the list: not every file states its epoch" if is_position else "epochs done"


def _stages(trajectory: xr.Dataset) -> list[tuple[str, float, str]]:
    """Return (letter, epochs done, what happens) of the training's changes of rule."""
    stages = trajectory.attrs.get("stages", [])
    if isinstance(stages, str):
        stages = json.loads(stages)
    return [(letter, float(epoch), str(text)) for letter, (epoch, text) in zip(ascii_lowercase, stages)]


def _stage_note(trajectory: xr.Dataset) -> str:
    parts = [f"{letter}: {text} after epoch {epoch:g}" for letter, epoch, text in _stages(trajectory)]
    return f" Dotted: {'; '.join(parts)}." if parts else ""


def _stage_marks(trajectory: xr.Dataset, y: Axis, x: tuple[float, float]) -> list[Mark]:
    """Return a vertical line with its letter for every change of rule within the epochs shown."""
    assert y.limits is not None
    marks: list[Mark] = []
    for letter, epoch, _ in _stages(trajectory):
        if x[0] <= epoch <= x[1]:
            marks.append(Line(np.array([epoch, epoch]), np.array(y.limits), INK, "", "dot", width=0.9))
            marks.append(Text(epoch, y.limits[1], letter, INK, "center", (0.0, 5.0)))
    return marks

"""Figures of the loss on lines through the weights, with bands over directions, over images and over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures import preparation as prep
from landscape.figures import quantities as of
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import Array, Axis, Backend, Band, Line, Mark, Panel, Picture, Points, Text
from landscape.figures.style import INK, MUTED, Look, optimizer_looks
from landscape.figures.views import several

Seeds: TypeAlias = xr.Dataset | Sequence[xr.Dataset]
BandKind: TypeAlias = Literal["range", "stderr"]

# Curves in one panel that can all carry bands; panels of one lane each that a figure can hold.
_MOST_BANDS, _MOST_PANELS = 4, 16
# Losses that span more than this are drawn on a logarithmic axis.
_WIDE = 40.0


@dataclass(frozen=True)
class _Curve:
    """One lane of one result on a line: its middle, and around it what each source of chance does; None where unknown."""

    alpha: Array
    middle: Array
    directions: tuple[Array, Array] | None = None
    images: Array | None = None  # standard error of a change from the weights
    seeds: tuple[Array, Array] | None = None
    evaluated: Array | None = None

    @property
    def reach(self) -> list[Array]:
        """All that is drawn of the curve."""
        around = [] if self.images is None else [self.middle - self.images, self.middle + self.images]
        return [self.middle, *(self.directions or ()), *(self.seeds or ()), *around]


def plot_lines(
    surface_line: prep.Results | Sequence[xr.Dataset] | Mapping[str, Sequence[xr.Dataset]],
    *,
    lanes: str | Sequence[str] | None = None,
    band: BandKind = "range",
    variable: str = "loss",
    relative: bool = False,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the loss on lines through the weights, with a band for each source of chance that was measured.

    Parameters
    ----------
    surface_line
        A ``surface_line`` Dataset: one panel with all lanes, or a panel each for more than four; or
        ``{optimizer: Dataset}``: a panel per lane with all optimizers. In place of any Dataset a sequence of them stands
        for training seeds, whose curves are averaged.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    band
        ``"range"``: median and smallest to largest over directions, and over seeds; ``"stderr"``: mean ± standard error.
    variable
        ``"loss"``, ``"own_loss"``, ``"error"`` or ``"margin"``, also with the prefix of a view, ``"held_out_loss"``.
    relative
        Draw the change from the weights; the error over images belongs to this change.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        All panels share both axes. Light area: over directions; thin lines: ± the paired standard error over images of the
        change from the weights, ``increase_stderr`` averaged over directions and seeds, which bounds that of the average;
        hatched: over training seeds. A band is there when, and only when, its numbers are.

    Raises
    ------
    LandscapeError
        If a lane, variable or band is unknown, or training seeds do not share their grid.
    """
    if band not in ("range", "stderr"):
        raise unknown_name("band", band, ["range", "stderr"])
    runs = _runs(surface_line, variable)
    data = {name: datasets[0] for name, datasets in runs.items()}
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    curves = {
        (name, lane): _curve(runs[name], lane, variable, band=band, relative=relative)
        for name, dataset in data.items()
        for lane in chosen
        if lane in prep.all_lanes([dataset])
    }
    many = len(data) > 1
    looks = optimizer_looks(list(data)) if many else prep.lane_looks(data, chosen)
    only = next(iter(data))
    if many:
        groups = {lane: [(name, lane) for name in data if (name, lane) in curves] for lane in chosen}
    elif _MOST_BANDS < len(chosen) <= _MOST_PANELS:
        groups = {lane: [(only, lane)] for lane in chosen}
    else:
        groups = {"": [(only, lane) for lane in chosen]}
    x, y = _axes(data, curves, variable, relative=relative)
    named = set(chosen if many else prep.thinned(chosen, 16))
    panels = []
    for title, members in groups.items():
        shade = len(members) <= _MOST_BANDS
        marks: list[Mark] = _line_marks(data, x, y)
        for name, lane in members:
            label = name if many else prep.lane_label(data[name], lane) if lane in named and not title else ""
            look = looks[name if many else lane]
            marks += _curve_marks(curves[name, lane], label, look, y, shade=shade)
        panels.append(Panel(prep.lane_label(data[only], title) if title else "", x, y, tuple(marks)))
    shaded = all(len(members) <= _MOST_BANDS for members in groups.values())
    panels[0] = replace(panels[0], marks=(*panels[0].marks, *(_legend(curves.values()) if shaded else ())))
    rows, columns = prep.grid_shape(len(panels), widest=4)
    note = _spread_note(runs, curves.values(), band, shaded=shaded)
    picture = Picture(
        f"{of.noun(variable)} on lines through the weights" + (", relative to the weights" if relative else ""),
        arrange(panels, rows, columns, of.axis_label(data[only], "alpha")),
        prep.scale_card(_carded(runs), lanes=chosen),
        f"{note} {of.interpolation_note(data.values(), chosen)}".strip(),
        panel_size=(5.4, 3.4) if len(panels) == 1 else (3.1, 2.5) if len(panels) <= 8 else (2.2, 1.8),
        linked=True,
    )
    return render(picture, backend)


def side_by_side(
    data: Mapping[str, xr.Dataset],
    by: Literal["policy", "split"],
    title: str,
    *,
    lanes: str | Sequence[str] | None,
    variable: str,
    other: bool,
) -> Picture:
    """Return a picture of lines with a panel per view, rows for optimizers, all lanes in each and one pair of axes."""
    parts = several(data, by, other=other)
    flat = {" · ".join(t for t in (name, view) if t): d for name, found in parts.items() for view, d in found.items()}
    chosen = prep.choose_lanes(flat, lanes, prep.GROUP_LANES)
    curves = {
        (name, lane): _curve([dataset], lane, variable, band="range", relative=False)
        for name, dataset in flat.items()
        for lane in chosen
        if lane in prep.all_lanes([dataset])
    }
    looks = prep.lane_looks(flat, chosen)
    x, y = _axes(flat, curves, variable, relative=False)
    shade = len(chosen) <= _MOST_BANDS
    panels = []
    for k, name in enumerate(flat):
        marks: list[Mark] = _line_marks({name: flat[name]}, x, y)
        for lane in chosen:
            if (name, lane) in curves:
                marks += _curve_marks(curves[name, lane], lane if k == 0 else "", looks[lane], y, shade=shade)
        panels.append(Panel(name, x, y, tuple(marks)))
    if shade:
        panels[0] = replace(panels[0], marks=(*panels[0].marks, *_legend(curves.values())))
    note = _spread_note({name: [d] for name, d in flat.items()}, curves.values(), "range", shaded=shade)
    label = of.axis_label(next(iter(flat.values())), "alpha")
    return Picture(
        title,
        arrange(panels, len(parts), 2, label),
        prep.scale_card(flat, lanes=chosen),
        f"{note} {of.interpolation_note(flat.values(), chosen)}".strip(),
        panel_size=(3.3, 2.7),
        linked=True,
    )


def _runs(given: Any, variable: str) -> dict[str, list[xr.Dataset]]:
    """Return {optimizer: training seeds} of what was given."""
    if isinstance(given, xr.Dataset):
        named: dict[str, Any] = {**prep.as_mapping(given, variable, "alpha")}
    elif isinstance(given, Mapping):
        named = dict(given)
    else:
        seeds = list(given) if isinstance(given, Sequence) else []
        first = seeds[0] if seeds and isinstance(seeds[0], xr.Dataset) else xr.Dataset()
        named = {str(first.attrs.get("optimizer", "")): seeds}
    runs = {str(name): [d] if isinstance(d, xr.Dataset) else list(d) for name, d in named.items()}
    if not runs or not all(runs.values()):
        prep.as_mapping({}, variable)
    for name, datasets in runs.items():
        for dataset in datasets:
            prep.as_mapping({name: dataset}, variable, "alpha")
            if "beta" in dataset.dims:
                raise LandscapeError("expected the loss on lines, got a plane: plot_contours draws it")
            if not np.array_equal(dataset["alpha"], datasets[0]["alpha"]) or (
                dataset.sizes.get("pair", 1) != datasets[0].sizes.get("pair", 1)
            ):
                where = f" of '{name}'" if name else ""
                raise LandscapeError(
                    f"expected the training seeds{where} on one grid with the same directions, got "
                    f"{[d.sizes.get('alpha') for d in datasets]} points and "
                    f"{[d.sizes.get('pair', 1) for d in datasets]} directions: measure them alike"
                )
    return runs


def _carded(runs: Mapping[str, Sequence[xr.Dataset]]) -> dict[str, xr.Dataset]:
    """Return what the card describes: each result, with the means over its training seeds where there are several."""
    found = {}
    for name, datasets in runs.items():
        first = datasets[0]
        if len(datasets) > 1:
            norms = [d.attrs["theta_norm"] for d in datasets if "theta_norm" in d.attrs]
            told = {"num_training_seeds": f"{len(datasets)} (norms and losses here are their means)"}
            first = first.assign_attrs(told | ({"theta_norm": float(np.mean(norms))} if norms else {}))
            if all("loss" in d for d in datasets):
                first = first.assign(loss=(first["loss"].dims, np.mean([d["loss"].values for d in datasets], axis=0)))
        found[name] = first
    return found


def _stacked(datasets: Sequence[xr.Dataset], variable: str, lane: str, *, relative: bool) -> Array:
    """Return the values (seed, pair, alpha) of a lane."""
    stack = []
    for dataset in datasets:
        values = of.masked(dataset, variable).sel(lane=lane)
        values = of.minus_centre(values) if relative else values
        values = values if "pair" in values.dims else values.expand_dims("pair")
        stack.append(values.transpose("pair", "alpha").values)
    return np.stack(stack).astype(np.float64)


def _curve(datasets: Sequence[xr.Dataset], lane: str, variable: str, *, band: BandKind, relative: bool) -> _Curve:
    values = np.ma.masked_invalid(_stacked(datasets, variable, lane, relative=relative))
    num_seeds, num_pairs, _ = values.shape
    if band == "range":
        of_seeds, over_pairs = np.ma.median(values, axis=1), values.mean(axis=0)
    else:
        of_seeds, over_pairs = values.mean(axis=1), values.mean(axis=0)
    middle = of_seeds.mean(axis=0)
    name = of.stderr_name(datasets[0], variable)
    images = None
    if name and all(name in dataset for dataset in datasets):
        errors = np.ma.masked_invalid(_stacked(datasets, name, lane, relative=False))
        images = _filled(errors.mean(axis=(0, 1)))
        images = images if np.isfinite(images).any() else None
    return _Curve(
        alpha=datasets[0]["alpha"].values.astype(np.float64),
        middle=_filled(middle),
        directions=_spread(over_pairs, middle, band) if num_pairs > 1 else None,
        images=images,
        seeds=_spread(of_seeds, middle, band) if num_seeds > 1 else None,
        evaluated=of.evaluated(datasets[0]),
    )


def _spread(values: Any, middle: Any, band: BandKind) -> tuple[Array, Array]:
    """Return the lower and the upper end over the first dimension of masked values."""
    if band == "range":
        return _filled(values.min(axis=0)), _filled(values.max(axis=0))
    count = np.maximum(values.count(axis=0), 1)
    error = np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=0) / np.maximum(count - 1, 1) / count)
    return _filled(middle - error), _filled(middle + error)


def _filled(values: Any) -> Array:
    return np.asarray(np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan))


def _axes(
    data: Mapping[str, xr.Dataset], curves: Mapping[Any, _Curve], variable: str, *, relative: bool
) -> tuple[Axis, Axis]:
    low, high = prep.finite_range([curve.middle for curve in curves.values()])
    log = of.is_loss(variable) and not relative and low > 0 and high / low > _WIDE
    reach = [values for curve in curves.values() for values in curve.reach]
    if log:
        bottom, top = prep.finite_range([values[values > low / 3] for values in reach])
    else:
        bottom, top = prep.finite_range(reach)
    label = of.meaning(next(iter(data.values())), variable, relative=relative) + (" (log scale)" if log else "")
    y = Axis(label, "log" if log else "linear", prep.padded(bottom, top, log=log))
    x = Axis("", limits=prep.padded(*prep.finite_range([curve.alpha for curve in curves.values()]), 0.02))
    return x, y


def _curve_marks(curve: _Curve, label: str, look: Look, y: Axis, *, shade: bool) -> list[Mark]:
    marks: list[Mark] = []
    if shade:
        if curve.directions is not None:
            marks.append(_band(curve, curve.directions, look.colour, y, "fill"))
        if curve.seeds is not None:
            marks.append(_band(curve, curve.seeds, look.colour, y, "hatch"))
        if curve.images is not None:
            around = (curve.middle - curve.images, curve.middle + curve.images)
            marks.append(_band(curve, around, look.colour, y, "outline"))
    every = max(1, len(curve.alpha) // 6)
    marker = "" if shade else look.marker  # of many lines the dashes repeat
    marks.append(Line(curve.alpha, curve.middle, look.colour, label, look.dash, marker, width=1.4, every=every))
    if curve.evaluated is not None:
        kept = curve.evaluated & np.isfinite(curve.middle)
        marks.append(Points(curve.alpha[kept], curve.middle[kept], INK, "dot", "", 2.4))
    return marks


def _band(
    curve: _Curve, ends: tuple[Array, Array], colour: str, y: Axis, style: Literal["fill", "outline", "hatch"]
) -> Band:
    """Return a band whose lower end stays on the paper of a logarithmic axis."""
    low = np.maximum(ends[0], y.limits[0]) if y.scale == "log" and y.limits is not None else ends[0]
    return Band(curve.alpha, low, ends[1], colour, style=style)


def _legend(curves: Any) -> list[Mark]:
    """Return what explains the bands that are there."""
    known = list(curves)
    nowhere = np.array([np.nan])
    found: list[Mark] = []
    if any(curve.directions is not None for curve in known):
        found.append(Band(nowhere, nowhere, nowhere, MUTED, "over directions", alpha=0.3))
    if any(curve.images is not None for curve in known):
        found.append(Band(nowhere, nowhere, nowhere, MUTED, "± standard error over images", style="outline"))
    if any(curve.seeds is not None for curve in known):
        found.append(Band(nowhere, nowhere, nowhere, MUTED, "over training seeds", style="hatch"))
    return found


def _spread_note(runs: Mapping[str, Sequence[xr.Dataset]], curves: Any, band: BandKind, *, shaded: bool) -> str:
    """Return what the middle of a curve is, and what each band is."""
    known = list(curves)
    num_pairs = max(d.sizes.get("pair", 1) for datasets in runs.values() for d in datasets)
    num_seeds = max(map(len, runs.values()))
    middle = "Median" if band == "range" else "Mean"
    spread = "from smallest to largest" if band == "range" else "mean ± standard error"
    parts = ["One direction." if num_pairs == 1 else f"{middle} over {num_pairs} directions"]
    if num_pairs > 1:
        parts[0] += f", light band {spread}." if shaded else "."
    if num_seeds > 1:
        parts.append(f"Mean over {num_seeds} training seeds" + (f", hatched {spread}." if shaded else "."))
    if not shaded:
        parts.append("No bands, for legibility.")
    elif any(curve.images is not None for curve in known):
        parts.append(
            "Thin lines: ± the standard error over images of the change from the weights (the same images at both, classes "
            "as strata)."
        )
    return " ".join(parts)


def _line_marks(data: Mapping[str, xr.Dataset], x: Axis, y: Axis) -> list[Mark]:
    """Return named points of a line, such as two checkpoints, as vertical lines."""
    assert x.limits is not None
    assert y.limits is not None
    points = dict.fromkeys(point for dataset in data.values() for point in of.marked_points(dataset))
    marks: list[Mark] = []
    for alpha, _, label in points:
        if x.limits[0] <= alpha <= x.limits[1]:
            marks.append(Line(np.array([alpha, alpha]), np.array(y.limits), MUTED, "", "dot", width=0.9))
            marks.append(Text(alpha, y.limits[1], label, INK, "center", (0.0, 4.0), 6.5))
    return marks

"""Figures of what the spectrum says: curvature against gradient, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.picture import Axis, Backend, Cells, Line, Mark, Panel, Picture, Points
from landscape.figures.style import LANE_LOOKS, MUTED, VERDICT_LOOKS, optimizer_looks


def plot_curvature_against_gradient(
    spectra: prep.Results, *, lanes: str | Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw |lambda_min| against |g|, a mark per lane and optimizer, with the least-squares line of the logarithms.

    Parameters
    ----------
    spectra
        ``{optimizer: spectrum Dataset}`` or one Dataset.
    lanes
        Lane names, ``"classes"`` (default), ``"groups"`` or ``"every"``. Lanes without negative
        curvature are left out, and counted.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        What lies off the line is what an optimizer changed beyond how well a class is fitted.
    """
    data = prep.as_mapping(spectra, "gradient_norm")
    chosen = prep.choose_lanes(data, lanes, prep.choose_lanes(data, "every", ()))
    if lanes is None:
        classes = {lane for dataset in data.values() for lane in prep.class_lanes(dataset)}
        chosen = [lane for lane in chosen if lane in classes] or chosen
    looks = optimizer_looks(list(data))
    marks: list[Mark] = []
    gradients, curvatures, skipped, groups = [], [], 0, []
    for name, dataset in data.items():
        for group in ("head", "medium", "tail", "all", ""):
            members = [lane for lane in chosen if lane in prep.all_lanes([dataset]) and _group(dataset, lane) == group]
            if not members:
                continue
            part = dataset.sel(lane=members)
            g, low = part["gradient_norm"].values, part["lambda_min"].values
            kept = (low < 0) & (g > 0)
            skipped += int((~kept).sum())
            hover = tuple(
                f"{name or 'lane'} {lane}: |g| {prep.short(a)}, λmin {prep.short(b)}"
                for lane, a, b, k in zip(members, g, low, kept)
                if k
            )
            marker = LANE_LOOKS[group].marker if group in LANE_LOOKS else "x"
            marks.append(Points(g[kept], -low[kept], looks[name].colour, marker, "", 5.5, 0.85, hover=hover))
            gradients.append(g[kept])
            curvatures.append(-low[kept])
            groups.append(group)
    x, y = np.concatenate(gradients), np.concatenate(curvatures)
    nowhere = np.array([np.nan])
    if any(data):
        marks += [Line(nowhere, nowhere, looks[name].colour, name, width=4.0) for name in data if name]
    marks += [
        Points(nowhere, nowhere, MUTED, LANE_LOOKS[group].marker, f"{group} classes" if group != "all" else "all")
        for group in LANE_LOOKS
        if group in groups
    ]
    note = f"Lanes without negative curvature are not drawn: {skipped}." if skipped else ""
    if x.size == 0:
        raise LandscapeError(
            "expected a lane with negative curvature and a gradient, got none: there is nothing to draw"
        )
    text = ""
    if np.unique(x).size >= 3:
        slope, offset = np.polyfit(np.log10(x), np.log10(y), 1)
        correlation = np.corrcoef(np.log10(x), np.log10(y))[0, 1]
        ends = np.array(prep.padded(x.min(), x.max(), 0.04, log=True))
        text = f"|λmin| = {10**offset:.2g} |g|^{slope:.2f}, R² = {correlation**2:.2f}, {x.size} lanes"
        marks.insert(0, Line(ends, 10**offset * ends**slope, MUTED, "", "dash", "", 1.2))
    panel = Panel(
        text,
        Axis("gradient norm |g| of the lane's loss", "log", prep.padded(x.min(), x.max(), 0.08, log=True)),
        Axis("|λmin| of the lane's Hessian", "log", prep.padded(y.min(), y.max(), 0.08, log=True)),
        tuple(marks),
    )
    title = "Negative curvature against gradient"
    return render(Picture(title, ((panel,),), prep.scale_card(data), note, panel_size=(5.2, 3.8)), backend)


def plot_verdicts(
    spectra: prep.Results, *, lanes: str | Sequence[str] | None = "every", backend: Backend = "matplotlib"
) -> Any:
    """Draw the verdict of every lane (rows) under every optimizer (columns), with symbol, value, residual and ratio.

    Parameters
    ----------
    spectra
        ``{optimizer: spectrum Dataset}`` or one Dataset.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A table; a lane that an optimizer's results lack is left blank.
    """
    data = prep.as_mapping(spectra, "verdict")
    chosen = prep.choose_lanes(data, lanes, ())
    first = next(iter(data.values()))
    texts, fills, inks = [], [], []
    for lane in chosen:
        cells = [_verdict_cell(dataset, lane) for dataset in data.values()]
        texts.append(tuple(cell[0] for cell in cells))
        fills.append(tuple(cell[1] for cell in cells))
        inks.append(tuple(cell[2] for cell in cells))
    panel = Panel(
        "",
        Axis("", limits=(-0.5, len(data) - 0.5), categories=tuple(name or "verdict" for name in data)),
        Axis("", limits=(len(chosen) - 0.5, -0.5), categories=tuple(prep.lane_label(first, lane) for lane in chosen)),
        (Cells(tuple(texts), tuple(fills), tuple(inks)),),
    )
    note = "λmin ± residual; ratio = |λmin| / λmax. Symbols: " + ", ".join(
        f"{look.symbol} {w}" for w, look in VERDICT_LOOKS.items() if w != "refused" or _is_refused(data)
    )
    size = (max(1.65 * len(data) + 1.1, 3.2), 0.36 * len(chosen) + 0.4)
    return render(
        Picture("Verdict for every class and group", ((panel,),), prep.scale_card(data), note, panel_size=size), backend
    )


def _is_refused(data: Mapping[str, xr.Dataset]) -> bool:
    """Whether any lane got no verdict because its operator was redrawn."""
    return any(bool((dataset["verdict"] == "refused").any()) for dataset in data.values())


def _verdict_cell(dataset: xr.Dataset, lane: str) -> tuple[str, str, str]:
    if lane not in prep.all_lanes([dataset]):
        return "", "#FFFFFF", MUTED
    one = dataset.sel(lane=lane)
    verdict = str(one["verdict"].item())
    look = VERDICT_LOOKS.get(verdict, VERDICT_LOOKS["undecided"])
    low, high = float(one["lambda_min"]), float(one["lambda_max"])
    residual = float(one["lambda_min_residual"]) if "lambda_min_residual" in one else float("nan")
    ratio = f", ratio {prep.short(abs(low) / high)}" if high > 0 and low < 0 else ""
    return f"{look.symbol} {verdict}\n{prep.with_error(low, residual)}{ratio}", look.fill, look.ink


def _group(dataset: xr.Dataset, lane: str) -> str:
    group = prep.lane_group(dataset, lane)
    return group if group in LANE_LOOKS else ""

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
from landscape.figures.style import INK, LANE_LOOKS, MUTED, PAPER, VERDICT_LOOKS, VerdictLook, optimizer_looks
from landscape.ratios import curvature_over_gradient, curvature_ratio

# Above so many lanes a row of the table has one line.
MOST_TALL = 40


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
    """Draw the verdict of every lane with the numbers it rests on.

    Parameters
    ----------
    spectra
        One Dataset: a column per number, |lambda_min| / |g|, both radii and the intervals among them;
        ``{optimizer: spectrum Dataset}`` with several: a column per optimizer.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A table; a lane that an optimizer's results lack is left blank. Above forty lanes a line each.
    """
    data = prep.as_mapping(spectra, "verdict")
    chosen = prep.choose_lanes(data, lanes, ())
    first = next(iter(data.values()))
    is_long = len(chosen) > MOST_TALL
    if len(data) == 1:
        heads = list(_numbers(first, chosen[0]))
        rows = [[_word_cell(first, lane), *_number_cells(first, lane)] for lane in chosen]
        columns, size = ("verdict", *heads), (1.36, 0.2)
    else:
        columns = tuple(data)
        rows = [[_verdict_cell(dataset, lane, is_long) for dataset in data.values()] for lane in chosen]
        size = (1.95, 0.2 if is_long else 0.48)
    texts, fills, inks = (tuple(tuple(cell[k] for cell in row) for row in rows) for k in range(3))
    panel = Panel(
        "",
        Axis("", limits=(-0.5, len(columns) - 0.5), categories=columns),
        Axis("", limits=(len(chosen) - 0.5, -0.5), categories=tuple(prep.lane_label(first, lane) for lane in chosen)),
        (Cells(texts, fills, inks),),
    )
    note = (
        "λmin ± error; ratio = max(−λmin, 0) / λmax; radii: beyond the first curvature outweighs the slope, up to the second "
        "the loss is quadratic; intervals at 95 %. Symbols: "
    )
    note += ", ".join(f"{look.symbol} {w}" for w, look in VERDICT_LOOKS.items() if w != "refused" or _is_refused(data))
    panel_size = (max(size[0] * len(columns) + 1.1, 3.2), size[1] * len(chosen) + 0.5)
    return render(
        Picture("Verdict for every class and group", ((panel,),), prep.scale_card(data), note, panel_size=panel_size),
        backend,
    )


def _is_refused(data: Mapping[str, xr.Dataset]) -> bool:
    """Whether any lane got no verdict because its operator was redrawn."""
    return any(bool((dataset["verdict"] == "refused").any()) for dataset in data.values())


def _look(one: xr.Dataset) -> VerdictLook:
    return VERDICT_LOOKS.get(str(one["verdict"].item()), VERDICT_LOOKS["undecided"])


def _value(one: xr.Dataset, name: str) -> float:
    return float(one[name]) if name in one else float("nan")


def _numbers(dataset: xr.Dataset, lane: str) -> dict[str, str]:
    """Return what a verdict rests on, as text by column head; a column whose variable was not recorded is left out."""
    one = dataset.sel(lane=lane)
    low, high, slope = (_value(one, name) for name in ("lambda_min", "lambda_max", "gradient_norm"))
    columns = {
        "λmin ± error": ("lambda_min", prep.end_of_spectrum(one, "lambda_min")),
        "ratio": ("lambda_max", prep.short(float(curvature_ratio(low, high)))),
        "|λmin| / |g|": ("gradient_norm", prep.short(float(curvature_over_gradient(low, slope)))),
        "radii": ("crossover_radius", _radii(one)),
        "negative energy": ("negative_energy_low", prep.interval(*_ends(one, "negative_energy"))),
        "v'Hv over images": ("curvature_low", prep.interval(*_ends(one, "curvature"))),
    }
    return {head: text for head, (name, text) in columns.items() if name in one}


def _ends(one: xr.Dataset, name: str) -> tuple[float, float]:
    return _value(one, f"{name}_low"), _value(one, f"{name}_high")


def _radii(one: xr.Dataset) -> str:
    radii = [_value(one, f"{name}_radius") for name in ("crossover", "quadratic")]
    return "–" if not np.isfinite(radii).any() else " / ".join(map(prep.short, radii))


def _word_cell(dataset: xr.Dataset, lane: str) -> tuple[str, str, str]:
    look = _look(dataset.sel(lane=lane))
    return f"{look.symbol} {dataset['verdict'].sel(lane=lane).item()}", look.fill, look.ink


def _number_cells(dataset: xr.Dataset, lane: str) -> list[tuple[str, str, str]]:
    return [(text, PAPER, INK) for text in _numbers(dataset, lane).values()]


def _verdict_cell(dataset: xr.Dataset, lane: str, is_long: bool) -> tuple[str, str, str]:
    if lane not in prep.all_lanes([dataset]):
        return "", PAPER, MUTED
    word, fill, ink = _word_cell(dataset, lane)
    numbers = _numbers(dataset, lane)
    if is_long:
        return f"{word[0]} {numbers['λmin ± error']}", fill, ink
    ratio = f", ratio {numbers['ratio']}" if numbers["ratio"] != "–" else ""
    lines = [word, f"{numbers['λmin ± error']}{ratio}"]
    if numbers["|λmin| / |g|"] != "–":
        lines.append(f"|λmin| / |g| {numbers['|λmin| / |g|']}, radii {numbers['radii']}")
    return "\n".join(lines), fill, ink


def _group(dataset: xr.Dataset, lane: str) -> str:
    group = prep.lane_group(dataset, lane)
    return group if group in LANE_LOOKS else ""

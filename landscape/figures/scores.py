"""Figures of accuracy and of the training history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import LandscapeError
from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import Axis, Backend, Bars, Line, Mark, Panel, Picture
from landscape.figures.style import LANE_LOOKS, Look, optimizer_looks

if TYPE_CHECKING:
    import pandas as pd


def plot_accuracy(
    accuracy: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    variable: str | None = None,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw accuracy per group, or per class, as bars.

    Parameters
    ----------
    accuracy
        An ``accuracy`` Dataset, or ``{optimizer: Dataset}``, drawn side by side.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; head, medium, tail and all by default.
    variable
        ``"accuracy"`` on the images under study, or ``"test_accuracy"``; by default the latter where it was measured.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
    """
    data = prep.as_mapping(accuracy, variable or "accuracy")
    if variable is None:
        variable = "test_accuracy" if all("test_accuracy" in dataset for dataset in data.values()) else "accuracy"
    split = "test" if variable.startswith("test_") else str(next(iter(data.values())).attrs.get("split", ""))
    if "test_num_examples" in next(iter(data.values())) and variable == "test_accuracy":
        data = {name: dataset.assign(num_examples=dataset["test_num_examples"]) for name, dataset in data.items()}
    data = {name: dataset.assign_attrs(split=split) for name, dataset in data.items()}
    chosen = prep.choose_lanes(data, lanes, ("head", "medium", "tail", "all"))
    first = next(iter(data.values()))
    width = 0.82 / len(data)
    marks: list[Mark] = []
    for k, (name, dataset) in enumerate(data.items()):
        values = dataset[variable].reindex(lane=chosen).values
        x = np.arange(len(chosen)) + (k - (len(data) - 1) / 2) * width
        groups: list[tuple[str, Any, Look]] = [(name, np.arange(len(chosen)), optimizer_looks(list(data))[name])]
        if len(data) == 1:
            owners = [prep.lane_group(dataset, lane) for lane in chosen]
            groups = [
                (g, np.array([i for i, o in enumerate(owners) if o == g]), LANE_LOOKS.get(g, LANE_LOOKS["all"]))
                for g in dict.fromkeys(owners)
            ]
        for label, members, look in groups:
            texts = tuple(f"{100 * v:.0f}" for v in values[members]) if len(chosen) * len(data) <= 48 else ()
            marks.append(Bars(x[members], values[members], width * 0.9, look.colour, look.hatch, label, texts=texts))
    names = prep.thinned([prep.lane_label(first, lane) for lane in chosen], 40)
    panel = Panel(
        "",
        Axis("", limits=(-0.6, len(chosen) - 0.4), categories=names, tilted=len(chosen) > 6),
        Axis("accuracy (share of examples right)", limits=(0.0, 1.08), percent=True),
        tuple(marks),
    )
    size = (min(max(4.8, 0.24 * len(chosen) * len(data)), 12.0), 2.7)
    title = f"Accuracy on {split} images" if split else "Accuracy"
    return render(Picture(title, ((panel,),), prep.scale_card(data), panel_size=size), backend)


def plot_history(
    histories: Mapping[str, pd.DataFrame], *, columns: Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw training histories: a panel per column, a line per optimizer.

    Parameters
    ----------
    histories
        ``{optimizer: frame}`` with a column ``epoch`` (else the index counts) and numeric columns.
    columns
        Which columns; by default those whose name holds ``loss`` or ``accuracy``.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure

    Raises
    ------
    LandscapeError
        If there is no such column.
    """
    if not isinstance(histories, Mapping) or not all(hasattr(frame, "columns") for frame in histories.values()):
        raise LandscapeError(f"expected a mapping of names to tables (DataFrames), got {type(histories).__name__}")
    known = list(dict.fromkeys(str(column) for frame in histories.values() for column in frame.columns))
    chosen = list(columns) if columns is not None else [c for c in known if "loss" in c or "acc" in c]
    missing = [column for column in chosen if column not in known]
    if missing or not chosen:
        raise LandscapeError(
            f"expected columns of the history, got {missing or 'none'}: known are {', '.join(known) or 'none'}"
        )
    looks = optimizer_looks(list(histories))
    panels = []
    for column in chosen:
        marks: list[Mark] = []
        for name, frame in histories.items():
            if column not in frame.columns:
                continue
            x = np.asarray(frame["epoch"] if "epoch" in frame.columns else frame.index, dtype=float)
            y = np.asarray(frame[column], dtype=float)
            marks.append(Line(x, y, looks[name].colour, name or "training", looks[name].dash))
        panels.append(Panel(column.replace("_", " "), Axis(""), Axis(""), tuple(marks)))
    rows, across = prep.grid_shape(len(panels))
    picture = Picture("Training history", arrange(panels, rows, across, "epoch"), panel_size=(3.0, 2.2))
    return render(picture, backend)

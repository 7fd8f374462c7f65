"""The bar chart: change of accuracy per recipe, operator and stage, with error bars over seeds."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

LANES = ("all", "head", "medium", "tail")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = {"1": "", "2": "///", "1,2": "xx"}
GRID = "#E3E5E8"


def changes(table: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return the mean change of each accuracy against the recipe alone at the same seed, in points.

    With its standard error over the seeds and half the width of its t interval.
    """
    plain = table[table.operator == ""].set_index(["recipe", "seed"])
    rows = []
    for (recipe, operator, stages), part in table[table.operator != ""].groupby(
        ["recipe", "operator", "stages"], sort=False
    ):
        for lane in LANES:
            own = part.set_index(["recipe", "seed"])[lane]
            change = (own - plain[lane].reindex(own.index)).to_numpy()
            number = len(change)
            error = np.nan if number < 2 else change.std(ddof=1) / np.sqrt(number)
            half = np.nan if number < 2 else stats.t.ppf(0.5 + confidence / 2, number - 1) * error
            rows.append((recipe, operator, stages, lane, change.mean(), error, half, number))
    names = ["recipe", "operator", "stages", "lane", "change", "stderr", "half_width", "seeds"]
    return pd.DataFrame(rows, columns=names)


def draw_bars(table: pd.DataFrame, path: Path) -> None:
    """Write one panel per group of classes: bars of the changes, recipes side by side."""
    matplotlib.use("agg")
    moved = changes(table)
    recipes, operators = list(dict.fromkeys(moved.recipe)), list(dict.fromkeys(moved.operator))
    bars = [(operator, stages) for operator in operators for stages in dict.fromkeys(moved.stages)]
    figure = Figure(figsize=(max(1.6 + 1.6 * len(recipes), 5.6), 7.5), layout="constrained")
    axes = figure.subplots(len(LANES), 1, sharex=True)
    for axis, lane in zip(axes, LANES):
        part = moved[moved.lane == lane].set_index(["recipe", "operator", "stages"])
        for k, (operator, stages) in enumerate(bars):
            rows = part.reindex([(recipe, operator, stages) for recipe in recipes])
            axis.bar(
                np.arange(len(recipes)) + (k - (len(bars) - 1) / 2) * 0.85 / len(bars),
                rows.change,
                0.8 / len(bars),
                yerr=rows.stderr.fillna(0.0),
                color=COLOURS[operators.index(operator) % len(COLOURS)],
                hatch=HATCHES.get(stages, ""),
                edgecolor="white",
                ecolor="#444444",
                error_kw={"elinewidth": 0.7},
                label=f"{operator}.{stages}",
            )
        axis.axhline(0.0, color="#444444", linewidth=0.8)
        axis.set_ylabel(f"{lane} (points)")
        axis.grid(axis="y", color=GRID)
        axis.set_axisbelow(True)
    axes[0].set_title(
        f"{table.dataset.iloc[0]}: change of test accuracy, {int(moved.seeds.max())} seeds, ± standard error",
        fontsize=9,
    )
    axes[-1].set_xticks(range(len(recipes)), recipes)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)

"""The figures of the study: the loss by BatchNorm policy, and what random slices and eigenvectors show of one class."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.surface_policies.study import TAIL

STYLES = {
    "frozen": ("frozen", "#D55E00", "o", "-"),
    "recalibrated, long-tailed": ("recalibrated on long-tailed images", "#0072B2", "s", "--"),
    "recalibrated, balanced": ("recalibrated on balanced images", "#009E73", "^", ":"),
}
TITLES = {"short": "15 epochs", "long": "60 epochs"}
GRID = "#E3E5E8"


def _mean_and_sd(part: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    by_distance = part.groupby("at").value
    return by_distance.mean(), by_distance.std(ddof=1).fillna(0.0)


def draw_policies(table: pd.DataFrame, path: Path) -> None:
    """Write head and tail loss against distance, a line per policy: mean over networks, bars one standard deviation."""
    matplotlib.use("agg")
    trainings = [name for name in TITLES if name in set(table.training)]
    figure = Figure(figsize=(5.8, 2.3 * len(trainings) + 0.6), layout="constrained")
    axes = figure.subplots(len(trainings), 2, sharex=True, sharey=True, squeeze=False)
    rows = table[(table.part == "batchnorm") & (table.measure == "loss")]
    for i, training in enumerate(trainings):
        for axis, lane in zip(axes[i], ("head", "tail")):
            for k, (policy, (label, colour, marker, dash)) in enumerate(STYLES.items()):
                mean, sd = _mean_and_sd(
                    rows[(rows.training == training) & (rows.lane == lane) & (rows.setting == policy)]
                )
                axis.errorbar(
                    mean.index + 0.008 * (k - 1),
                    mean,
                    sd,
                    color=colour,
                    marker=marker,
                    linestyle=dash,
                    markersize=5,
                    capsize=2,
                    label=label,
                )
            classes = "classes 0 to 2" if lane == "head" else "classes 7 to 9"
            axis.set_title(f"{lane} ({classes}), {TITLES[training]}", fontsize=9)
            axis.set_yscale("log")
            axis.grid(color=GRID)
            axis.set_axisbelow(True)
        axes[i][0].set_ylabel("held-out loss (nats)")
    for axis in axes[-1]:
        axis.set_xlabel("distance, in norms of the filters")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=130)


def draw_slices(table: pd.DataFrame, path: Path) -> None:
    """Write the change of the rarest class's loss along random directions and along its v_min, and of the head's."""
    matplotlib.use("agg")
    trainings = [name for name in TITLES if name in set(table.training)]
    figure = Figure(figsize=(2.9 * len(trainings), 3.0), layout="constrained")
    axes = figure.subplots(1, len(trainings), sharex=True, squeeze=False)[0]
    for axis, training in zip(axes, trainings):
        _slices_of(axis, table[(table.training == training) & (table.measure == "loss along")])
        axis.set_title(TITLES[training], fontsize=10)
        axis.set_xlabel("step, Euclidean")
        axis.grid(color=GRID)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("change of the loss (nats)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=130)


def _slices_of(axis: Axes, rows: pd.DataFrame) -> None:
    def changes(part: str, lane: str, column: str = "value") -> pd.DataFrame:
        chosen = rows[(rows.part == part) & (rows.lane == lane)]
        values = chosen.pivot_table(index="seed", columns="at", values=column)
        centre = chosen[chosen["at"] == 0].set_index("seed").value
        return values.sub(centre, axis=0)

    lowest, highest = changes("slices", TAIL, "low").min(), changes("slices", TAIL, "high").max()
    axis.fill_between(lowest.index, lowest, highest, color="#9AA0A6", alpha=0.5, label="class 9, random directions")
    for lane, label, colour, dash in (
        (TAIL, "class 9, its v_min", "#D55E00", "-"),
        ("head", "head, the same v_min", "#0072B2", "--"),
    ):
        for k, (_, line) in enumerate(changes("escape", lane).iterrows()):
            axis.plot(line.index, line, color=colour, linestyle=dash, linewidth=1.2, label=label if k == 0 else None)

"""The figure of the study: |lambda_min| / lambda_max per class, by what was done to the images."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

STYLES = {
    ("none", "two-pass", 40): ("as stored", "#0072B2", "o"),
    ("frozen", "two-pass", 40): ("frozen draws", "#009E73", "s"),
    ("redraw", "two-pass", 40): ("redrawn, two-pass Lanczos", "#E69F00", "^"),
    ("redraw", "released", 40): ("redrawn, released Lanczos", "#D55E00", "v"),
}
TITLES = {
    "softmax regression": "Softmax regression (convex)",
    "convnet": "Small CNN, digits, 150 to 3",
    "resnet20": "ResNet-20, CIFAR-10-LT",
}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write one panel per model, one mark per class (mean over seeds, whiskers one standard deviation)."""
    matplotlib.use("agg")
    models = [name for name in TITLES if name in set(table.model)]
    figure = Figure(figsize=(3.6 * len(models), 3.2), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, model in zip(axes, models):
        part = table[table.model == model]
        classes = list(part.groupby("class_name", sort=False).num_examples.first().items())
        for offset, ((augmentation, lanczos, steps), (label, colour, marker)) in enumerate(STYLES.items()):
            chosen = part[
                (part.augmentation == augmentation) & (part.lanczos == lanczos) & (part.num_steps == steps)
            ].groupby("class_name", sort=False)
            x = [i + 0.12 * (offset - 1.5) for i in range(len(classes))]
            spread = chosen.ratio.std().fillna(0.0)
            axis.errorbar(
                x, chosen.ratio.mean(), spread, color=colour, marker=marker, linestyle="", markersize=4, label=label
            )
        # The ResNet's classes are studied on equally many images.
        is_capped = model == "resnet20"
        axis.set_xticks(range(len(classes)), [name if is_capped else str(n) for name, n in classes])
        axis.set_xlabel(f"class, {classes[0][1]} images of each" if is_capped else "training images of the class")
        axis.set_title(TITLES[model], fontsize=10)
        axis.grid(axis="y", color="#E3E5E8")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("|lambda_min| / lambda_max")
    axes[0].set_ylim(-0.03, 1.05)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)

"""Run the study, write ``results.csv`` and ``figure.png``, print the table of means."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from analyses.redrawn_augmentation.picture import draw
from analyses.redrawn_augmentation.study import study_cifar, study_digits

# Classes with 150, 15 and 5 training images.
CONVEX_CLASSES = (0, 5, 8)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of the ratio and lambda_min, and the median defects."""
    keys = ["model", "class_name", "num_examples", "augmentation", "lanczos", "num_steps"]
    return table.groupby(keys, sort=False).agg(
        seeds=("seed", "count"),
        ratio=("ratio", "mean"),
        ratio_sd=("ratio", "std"),
        lambda_min=("lambda_min", "mean"),
        lambda_max=("lambda_max", "mean"),
        repeat_defect=("repeat_defect", "median"),
        symmetry_defect=("symmetry_defect", "median"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analyses.redrawn_augmentation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.csv and figure.png")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="a ResNet-20 trained on CIFAR-10-LT; needs --data-dir")
    parser.add_argument("--data-dir", type=Path, help="folder of the official CIFAR-10 files")
    parser.add_argument("--classes", default="0,8,9", help="classes of the ResNet-20")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if (given.checkpoint is None) != (given.data_dir is None):
        parser.error("--checkpoint and --data-dir go together")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = list(study_digits("softmax regression", num_seeds=given.seeds, classes=CONVEX_CLASSES))
    rows += study_digits("convnet", num_seeds=given.seeds)
    if given.checkpoint is not None:
        classes = [int(c) for c in given.classes.split(",")]
        rows += study_cifar(given.checkpoint, given.data_dir, classes=classes, device=given.device)
    table = pd.DataFrame([asdict(row) for row in rows])
    table.to_csv(given.out / "results.csv", index=False, float_format="%.6g")
    draw(table, given.out / "figure.png")
    with pd.option_context(
        "display.max_rows", None, "display.max_columns", None, "display.width", 200, "display.precision", 3
    ):
        print(summarise(table))


if __name__ == "__main__":
    main()

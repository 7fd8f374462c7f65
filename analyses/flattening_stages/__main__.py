"""Run the study; write ``results.csv``, ``changes.csv`` and ``flattening-stages.png``."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from analyses.flattening_stages.picture import changes, draw_bars
from analyses.flattening_stages.study import RECIPES, study
from landscape.results import versions


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table below one line that names the environment."""
    environment = f"# {versions()}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores, {platform.machine()}\n"
    path.write_text(environment + table.to_csv(index=False, float_format="%.6g"))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analyses.flattening_stages", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and the figure")
    parser.add_argument("--runs", type=Path, help="folder to keep the trainings in; they are resumed from there")
    parser.add_argument("--dataset", default="digits-lt")
    parser.add_argument("--data-dir")
    parser.add_argument("--imbalance-ratio", type=float)
    parser.add_argument("--epochs", type=int, help="of the first stage, or of both of a deferred recipe")
    parser.add_argument("--second-epochs", type=int, help="of the second stage; by default as published")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--operators", help="SWA,SN,GP,MP, or names of optimizers; by default these four")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = study(
            folder,
            recipes=given.recipes.split(","),
            operators=given.operators.split(",") if given.operators else None,
            seeds=range(given.seeds),
            device=given.device,
            tell=lambda text: print(text, flush=True),
            dataset=given.dataset,
            data_dir=given.data_dir,
            imbalance_ratio=given.imbalance_ratio,
            epochs=given.epochs,
            second_epochs=given.second_epochs,
        )
        table = pd.DataFrame([asdict(row) for row in rows])
    write_table(table, given.out / "results.csv")
    write_table(changes(table), given.out / "changes.csv")
    draw_bars(table, given.out / "flattening-stages.png")
    moved = changes(table)
    print(moved[moved.lane == "all"].to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()

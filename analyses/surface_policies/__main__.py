"""Run the study; write ``results.csv``, ``conclusions.csv`` and both figures, and print the tables."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from analyses.surface_policies.conclusions import conclude
from analyses.surface_policies.picture import draw_policies, draw_slices
from analyses.surface_policies.study import study
from analyses.surface_policies.tables import conclusions_table, policies_table, slices_table
from landscape.results import versions


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table below one line that names the environment."""
    environment = f"# {versions()}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores, {platform.machine()}\n"
    path.write_text(environment + table.to_csv(index=False, float_format="%.6g"))


def read_table(path: Path) -> pd.DataFrame:
    """Read what :func:`write_table` wrote."""
    return pd.read_csv(path, comment="#", dtype={"lane": str, "setting": str}).fillna({"setting": ""})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analyses.surface_policies", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and figures")
    parser.add_argument("--seeds", type=int, default=8, help="networks trained per length of training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame([asdict(row) for row in study(Path(folder), num_seeds=given.seeds)])
    write_table(table, given.out / "results.csv")
    table = read_table(given.out / "results.csv")  # conclusions follow from the digits that are kept
    conclusions = conclude(table)
    write_table(conclusions, given.out / "conclusions.csv")
    draw_policies(table, given.out / "batchnorm-policies.png")
    draw_slices(table, given.out / "hidden-saddles.png")
    for text in (policies_table(table), slices_table(table), conclusions_table(conclusions)):
        print(text)


if __name__ == "__main__":
    main()

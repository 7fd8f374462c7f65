"""Train the recipes one after the other; write ``results.csv`` and print the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import landscape as ls
from landscape.recipes import RECIPES, recipe_spec
from landscape.results import versions

GROUPS = ("all", "head", "medium", "tail")
ROWS = (
    "ce",
    "ce+sam",
    "ce-drw",
    "ce-drw+sam",
    "ldam-drw",
    "ldam-drw+sam",
    "vs+sam",
    "gcl+gnm",
    "imbsam",
    "sse-sam",
    "cc-sam",
)
# Of the released network (ResNet-34, 21 M parameters) a short run on two cores is out of reach.
SMALLER = {"imbsam": {"model": "resnet32", "lr": 0.1, "weight_decay": 2e-4, "batch_size": 128}}
SMALLER["sse-sam"] = SMALLER["imbsam"]
# The same method of another recipe, where only that one has published accuracies of groups.
ELSEWHERE = {"ce+sam": "ce-cosine+sam", "imbsam": "ce-cosine+imbsam"}
GROUP_RULE = "mislas-cifar10"


def changes_of(row: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what a short run changes of a recipe."""
    changes: dict[str, Any] = {
        "data_dir": str(given.data_dir),
        "epochs": given.epochs,
        "precision": given.precision,
        "group_rule": GROUP_RULE,
        "evaluate_every": max(1, given.epochs // 4),
        **SMALLER.get(row, {}),
    }
    recipe = recipe_spec(f"cifar10-lt/{row}")
    if recipe.second_stage is not None:
        changes["second_options"] = {**recipe.second_options, "epochs": max(1, given.epochs * 30 // 200)}
    if given.seed is not None:
        changes["seed"] = given.seed
    return changes


def train_row(row: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train one recipe (or find it done) and return its row of the table."""
    out = given.out / row
    spec = recipe_spec(f"cifar10-lt/{row}", **changes_of(row, given))
    ls.train(
        spec, out, device=given.device, resume=True, progress=lambda done, total, text: print(row, done, total, text)
    )
    record = json.loads((out / "run.json").read_text())
    last = pd.read_csv(out / "history.csv").iloc[-1]
    test = spec.load_data().test.counts(10)
    sizes = {"all": sum(test), "head": sum(test[:3]), "medium": sum(test[3:7]), "tail": sum(test[7:])}
    timings = [record["timings"]]
    if (first := out / "stage-1" / "run.json").exists():
        timings.append(json.loads(first.read_text())["timings"])
    result: dict[str, Any] = {"recipe": f"cifar10-lt/{row}", "epochs": spec.epochs, "seed": spec.seed}
    for group in GROUPS:
        share = float(last[f"test_accuracy/{group}"])
        result[group] = 100 * share
        result[f"{group}_stderr"] = 100 * (share * (1 - share) / sizes[group]) ** 0.5
    result |= {
        "model": spec.model,
        "precision": spec.precision,
        "num_forwards": sum(stage["num_forwards"] for stage in timings),
        "num_backwards": sum(stage["num_backwards"] for stage in timings),
        "seconds_per_epoch": timings[-1]["seconds_per_epoch"],  # of the first stage; not alone on its machine
        "device": record["environment"]["device_name"],
    }
    return result | published_of(row)


def published_of(row: str) -> dict[str, Any]:
    """Return the range of a row's published accuracies at ratio 100, and those by group with their source."""
    own = RECIPES[f"cifar10-lt/{row}"].published
    beside = RECIPES[f"cifar10-lt/{ELSEWHERE[row]}"].published if row in ELSEWHERE else ()
    whole = [p.all for p in own if p.imbalance_ratio == 100 and p.all is not None]
    found: dict[str, Any] = {}
    if whole:
        found |= {"published_lowest": min(whole), "published_highest": max(whole)}
    for published in [*own, *beside]:
        if published.imbalance_ratio == 100 and published.head is not None:
            found |= {f"published_{group}": getattr(published, group) for group in GROUPS}
            found["published_groups_from"] = published.source
    return found


def print_table(table: pd.DataFrame) -> None:
    """Print the rows as the documentation shows them."""
    groups = "all / head / medium / tail"
    print(f"| recipe | {' | '.join(GROUPS)} | published, 200 epochs | published, {groups} |")
    print("|---|---|---|---|---|---|---|")
    for _, row in table.iterrows():
        cells = [f"{row[group]:.1f} ± {row[f'{group}_stderr']:.1f}" for group in GROUPS]
        low, high = row.get("published_lowest"), row.get("published_highest")
        cells.append("-" if pd.isna(low) else f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}")
        by_group = [row.get(f"published_{group}") for group in GROUPS]
        cells.append("-" if any(map(pd.isna, by_group)) else " / ".join(f"{value:.1f}" for value in by_group))
        print(f"| {row.recipe.partition('/')[2]} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analyses.published_rows", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the official CIFAR-10 files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=None, help="by default each recipe's own")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in given.rows:
        rows.append(train_row(row, given))
        environment = (
            f"# {versions()}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores, {platform.machine()}\n"
        )
        (given.out / "results.csv").write_text(
            environment + pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
        )
    print_table(pd.DataFrame(rows))


if __name__ == "__main__":
    main()

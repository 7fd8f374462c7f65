"""The command ``recipes``: the published settings and the numbers that go with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.app import app
from landscape.cli.terminal import print_json, say, show_table

if TYPE_CHECKING:
    from landscape.recipes import Published, Recipe


ALWAYS_SHOWN = ("dataset", "model", "loss", "optimizer", "epochs", "batch_size", "lr", "weight_decay", "schedule")

SHOWN_OF_SECOND = ("loss", "loss_options", "trainable", "sampler", "method", "optimizer", "epochs", "lr", "schedule")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A recipe, or a data set; all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable output.")] = False,
) -> None:
    """List the published settings by name with their published accuracies, or show one setting whole."""
    from landscape.recipes import RECIPES, find_recipe

    chosen = {key: r for key, r in RECIPES.items() if name is None or key.partition("/")[0] == name}
    if name is not None and not chosen:
        chosen = {name: find_recipe(name)}
    if as_json:
        print_json({key: asdict(r) for key, r in chosen.items()})
    elif name in chosen:
        _show_one(name, chosen[name])
    else:
        _show_all(chosen)


def _show_all(chosen: dict[str, Recipe]) -> None:
    rows: list[tuple[str, Published | None]] = []
    for key, r in chosen.items():
        rows += [(key, row) for row in r.published] or [(key, None)]
    show_table(
        {
            "recipe": [key for key, _ in rows],
            **_accuracies([row for _, row in rows]),
            "published in": [row.source if row else "no number is public" for _, row in rows],
        }
    )
    say(
        "published top-1 test accuracies in percent, without error bars, head/medium/tail in each source's own grouping"
    )
    say("train one with: landscape train --recipe NAME --data-dir DIR --out RUN")


def _show_one(name: str, recipe: Recipe) -> None:
    from landscape.recipes import recipe_changes, recipe_spec
    from landscape.training.second_stages import split_stages

    say(f"{name}: {recipe.title}")
    say(f"settings from: {recipe.settings_from}")
    spec = recipe_spec(name)
    for key, value in {**{key: getattr(spec, key) for key in ALWAYS_SHOWN}, **recipe_changes(name)}.items():
        say(f"  {key} = {value}")
    if spec.second_stage is not None:
        second = split_stages(spec)[1]
        for key in SHOWN_OF_SECOND:
            say(f"  second stage: {key} = {getattr(second, key)}")
    for line in recipe.differences:
        say(f"note: {line}")
    if recipe.published:
        show_table(
            {
                "published in": [row.source for row in recipe.published],
                **_accuracies(list(recipe.published)),
            }
        )


def _accuracies(rows: list[Published | None]) -> dict[str, list[str]]:
    def column(field: str) -> list[str]:
        values: list[Any] = [getattr(row, field) if row else None for row in rows]
        return ["-" if value is None else f"{value:g}" for value in values]

    return {
        "ratio": column("imbalance_ratio"),
        "all": column("all"),
        "head": column("head"),
        "medium": column("medium"),
        "tail": column("tail"),
    }

"""The trainings: every recipe without an operator, and with each of them in the first, the second or both stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, unknown_name
from landscape.optimizers import OPTIMIZERS
from landscape.training import METHODS, TrainSpec, split_stages, train, two_stages

STAGES = ("1", "2", "1,2")
DEFERRED = 0.8  # share of the epochs before a deferred rule


@dataclass(frozen=True)
class Operator:
    """A rule and its options, by default and where the second stage trains the classifier alone."""

    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)
    on_head: dict[str, Any] = field(default_factory=dict)


OPERATORS: dict[str, Operator] = {
    "SWA": Operator("swa", on_head={"schedule": "given"}),
    "SN": Operator("spectral-norm"),
    "GP": Operator("gnp"),
    "MP": Operator("mp", on_head={"layers": "last-weights"}),
}


@dataclass(frozen=True)
class Recipe:
    """A training in two stages: name of the second one, its options, fields of the first."""

    second_stage: str
    second_options: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"  # of the published first stage, which an operator replaces


RECIPES: dict[str, Recipe] = {
    "cRT": Recipe("crt"),
    "M2m": Recipe("deferred", {"reweight": "none", "method": "m2m", "method_options.warm": 0.0}),
    "LDAM-DRW": Recipe("deferred", first={"loss": "ldam"}),
    "MiSLAS": Recipe("mislas"),
    "GCL": Recipe("gcl"),
}


@dataclass(frozen=True)
class Row:
    """The accuracy of one training on the balanced test images, in percent, after its last epoch."""

    dataset: str
    recipe: str
    operator: str  # empty: none
    stages: str
    seed: int
    all: float
    head: float
    medium: float
    tail: float


def available(names: Sequence[str] | None = None) -> dict[str, Operator]:
    """Return operators by the chart's labels, or any other rule by its own name."""
    chosen = {}
    for name in names if names is not None else OPERATORS:
        operator = OPERATORS.get(name, Operator(name))
        if operator.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", operator.optimizer, OPTIMIZERS)
        chosen[name] = operator
    return chosen


def recipe_spec(name: str, *, epochs: int | None, second_epochs: int | None, **task: Any) -> TrainSpec:
    """Return a recipe without operator; deferred ones share ``epochs`` between their stages."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    recipe = RECIPES[name]
    method = recipe.second_options.get("method", "plain")
    if method not in METHODS:
        raise LandscapeError(f"recipe {name} needs the method {method}, which is not there")
    first, second = dict(recipe.first), dict(recipe.second_options)
    if recipe.second_stage == "deferred" and epochs is not None:
        first["epochs"] = max(1, round(DEFERRED * epochs))
        second["epochs"] = max(1, epochs - first["epochs"])
    else:
        first |= {} if epochs is None else {"epochs": epochs}
        second |= {} if second_epochs is None else {"epochs": second_epochs}
    return two_stages(recipe.second_stage, **{**first, **task}, second_options=second)


def with_operator(spec: TrainSpec, operator: Operator, stages: str) -> TrainSpec:
    """Return a recipe with an operator in the first (``1``), the second (``2``) or both stages (``1,2``)."""
    if stages not in STAGES:
        raise unknown_name("choice of stages", stages, STAGES)
    second = dict(spec.second_options)
    if "2" in stages:
        is_head = split_stages(spec)[1].trainable != "all"
        second["optimizer"] = operator.optimizer
        second["optimizer_options"] = {**operator.options, **(operator.on_head if is_head else {})}
    first = {"optimizer": operator.optimizer, "optimizer_options": dict(operator.options)} if "1" in stages else {}
    return replace(spec, second_options=second, **first)


def study(
    folder: Path,
    *,
    recipes: Sequence[str] = tuple(RECIPES),
    operators: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    tell: Callable[[str], None] = lambda text: None,
    **fields: Any,
) -> Iterator[Row]:
    """Yield a row per training. ``fields`` are those of :func:`recipe_spec`; a first stage is trained once for all."""
    for recipe in recipes:
        for seed in seeds:
            plain = recipe_spec(recipe, seed=seed, **fields)
            variants = {("", ""): plain}
            for name, operator in available(operators).items():
                variants |= {(name, stages): with_operator(plain, operator, stages) for stages in STAGES}
            for (name, stages), spec in variants.items():
                tell(f"{recipe}, {name or 'no operator'} {stages}, seed {seed}")
                out = folder / f"{recipe}-{seed}-{name}-{stages}".replace(",", "+")
                try:
                    path = _train(spec, out, folder, device)
                except LandscapeError as error:
                    # Spectral normalisation has nothing to act on where a stage trains scales alone.
                    tell(f"left out: {error}")
                    continue
                yield _row(path, spec, recipe, name, stages)


def _train(spec: TrainSpec, out: Path, folder: Path, device: str) -> Path:
    """Train both stages; the first is taken from the folder where another training has the same."""
    first = split_stages(spec)[0]
    key = json.dumps(first.to_dict(), sort_keys=True)
    listing = folder / "first-stages.json"
    known = json.loads(listing.read_text()) if listing.is_file() else {}
    if key in known and not (out / "stage-1").exists():
        shutil.copytree(folder / known[key] / "stage-1", out / "stage-1")
    path = train(spec, out, device=device, resume=True)
    listing.write_text(json.dumps({**known, key: known.get(key, out.name)}))
    return path


def _row(path: Path, spec: TrainSpec, recipe: str, operator: str, stages: str) -> Row:
    reported = json.loads((path.parent / "run.json").read_text())["accuracy"]["last_epoch"]["test_accuracy"]
    accuracy = {lane: 100 * reported.get(lane, float("nan")) for lane in ("all", "head", "medium", "tail")}
    return Row(spec.dataset, recipe, operator, stages, spec.seed, **accuracy)

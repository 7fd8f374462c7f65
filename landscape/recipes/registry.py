"""All recipes by name, and the training that one describes."""

from __future__ import annotations

from typing import Any

from landscape.errors import unknown_name
from landscape.recipes.cifar10 import CIFAR10_RECIPES
from landscape.recipes.cifar100 import CIFAR100_RECIPES
from landscape.recipes.large import LARGE_RECIPES
from landscape.recipes.prompts import PROMPT_RECIPES
from landscape.recipes.recipe import Recipe
from landscape.training import TrainSpec

RECIPES: dict[str, Recipe] = {**CIFAR10_RECIPES, **CIFAR100_RECIPES, **PROMPT_RECIPES, **LARGE_RECIPES}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name; LandscapeError for an unknown one, which lists those of its data set."""
    if name not in RECIPES:
        near = [known for known in RECIPES if known.partition("/")[0] == name.partition("/")[0]]
        raise unknown_name("recipe", name, near or sorted({known.partition("/")[0] for known in RECIPES}))
    return RECIPES[name]


def recipe_changes(name: str) -> dict[str, Any]:
    """Return the fields of :class:`TrainSpec` that a recipe sets, the data set included."""
    return {"dataset": name.partition("/")[0], **find_recipe(name).changes}


def recipe_spec(name: str, **overrides: Any) -> TrainSpec:
    """Return the training of a recipe.

    Parameters
    ----------
    name
        A key of ``RECIPES``.
    **overrides
        Fields of :class:`TrainSpec` that replace the recipe's, such as ``epochs=20`` or ``data_dir=...``. Schedules, the
        start of re-weighting and stage switches are shares of the epochs, so they shrink along.

    Examples
    --------
    >>> spec = recipe_spec("cifar10-lt/ldam-drw+sam", data_dir="cifar")
    >>> spec.model, spec.loss, spec.reweight, spec.optimizer, spec.optimizer_options, spec.epochs
    ('resnet32', 'ldam', 'drw', 'sam', {'rho': 0.8}, 200)
    """
    return TrainSpec(**{**recipe_changes(name), **overrides})

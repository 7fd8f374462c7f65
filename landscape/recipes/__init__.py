"""Published settings by name: one recipe per published row, with the numbers that were published for it.

``RECIPES`` maps names such as ``cifar10-lt/ldam-drw+sam`` to recipes; :func:`recipe_spec` turns one into a training.
"""

from landscape.recipes.recipe import Published, Recipe
from landscape.recipes.registry import RECIPES, find_recipe, recipe_changes, recipe_spec

__all__ = ["RECIPES", "Published", "Recipe", "find_recipe", "recipe_changes", "recipe_spec"]

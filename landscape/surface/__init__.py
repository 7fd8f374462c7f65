"""The loss of every class on lines and planes through the weights."""

from __future__ import annotations

from landscape.surface.anchors import between_axes, point_of, three_point_axes, trajectory_axes
from landscape.surface.axes import Axes, Mark, between, cosine, orthogonal_to, random_axes, random_directions
from landscape.surface.derivatives import eigen_axes, gradient_axes
from landscape.surface.measure import KINDS, measure_surface
from landscape.surface.recipes import axes_from_recipe, load_axes, save_axes

__all__ = [
    "KINDS",
    "Axes",
    "Mark",
    "axes_from_recipe",
    "between",
    "between_axes",
    "cosine",
    "eigen_axes",
    "gradient_axes",
    "load_axes",
    "measure_surface",
    "orthogonal_to",
    "point_of",
    "random_axes",
    "random_directions",
    "save_axes",
    "three_point_axes",
    "trajectory_axes",
]

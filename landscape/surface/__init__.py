"""The loss of every class on lines and planes through the weights."""

from __future__ import annotations

from landscape.surface.anchors import between_axes, point_of, three_point_axes, trajectory_axes
from landscape.surface.axes import Axes, Mark, between, cosine, orthogonal_to, random_axes, random_directions
from landscape.surface.crossing import Radii, find_radii
from landscape.surface.cube import average_directions, cube_lanes, examples_of, kept_examples
from landscape.surface.derivatives import eigen_axes, gradient_axes
from landscape.surface.differences import difference
from landscape.surface.directional import directional_derivatives
from landscape.surface.escape import measure_escape
from landscape.surface.extent import automatic_range
from landscape.surface.fit import fit_quadratic
from landscape.surface.grid import KINDS
from landscape.surface.measure import measure_surface
from landscape.surface.pooling import image_interval, over_directions, over_seeds
from landscape.surface.quadratic import fitted_models, quadratic_models
from landscape.surface.radius import RadiusOptions, measure_radii
from landscape.surface.recipes import axes_from_recipe, load_axes, save_axes
from landscape.surface.refinement import Refined, refine_plane
from landscape.surface.regrouping import regroup
from landscape.surface.resampling import paired_bootstrap
from landscape.surface.several import measure_surfaces, shared_range

__all__ = [
    "KINDS",
    "Axes",
    "Mark",
    "Radii",
    "RadiusOptions",
    "Refined",
    "automatic_range",
    "average_directions",
    "axes_from_recipe",
    "between",
    "between_axes",
    "cosine",
    "cube_lanes",
    "difference",
    "directional_derivatives",
    "eigen_axes",
    "examples_of",
    "find_radii",
    "fit_quadratic",
    "fitted_models",
    "gradient_axes",
    "image_interval",
    "kept_examples",
    "load_axes",
    "measure_escape",
    "measure_radii",
    "measure_surface",
    "measure_surfaces",
    "orthogonal_to",
    "over_directions",
    "over_seeds",
    "paired_bootstrap",
    "point_of",
    "quadratic_models",
    "random_axes",
    "random_directions",
    "refine_plane",
    "regroup",
    "save_axes",
    "shared_range",
    "three_point_axes",
    "trajectory_axes",
]

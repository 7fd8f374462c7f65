"""The loss of every class on lines and planes through the weights."""

from __future__ import annotations

from landscape.surface.axes import between, cosine, orthogonal_to, random_directions
from landscape.surface.measure import KINDS, measure_surface

__all__ = ["KINDS", "between", "cosine", "measure_surface", "orthogonal_to", "random_directions"]

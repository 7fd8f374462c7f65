"""The directions that lines and planes through the weights are spanned by."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.perturbation import random_direction
from landscape.randomness import stream
from landscape.risk import ClassRisk

# |cos| of the two axes that counts as orthogonal to rounding.
ORTHOGONAL = 1e-6


def orthogonal_to(direction: Tensor, other: Tensor) -> Tensor:
    """Return ``direction`` without its part along ``other``, rescaled to the norm it had.

    Raises
    ------
    LandscapeError
        If the two are parallel, or ``other`` is zero.
    """
    d, o = direction.double(), other.double()
    before = torch.linalg.vector_norm(d)
    square = o @ o
    if float(square) == 0:
        raise LandscapeError("a direction of the surface is zero")
    for _ in range(2):
        d = d - (d @ o) / square * o
    after = torch.linalg.vector_norm(d)
    if float(after) <= 1e-6 * float(before):
        raise LandscapeError("the two directions of the plane are parallel: they span a line, not a plane")
    return (d * (before / after)).to(direction.dtype)


def random_directions(risk: ClassRisk, *, num: int, seed: int, pair: int) -> list[Tensor]:
    """Return ``num`` filter-normalised random directions (n,) of pair number ``pair``, orthogonal after scaling.

    The streams are named by seed and pair alone, so that two checkpoints see the same raw draws, each rescaled to its
    own filters.
    """
    directions: list[Tensor] = []
    for axis in range(num):
        generator = stream(seed, f"surface/pair={pair}/axis={axis}")
        direction = random_direction(risk, generator, is_filter_normalised=True, orthogonal_to=directions)
        for other in directions:  # nothing is left to remove, but for filters of a single weight
            if abs(cosine(direction, other)) > ORTHOGONAL:
                direction = orthogonal_to(direction, other)
        directions.append(direction)
    return directions


def between(risk: ClassRisk, other: ClassRisk) -> Tensor:
    """Return the direction (n,) float64 from one checkpoint's weights to another's: 0 is this one, 1 exactly the other.

    Raises
    ------
    LandscapeError
        If the two have different parameters.
    """
    if risk.layout.names != other.layout.names or risk.layout.shapes != other.layout.shapes:
        raise LandscapeError(
            "the two checkpoints have different parameters: a line between them needs one architecture"
        )
    return other.theta.to(risk.theta).double() - risk.theta.double()


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine between two vectors (n,), computed in float64."""
    a, b = a.double(), b.double()
    return float(a @ b / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)))

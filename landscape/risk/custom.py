"""Operations that bring a backward pass of their own: whether it is the derivative of their forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk.arithmetic import random_states_kept
from landscape.risk.proof import few_of

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# Distances of the differences in units of a unit vector's step: one of them has no kink within it and digits enough.
DISTANCES = {torch.float64: (1e-3, 1e-4, 1e-5, 1e-6), torch.float32: (1e-1, 3e-2, 1e-2)}
# Relative error from which a derivative is wrong. A straight-through estimator is off by its own size.
ALLOWED = {torch.float64: 1e-3, torch.float32: 5e-2}
NUM_VECTORS = 3


def pooled(risk: ModelRisk) -> Tensor:
    """Return the weights (1, C) of the lane of all examples."""
    return (risk.class_counts / risk.class_counts.sum())[None]


def require_first_derivatives(risk: ModelRisk) -> None:
    """Compare the gradient of a few examples with central differences of their loss, if the graph holds custom operations.

    Autograd believes their backward passes. In float64 where the operations allow it.

    Raises
    ------
    LandscapeError
        Naming the operations, where even the best of several distances disagrees.
    """
    if risk._custom:
        _require(few_of(risk), risk._custom, "derivative", _slope_error)


def require_second_derivatives(risk: ModelRisk) -> None:
    """Compare the Hessian product with central differences of the gradient, once: a wrong one may be symmetric.

    Raises
    ------
    LandscapeError
        As for the first derivative.
    """
    if not risk._custom or risk._known.get("custom operations"):
        return
    risk._known["custom operations"] = "seen"  # before they are: the check takes products itself
    with random_states_kept(risk.device):
        _require(few_of(risk), risk._custom, "second derivative", _curvature_error)


def _require(
    risk: ModelRisk, names: Sequence[str], what: str, error_along: Callable[[ModelRisk, Tensor, Tensor], float]
) -> None:
    try:
        exact = risk.in_float64()
        exact.losses(exact.theta)
    except (RuntimeError, NotImplementedError, TypeError):
        exact = risk  # an operation that is written for float32
    generator = stream(0, "risk/custom operations")
    size = len(exact.theta)
    for _ in range(NUM_VECTORS):
        draw = torch.randn(size, generator=generator, dtype=torch.float64)
        direction = (draw / torch.linalg.vector_norm(draw)).to(exact.theta)
        error = error_along(exact, pooled(exact), direction)
        if error > ALLOWED[exact.dtype]:
            raise LandscapeError(
                f"the custom operation {' or '.join(map(repr, names))}: its backward pass is not the {what} of its forward "
                f"pass (central differences disagree by {error:.1g}): replace it by differentiable operations"
            )


def _slope_error(risk: ModelRisk, weights: Tensor, direction: Tensor) -> float:
    gradient = risk.gradients(risk.theta, weights)[0].double()
    slope = float(gradient @ direction.double())
    scale = float(torch.linalg.vector_norm(gradient)) / len(direction) ** 0.5
    errors = []
    for distance in DISTANCES[risk.dtype]:
        up, down = (float(risk.lane_losses(risk.theta + s * distance * direction, weights)[0]) for s in (1, -1))
        difference = (up - down) / (2 * distance)
        errors.append(abs(difference - slope) / max(abs(difference), abs(slope), scale, 1e-12))
    return min(errors)


def _curvature_error(risk: ModelRisk, weights: Tensor, direction: Tensor) -> float:
    product = risk.hvps(risk.theta, weights, direction[None])[0].double()
    errors = []
    for distance in DISTANCES[risk.dtype]:
        up, down = (risk.gradients(risk.theta + s * distance * direction, weights)[0].double() for s in (1, -1))
        difference = (up - down) / (2 * distance)
        size = max(float(torch.linalg.vector_norm(x)) for x in (difference, product))
        errors.append(float(torch.linalg.vector_norm(difference - product)) / size if size > 0 else 0.0)
    return min(errors)

"""Whether the gradient is the derivative of the loss: a detached part leaves one of another function, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.risk.custom import pooled

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

logger = logging.getLogger(__name__)

# A slope that agrees with central differences to this much is believed; first in the risk's precision, at the price of a
# few forward passes, then in float64.
BELIEVED = 1e-2
# A slope is wrong where differences at neighbouring distances agree with each other this well, from either side (no kink
# there), and not with it. Where they do not agree nothing is known, and nothing is refused.
SETTLED = 2e-3
ONE_SIDED = 5e-2
DISTANCES = {torch.float32: (1e-2, 1e-3), torch.float64: (1e-3, 1e-4, 1e-5, 1e-6)}
# Tensors that are looked at one by one to name the wrong ones, and named.
MOST_TENSORS = 50
SHOWN = 4


def wrong_slope(few: ModelRisk) -> str:
    """Return why the gradient of a few examples is not the derivative of their loss; "" if it is, or nobody can tell.

    Along the gradient itself, each tensor's part scaled to length 1: what autograd holds fixed by convention (rows of an
    embedding that pad) does not move, and every tensor's slope counts.
    """
    if _is_believed(few):
        return ""
    try:
        exact = few.in_float64()
        exact.losses(exact.theta)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        logger.debug("slopes cannot be compared in float64: %s", error)
        return ""
    parts = _directions(exact)
    found = _settled(exact, torch.cat(list(parts.values())), sum(_norms(exact).values()))
    if found is None:
        return ""
    difference, slope = found
    norms = _norms(exact)
    wrong = []
    for name in sorted(norms, key=lambda name: -norms[name])[:MOST_TENSORS]:
        alone = torch.cat([part if key == name else torch.zeros_like(part) for key, part in parts.items()])
        if norms[name] > 0 and _settled(exact, alone, norms[name]) is not None:
            wrong.append(name)
    where = f" to {listed(wrong)}" if wrong else ""
    return (
        f"the gradient is not the derivative of the loss: along it the loss changes by {difference:.3g} per unit, autograd says "
        f"{slope:.3g}. A way from the loss{where} is cut (detach, no_grad, a straight-through estimator or a hook that changes "
        "gradients), so the curvature would be that of another function: let gradients through all of it"
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _gradients(risk: ModelRisk) -> dict[str, Tensor]:
    return dict(risk.layout.named(risk.gradients(risk.theta, pooled(risk))[0].double()))


def _norms(risk: ModelRisk) -> dict[str, float]:
    return {name: float(torch.linalg.vector_norm(part)) for name, part in _gradients(risk).items()}


def _directions(risk: ModelRisk) -> dict[str, Tensor]:
    found = {}
    for name, part in _gradients(risk).items():
        norm = torch.linalg.vector_norm(part)
        found[name] = (part / norm if float(norm) > 0 else torch.zeros_like(part)).flatten()
    return found


def _is_believed(risk: ModelRisk) -> bool:
    direction, slope = torch.cat(list(_directions(risk).values())), sum(_norms(risk).values())
    if slope == 0:
        return True
    for distance in DISTANCES[risk.dtype]:
        up, down = (_moved(risk, sign * distance * direction) for sign in (1, -1))
        difference = (up - down) / (2 * distance)
        if abs(difference - slope) <= BELIEVED * max(abs(difference), slope):
            return True
    return False


def _settled(risk: ModelRisk, direction: Tensor, slope: float) -> tuple[float, float] | None:
    """Return the true slope beside a wrong one; None where it is right, or the differences do not settle."""
    here = _moved(risk, torch.zeros_like(direction))
    before = None
    for distance in DISTANCES[risk.dtype]:
        up, down = (_moved(risk, sign * distance * direction) for sign in (1, -1))
        difference = (up - down) / (2 * distance)
        scale = max(abs(difference), slope)
        if abs(difference - slope) <= BELIEVED * scale:
            return None
        is_smooth = abs((up - here) - (here - down)) <= ONE_SIDED * distance * scale
        if is_smooth and before is not None and abs(difference - before) <= SETTLED * scale:
            return difference, slope
        before = difference
    return None


def _moved(risk: ModelRisk, by: Tensor) -> float:
    return float(risk.lane_losses(risk.theta + by.to(risk.theta), pooled(risk))[0])

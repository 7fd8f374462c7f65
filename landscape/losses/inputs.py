"""What every loss is given: validated options, logits of the right width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landscape.errors import LandscapeError


def validated_number(
    name: str, value: float, *, minimum: float = -math.inf, above: float = -math.inf, maximum: float = math.inf
) -> float:
    """Return a validated option."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and minimum <= value <= maximum and value > above):
        bound = f" above {above:g}" if above > -math.inf else f" of at least {minimum:g}" if minimum > -math.inf else ""
        bound += f" and at most {maximum:g}" if maximum < math.inf else ""
        raise LandscapeError(f"{name} must be a finite number{bound}, got {value}")
    return float(value)


def validated_flag(name: str, value: bool) -> bool:
    """Return a validated switch; the text 'false' would count as true."""
    if not isinstance(value, bool):
        raise LandscapeError(f"{name} must be true or false, got {value!r}")
    return value


def checked_logits(logits: Tensor, num_classes: int) -> Tensor:
    """Return the logits if they are (B, C); a single column would broadcast silently."""
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise LandscapeError(
            f"the loss is for {num_classes} classes: expected logits (B, {num_classes}), got {tuple(logits.shape)}"
        )
    return logits


def is_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where a logit belongs to the label, in the type of the logits, (B, C)."""
    return (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)

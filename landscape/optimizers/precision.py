"""In what arithmetic the passes of a step run: as they are, or in mixed precision with or without loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from landscape.errors import unknown_name
from landscape.optimizers.gradients import Gradient, scaled

Precision = Literal["float32", "bfloat16", "float16"]


class Arithmetic:
    r"""Automatic mixed precision around the passes of a step.

    Forward passes run under ``torch.autocast``; losses, gradients and weights stay in float32. With float16 every term's
    objective is multiplied by the scale s of ``torch.amp.GradScaler`` before its backward pass and its gradient by 1/s
    after it, so that a rule sees true gradients. A step in which any gradient is not finite is left out and lowers s.

    Parameters
    ----------
    precision
        ``"float32"`` leaves everything as it is.
    device_type
        Where the parameters are, ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, precision: Precision, device_type: str) -> None:
        if precision not in get_args(Precision):
            raise unknown_name("precision", str(precision), get_args(Precision))
        self.precision = precision
        self._device_type = device_type
        self.scaler = torch.amp.GradScaler(device_type) if precision == "float16" else None
        self._scale: Tensor | None = None  # of the step that runs
        self._is_finite: Tensor | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device_type, dtype=getattr(torch, self.precision))

    def start_step(self, params: list[Tensor]) -> None:
        """Take note of the scale of this step."""
        if self.scaler is not None:
            self._scale = self.scaler.scale(torch.ones((), device=params[0].device))
            self._is_finite = torch.ones((), dtype=torch.bool, device=params[0].device)

    def scaled(self, objective: Tensor) -> Tensor:
        """Return what to differentiate."""
        return objective if self._scale is None else objective * self._scale

    def unscaled(self, gradient: Gradient) -> Gradient:
        """Return the true gradient; zeros where one that is not finite would poison what is computed from it."""
        if self._scale is None or self._is_finite is None:
            return gradient
        given = [g for g in gradient if g is not None]
        if not given:
            return gradient
        is_finite = torch.stack(torch._foreach_norm(given)).isfinite().all()
        self._is_finite = self._is_finite & is_finite
        result = scaled(gradient, self._scale.double().reciprocal().float())
        return [None if g is None else g.masked_fill_(~is_finite, 0.0) for g in result]

    def finish_step(self, base: torch.optim.Optimizer, params: list[Tensor]) -> None:
        """Let the base optimizer step on ``.grad``, unless some gradient of the step was not finite."""
        if self.scaler is None:
            base.step()
            return
        assert self._scale is not None
        assert self._is_finite is not None
        given = [p.grad for p in params if p.grad is not None]
        if given:
            # Scaled once more, because the scaler divides by s itself; s is a power of two.
            factor = torch.where(self._is_finite, self._scale, torch.full_like(self._scale, torch.nan))
            torch._foreach_mul_(given, factor)
            self.scaler.step(base)
            self.scaler.update()
        self._scale = self._is_finite = None

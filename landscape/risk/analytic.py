"""Class losses given as a function of theta: toys whose landscape is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.layout import ParameterLayout
from landscape.risk.arithmetic import differentiation, precise_arithmetic
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.lanes import require_members
from landscape.risk.protocol import HessianProduct


class AnalyticRisk:
    r"""C class losses :math:`L_c(\theta)` given as one function (n,) -> (C,).

    Parameters
    ----------
    losses
        Twice differentiable function from theta (n,) to the class losses (C,); torch operations only.
    theta
        The point under study (n,), floating point; its dtype and device are those of all results.
    class_names, class_counts, groups
        Optional; by default "0", "1", ..., one example each, no groups.

    Raises
    ------
    LandscapeError
        If theta is not a vector, the function does not return a vector, or a loss at theta is not finite.

    Examples
    --------
    >>> risk = AnalyticRisk(lambda x: torch.stack([x[0] ** 2 - x[1] ** 2]), torch.zeros(2))
    >>> one = torch.ones(1, 1)
    >>> risk.hvps(risk.theta, one, torch.tensor([[1.0, 1.0]])).tolist()
    [[2.0, -2.0]]
    """

    is_additive = True

    def __init__(
        self,
        losses: Callable[[Tensor], Tensor],
        theta: Tensor,
        *,
        class_names: Sequence[str] | None = None,
        class_counts: Sequence[int] | Tensor | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if theta.dim() != 1 or theta.dtype not in (torch.float32, torch.float64):
            raise LandscapeError(
                f"AnalyticRisk: expected theta as a float32 or float64 vector (n,), got {tuple(theta.shape)} {theta.dtype}"
            )
        self._function = losses
        self.theta = theta.detach().clone()
        values = losses(self.theta)
        if values.dim() != 1:
            raise LandscapeError(
                f"AnalyticRisk: expected class losses (C,), the function returned {tuple(values.shape)}"
            )
        if not bool(values.isfinite().all()):
            raise LandscapeError(f"AnalyticRisk: the class losses at theta are not finite: {values.tolist()}")
        num_classes = len(values)
        self.class_names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
        counts = [1] * num_classes if class_counts is None else class_counts
        self.class_counts = torch.as_tensor(counts).cpu()
        if len(self.class_names) != num_classes or len(self.class_counts) != num_classes:
            raise LandscapeError(
                f"AnalyticRisk: the function has {num_classes} classes, got {len(self.class_names)} names "
                f"and {len(self.class_counts)} counts"
            )
        self.groups = {name: tuple(members) for name, members in (groups or {}).items()}
        require_members(self.groups, num_classes)
        self.layout = ParameterLayout.of({"theta": self.theta})
        self.attributes: dict[str, object] = {"objective": "analytic", "dtype": str(theta.dtype).removeprefix("torch.")}

    def _mask(self, classes: Sequence[int] | None) -> Tensor:
        mask = torch.zeros(len(self.class_names), dtype=torch.bool)
        mask[list(range(len(mask)) if classes is None else classes)] = True
        return mask

    def losses(self, theta: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Return (C,) float64, NaN for classes not asked for."""
        with precise_arithmetic():
            values = self._function(theta.detach()).detach().double().cpu()
        return values.masked_fill(~self._mask(classes), torch.nan)

    def lane_losses(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B,) float64: the loss of lanes (B, C)."""
        return weights.double().cpu() @ self.losses(theta)

    def evaluate(self, theta: Tensor, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``{"loss": (C,)}``."""
        return {"loss": self.losses(theta, classes)}

    def gradients(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B, n) for weights (B, C)."""
        with differentiation():
            point = theta.detach().clone().requires_grad_()
            with TwiceDifferentiable():
                values = self._function(point)
            rows = weights.to(values).clone()
            return torch.stack(
                [torch.autograd.grad(values, point, row, retain_graph=True, materialize_grads=True)[0] for row in rows]
            )

    def hvps(self, theta: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, n) for weights (B, C) and vectors (B, n)."""
        with self.hessian(theta, weights) as product:
            return product(vectors[:, None])[:, 0]

    @contextmanager
    def hessian(self, theta: Tensor, weights: Tensor) -> Iterator[HessianProduct]:
        """Give a product (B, P, n) -> (B, P, n) by double backward through one retained graph."""
        with differentiation():
            point = theta.detach().clone().requires_grad_()
            with TwiceDifferentiable():
                values = self._function(point)
            rows = weights.to(values).clone()
            gradients = [
                torch.autograd.grad(values, point, row, create_graph=True, materialize_grads=True)[0] for row in rows
            ]

        @differentiation()
        def product(vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
            out = torch.zeros_like(vectors)
            for b, lane in enumerate(range(len(gradients)) if lanes is None else lanes):
                gradient = gradients[lane]
                if not gradient.requires_grad:  # a linear loss: its Hessian is zero
                    continue
                for p, vector in enumerate(vectors[b]):
                    (out[b, p],) = torch.autograd.grad(
                        gradient, point, vector, retain_graph=True, materialize_grads=True
                    )
            return out

        yield product

    def in_float64(self) -> AnalyticRisk:
        """Return the same risk at theta in float64."""
        if self.theta.dtype == torch.float64:
            return self
        return AnalyticRisk(
            self._function,
            self.theta.double(),
            class_names=self.class_names,
            class_counts=self.class_counts,
            groups=self.groups,
        )

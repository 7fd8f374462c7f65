"""What PyTorch differentiates once is named in one line where a product needs it."""

from __future__ import annotations

import pytest
import torch
from risk_cases import draw, smooth_mlp
from test_risk_coverage import LANES, X, Y, built
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Cubed(nn.Module):
    def __init__(self, call=Once.apply) -> None:
        super().__init__()
        self.first, self.out, self.call = nn.Linear(64, 3), nn.Linear(3, 4), call

    def forward(self, x):
        return self.out(self.call(self.first(x.flatten(1))))


class Bags(nn.Module):
    """The mean vector of an image's dark and light pixels."""

    def __init__(self):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return functional.embedding_bag((x.flatten(1) > 0).long(), self.vectors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Cubed, "the custom operation 'Once' is marked once_differentiable, .*Hessian products need it"),
        (Bags, "the operation 'embedding_bag' has no second derivative in PyTorch"),
    ],
)
@pytest.mark.parametrize("memory_budget", [None, 0])
def test_an_operation_without_second_derivative_is_named(make, message, memory_budget):
    """Losses and gradients work; the first product, not a traceback of PyTorch, says what is missing."""
    risk = ModelRisk(built(make), (X, Y), memory_budget=memory_budget)
    assert torch.isfinite(risk.losses(risk.theta)).all()
    assert torch.isfinite(risk.gradients(risk.theta, LANES)).all()
    with pytest.raises(LandscapeError, match=message):
        risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))


def test_behind_the_operation_there_is_a_second_derivative():
    model = built(Cubed)
    risk = ModelRisk(model, (X, Y), params="out")
    smooth = ModelRisk(built(lambda: Cubed(lambda x: x**3)), (X, Y), params="out")
    v = draw(2, len(risk.theta), name="v")
    torch.testing.assert_close(risk.hvps(risk.theta, LANES, v), smooth.hvps(smooth.theta, LANES, v), rtol=1e-12, atol=0)


def test_errors_of_others_inside_a_product_stay_what_they_are():
    risk = ModelRisk(smooth_mlp(), (X, Y))
    with pytest.raises(RuntimeError, match="mine"), risk.hessian(risk.theta, LANES):
        raise RuntimeError("mine")

"""Quadratics whose every measure can be written down, and small networks with smooth or rectified units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.flatness import FlatnessOptions, Study
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk, lanes_of

NUM = 6
CENTRE = torch.linspace(0.5, 1.5, NUM, dtype=torch.float64)
COUNTS = (8, 5, 3)


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(*shape, generator=stream(0, f"flatness-test/{name}"), dtype=torch.float64)


def symmetric(name: str) -> Tensor:
    a = normal(NUM, NUM, name=name)
    return (a + a.T) / 2


HESSIANS = torch.stack([symmetric("a"), symmetric("b")])
SLOPES = normal(2, NUM, name="slopes")


def quadratic(hessians: Tensor = HESSIANS, slopes: Tensor = SLOPES) -> AnalyticRisk:
    """L_c = g_c (x - x0) + (x - x0)' H_c (x - x0) / 2 + c + 1."""

    def losses(x: Tensor) -> Tensor:
        d = x - CENTRE.to(x)
        bend = torch.einsum("i,cij,j->c", d, hessians.to(x), d)
        return slopes.to(x) @ d + bend / 2 + torch.arange(len(slopes)) + 1

    return AnalyticRisk(losses, CENTRE)


def study(risk, lanes=None, *, seed=0, group_average="examples", **options) -> Study:
    return Study(risk, lanes_of(risk, lanes, group_average=group_average), FlatnessOptions(**options), seed)


def data() -> tuple[Tensor, Tensor]:
    labels = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    order = torch.randperm(len(labels), generator=stream(0, "flatness-test/order"))
    return normal(len(labels), 5, name="inputs"), labels[order]


def filled(model: nn.Module, scale: float = 1.0) -> nn.Module:
    model = model.double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(scale * normal(*p.shape, name=name))
    return model


def network(activation: type[nn.Module] = nn.Tanh, *, bias: bool = True) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(5, 7, bias=bias), activation(), nn.Linear(7, 3, bias=bias)))


def risk_of(model: nn.Module | None = None, **options) -> ModelRisk:
    return ModelRisk(network() if model is None else model, data(), **options)


def per_example_gradients(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients (N, n) of the cross-entropies, one backward pass each, the weights (n,), and the labels (N,)."""
    inputs, labels = data()
    parameters = list(model.parameters())
    rows = []
    for x, y in zip(inputs, labels):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows), torch.cat([p.detach().reshape(-1) for p in parameters]), labels

"""Hessian products of a network through the losses, and what a normalised head makes of them."""

import pytest
import torch
from loss_cases import CIFAR10
from torch import nn

from landscape.losses import COSINE_LOSSES, LOSSES, PUBLISHED_LOSSES, build_loss, wants_cosines
from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.risk import ModelRisk

COUNTS = (60, 20, 6, 2)
LABELS = torch.arange(13) % 4
SETTINGS = {
    **{name: (name, {}) for name in LOSSES},
    **PUBLISHED_LOSSES,
    "focal/steep": ("focal", {"gamma": 2.5}),
    "label-aware/others": ("label-aware", {"shape": "convex", "spread": "others", "smooth_tail": 0.1}),
    "gcl-angular/focal": ("gcl-angular", {"margin": 0.2, "gamma": 1.0}),
}


def drawn(*shape):
    return torch.randn(*shape, generator=stream(0, f"test/{shape}"), dtype=torch.float64)


def tiny(name, options):
    """A tanh network of 6 inputs and 4 classes, its features kept off the cosines' poles by a bias."""
    head = NormedLinear(5, 4) if wants_cosines(name, **options) else nn.Linear(5, 4)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), head).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(drawn(*p.shape))
    return model


@pytest.mark.parametrize("setting", SETTINGS)
def test_hessian_products_are_differences_of_gradients(setting):
    """And gradients are differences of values: the three belong to one function, also where training detaches."""
    name, options = SETTINGS[setting]
    loss = build_loss(name, COUNTS, **options)
    risk = ModelRisk(tiny(name, options), (drawn(13, 6), LABELS), loss=loss, dtype=torch.float64)
    lane = risk.class_counts[None] / 13
    u = drawn(1, len(risk.theta))
    u /= u.norm()
    step = 1e-6  # of a norm-1 direction; third derivatives go with scale^3 = 27000, rounding with 1e-15 / step
    up, down = (risk.theta + s * step * u[0] for s in (1, -1))
    gradient = risk.gradients(risk.theta, lane)
    slope = (risk.lane_losses(up, lane) - risk.lane_losses(down, lane)) / (2 * step)
    assert float(gradient @ u[0]) == pytest.approx(float(slope), rel=1e-6, abs=1e-7)
    product = risk.hvps(risk.theta, lane, u)
    difference = (risk.gradients(up, lane) - risk.gradients(down, lane)) / (2 * step)
    assert float((product - difference).norm()) <= 1e-6 * float(product.norm())
    assert float(product.norm()) > 1e-3


@pytest.mark.parametrize("name", sorted(COSINE_LOSSES))
def test_lengths_of_columns_are_flat_directions_of_a_normalised_head(name):
    """L does not change with |w_c|, so w_c' grad_c = 0; differentiated along w_c: H (0, w_c, 0) = -(0, grad_c, 0)."""
    head, features, loss = NormedLinear(5, 4).double(), drawn(13, 5), build_loss(name, COUNTS).eval()
    weight = drawn(5, 4) * torch.tensor([0.5, 1.0, 2.0, 3.0])

    def total(w):
        return loss(torch.func.functional_call(head, {"weight": w}, features), LABELS).mean()

    gradient = torch.func.grad(total)(weight)
    assert float((weight * gradient).sum(0).abs().max()) <= 1e-14 * float(gradient.norm() * weight.norm())
    for c in range(4):
        column = torch.zeros_like(weight)
        column[:, c] = weight[:, c]
        product = torch.autograd.functional.hvp(total, weight, column)[1]
        expected = -gradient * (column != 0)
        torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12 * float(gradient.norm()))
    # and the curvature of everything goes with 1 / |w|^2
    vector = drawn(5, 4)
    once, twice = (torch.autograd.functional.hvp(total, s * weight, vector)[1] for s in (1, 2))
    torch.testing.assert_close(twice, once / 4, rtol=1e-10, atol=1e-12 * float(gradient.norm()))


def test_class_weights_do_not_reach_the_hessian_of_a_class():
    """Trap: the weighted mean divides by the weights of the batch, so one class alone has the unweighted Hessian."""
    logits, labels = drawn(6, 10), torch.full((6,), 9)
    weight = torch.tensor(CIFAR10, dtype=torch.float64) ** -1

    def hessian(**options):
        return torch.autograd.functional.hessian(
            lambda z: torch.nn.functional.cross_entropy(z, labels, **options), logits
        )

    torch.testing.assert_close(hessian(weight=weight), hessian(), rtol=1e-12, atol=1e-15)
    summed = hessian(weight=weight, reduction="sum")
    torch.testing.assert_close(summed, 6 * weight[9] * hessian(), rtol=1e-12, atol=1e-15)

"""Operations that PyTorch differentiates once only have the Hessian of their formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_risk_intake import hessian_of
from test_risk_reach import QUICK, Two, X, Y
from torch.nn import functional

from landscape import ModelRisk, measure_spectrum


def distances(rows):
    difference = rows[:, :, None] - rows[:, None]
    squares = difference.square().sum(-1) + torch.eye(4)  # the distance to itself is taken out below
    return squares.sqrt() * (1 - torch.eye(4))


FORMULAS = {
    "hard sigmoid": (
        lambda m, x: m.h(functional.hardsigmoid(4 * m.b(x))),
        lambda m, x: m.h((4 * m.b(x) / 6 + 0.5).clamp(0, 1)),
    ),
    "distances": (
        lambda m, x: m.h(torch.cdist(m.b(x).view(-1, 4, 2), m.b(x).view(-1, 4, 2)).flatten(1)[:, 1:9]),
        lambda m, x: m.h(distances(m.b(x).view(-1, 4, 2)).flatten(1)[:, 1:9]),
    ),
    "a grid made in the model": (
        lambda m, x: m.h(functional.bilinear(m.b(x), m.b(x), torch.ones(8, 8, 8) / 64)),
        lambda m, x: m.h((m.b(x).sum(1).square() / 64)[:, None].expand(-1, 8)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_what_pytorch_differentiates_once_has_the_hessian_of_its_formula(name):
    risk, other = (ModelRisk(Two(forward), (X, Y)) for forward in FORMULAS[name])
    torch.testing.assert_close(risk.losses(risk.theta), other.losses(other.theta), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hessian_of(risk), hessian_of(other), rtol=1e-10, atol=1e-13)
    options = replace(QUICK, context=True, num_bootstrap=50)
    measured = [measure_spectrum(ModelRisk(Two(forward), (X, Y)), "all", options=options) for forward in FORMULAS[name]]
    for variable in ("lambda_max", "curvature_low", "curvature_high"):
        np.testing.assert_allclose(*(data[variable] for data in measured), rtol=1e-6, equal_nan=True)
    assert torch.get_default_dtype() == torch.float32

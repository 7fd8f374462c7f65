"""Risks in float32 of classes that are fitted, and constants of losses that survive float32."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape.class_weights import CLASS_WEIGHTS, class_weights
from landscape.losses import LOSSES, build_loss
from landscape.risk import ModelRisk, choose_lanes
from landscape.risk.normalised import logit_normalised
from landscape.risk.points import walk_of
from landscape.risk.taylor import example_terms

from risk_cases import digits, fill  # isort: skip

COUNTS = (23, 12, 6, 3)


def by_functional(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


def by_logarithms(logits, labels):
    return -functional.log_softmax(logits, dim=1)[torch.arange(len(labels)), labels]


def by_method(logits, labels):
    return functional.nll_loss(logits.log_softmax(1), labels, reduction="none")


OWN = {
    "ce": "ce",
    "functional": by_functional,
    "logarithms": by_logarithms,
    "method": by_method,
    "module": nn.CrossEntropyLoss(reduction="none"),
}


def fitted_network(dtype=torch.float32):
    """A linear network whose losses on four prototypes lie between 1e-9 and 1e-5, in weights that float32 holds."""
    images = (2.0 * torch.eye(4)).repeat_interleave(2, 0) + 0.125 * torch.arange(8)[:, None]
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(8.0 * torch.eye(4) + torch.arange(16).view(4, 4) / 16)
        model.bias.copy_(torch.tensor([2.0, 0.5, 0.0, -2.0]))
    return model.to(dtype), (images.to(dtype), torch.arange(4).repeat_interleave(2))


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_loss_gradient_and_curvature_of_fitted_classes_in_float32(loss):
    """Everything to 1e-5; the usual cross-entropy has multiples of 1.2e-7."""
    risks = [ModelRisk(*fitted_network(dtype), loss=loss) for dtype in (torch.float32, torch.float64)]
    lanes = torch.eye(4, dtype=torch.float64)
    found, expected = ([r.losses(r.theta), r.gradients(r.theta, lanes).norm(dim=1)] for r in risks)
    vectors = torch.ones(4, len(risks[0].theta))
    found.append(risks[0].hvps(risks[0].theta, lanes, vectors))
    expected.append(risks[1].hvps(risks[1].theta, lanes, vectors.double()))
    assert 1e-9 < float(expected[0].min()) < float(expected[0].max()) < 1e-4
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5 * float(b.abs().min()))
    plain = [r.evaluate(r.theta)["cross_entropy"] for r in risks]
    torch.testing.assert_close(plain[0], plain[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", ["ce", by_functional])
def test_walks_and_terms_of_single_examples_keep_the_digits_too(loss):
    risks = [ModelRisk(*fitted_network(dtype), loss=loss) for dtype in (torch.float32, torch.float64)]
    lanes = choose_lanes("all", class_names=risks[0].class_names, class_counts=risks[0].class_counts, groups={})
    names = ("loss",) if loss == "ce" else ("loss", "own_loss")
    walks = [walk_of(r, lanes).at_weights() for r in risks]
    direction = torch.ones(1, len(risks[0].theta))
    terms = [example_terms(r, direction.to(r.theta)) for r in risks]
    for name in names:
        torch.testing.assert_close(walks[0][name], walks[1][name], rtol=1e-5, atol=0)
        for a, b in zip(terms[0][name], terms[1][name]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=0)
    normalised = [logit_normalised(r) for r in risks]
    torch.testing.assert_close(*(r.losses(r.theta) for r in normalised), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_constants_are_rounded_once(name):
    """A float32 risk taken to float64 has the loss that was built in float64, to its last digit."""
    data = digits(dtype=torch.float32)
    model = fill(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), scale=0.02)
    risk = ModelRisk(model, data, loss=build_loss(name, COUNTS))
    exact = risk.in_float64()
    expected = []
    with torch.no_grad():
        logits = model.double()(data[0].double())
        loss = build_loss(name, COUNTS).eval()(logits, data[1])
    for c in range(4):
        expected.append(float(loss[data[1] == c].mean()))
    assert exact.losses(exact.theta).tolist() == pytest.approx(expected, rel=1e-13)
    assert exact.restricted(torch.arange(3)).loss is not risk.loss
    if any(b.is_floating_point() and b.numel() for b in exact.loss.buffers()):
        assert not torch.equal(*(torch.cat([b.double() for b in r.loss.buffers()]) for r in (risk, exact)))


class Weighted(nn.Module):
    """A caller's loss with constants in float64."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shares", torch.tensor([1 / 3, 1 / 7, 1 / 11, 1 / 13], dtype=torch.float64))

    def forward(self, logits, labels):
        return self.shares[labels] * functional.cross_entropy(logits, labels, reduction="none")


def test_constants_of_a_callers_loss_are_rounded_once():
    risk = ModelRisk(*fitted_network(), loss=Weighted())
    exact = risk.in_float64().with_batchnorm("frozen")
    assert risk.loss.shares.dtype == torch.float32
    assert exact.loss.shares.tolist() == [1 / 3, 1 / 7, 1 / 11, 1 / 13]
    torch.testing.assert_close(
        exact.losses(exact.theta), exact.evaluate(exact.theta)["cross_entropy"] * exact.loss.shares, rtol=1e-13, atol=0
    )


def effective(n, beta):
    return (1 - beta) / (1 - math.pow(beta, n))


FORMULAS = {
    "equal": lambda n, high, low: 1.0,
    "effective-number": lambda n, high, low: effective(n, 0.9999),
    "graded-effective-number": lambda n, high, low: effective(
        n, 0.9999 - 5e-5 + 1e-5 * math.log(high / n) / math.log(high / low)
    ),
    "inverse": lambda n, high, low: 1 / n,
    "inverse-sqrt": lambda n, high, low: n**-0.5,
}


@pytest.mark.parametrize("kind", CLASS_WEIGHTS)
def test_class_weights_are_those_of_float64(kind):
    """In Python's floats; 1 - beta^n cancels at n = 2 (beta = 0.9999) by 1e-12."""
    counts = (5000, 777, 50, 2)
    beta = 0.9999 if kind != "graded-effective-number" else 0.9999 - 5e-5
    raw = np.array([FORMULAS[kind](n, max(counts), min(counts)) for n in counts])
    found = class_weights(kind, counts, beta=beta)
    assert found.dtype == torch.float64
    tolerance = 1e-13 if "effective" not in kind else 2e-12
    assert found.tolist() == pytest.approx((raw * len(counts) / raw.sum()).tolist(), rel=tolerance)

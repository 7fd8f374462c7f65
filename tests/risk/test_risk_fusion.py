"""Convolutions that add and rectify themselves: the same function, or left alone."""

from __future__ import annotations

import pytest
import torch
from risk_cases import COUNTS, fill
from torch import nn
from torch.nn import functional

from landscape.models import build_model
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.evaluator import PointEvaluator
from landscape.risk.fusion import convolution_relu, convolution_sum_relu, fused

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


class Paths(nn.Module):
    """Convolutions before additions and ReLUs in every relation."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.rectify = nn.ReLU()
        self.head = nn.Linear(8, len(COUNTS))
        fill(self)
        self.eval().requires_grad_(False)

    def forward(self, x):
        made = self.first(x)
        x = self.rectify(made) if self.kind == "module" else functional.relu(made)
        out = self.second(x)
        if self.kind == "sum the other way":
            out = functional.relu(x + out)
        elif self.kind == "sum is read again":
            out = out + x
            out = functional.relu(out) + out
        elif self.kind == "convolution is read again":
            out = functional.relu(out) + out
        elif self.kind == "sum with itself":
            out = functional.relu(out + out)
        elif self.kind == "path by value":
            out = functional.relu(out) if bool(out.mean() > 0) else out
        elif self.kind == "scaled sum":
            out = functional.relu(torch.add(out, x, alpha=2.0))
        else:
            out = functional.relu(out + x)
        return self.head(out.mean((2, 3)))


# How many fused calls each of them gets; None: it cannot be traced.
FUSED = {
    "plain": 2,
    "module": 2,
    "sum the other way": 2,
    "sum is read again": 1,
    "convolution is read again": 1,
    "sum with itself": 1,
    "scaled sum": 1,
    "path by value": None,
}


def images(num=6):
    return torch.randn(num, 1, 8, 8, generator=stream(0, "test/fusion"))


@needs_onednn
@pytest.mark.parametrize("kind", FUSED)
def test_fusing_leaves_the_function_alone_and_happens_where_it_can(kind):
    model = Paths(kind)
    found = fused(model, CPU)
    if FUSED[kind] is None:
        assert found is None
        return
    calls = [node for node in found.graph.nodes if node.target in (convolution_relu, convolution_sum_relu)]
    assert len(calls) == FUSED[kind]
    torch.testing.assert_close(found(images()), model(images()), rtol=1e-5, atol=1e-6)


@needs_onednn
def test_weights_written_in_place_are_read_by_the_fused_network():
    model = Paths("plain")
    found = fused(model, CPU)
    before = found(images())
    dict(found.named_parameters())["second.weight"].mul_(2)
    model.second.weight.mul_(2)
    assert not found(images()).equal(before)
    torch.testing.assert_close(found(images()), model(images()), rtol=1e-5, atol=1e-6)


def test_networks_without_convolutions_and_other_devices_are_left_alone():
    assert fused(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), CPU) is None
    assert fused(Paths("plain"), torch.device("meta")) is None


def resnet_risk(dtype=torch.float32):
    model = build_model("resnet20", num_classes=len(COUNTS), in_channels=1, image_size=8)
    labels = torch.arange(24) % len(COUNTS)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(images(24))
    return ModelRisk(model.eval(), (images(24), labels), dtype=dtype)


@needs_onednn
def test_a_residual_network_is_folded_and_fused_and_agrees_with_the_plain_one():
    risk = resnet_risk()
    evaluated = PointEvaluator(risk)
    assert len(evaluated._pairs) == 19
    assert evaluated._is_fused
    assert evaluated.folding_error < 1e-5
    theta = 1.02 * risk.theta
    logits = risk.logits(theta, slice(0, 24)).detach()
    losses = functional.cross_entropy(logits, risk.labels, reduction="none").double()
    torch.testing.assert_close(evaluated(theta)["loss"], losses, rtol=1e-4, atol=1e-5)
    assert evaluated(theta)["loss"].equal(PointEvaluator(risk)(theta)["loss"])


def test_float64_has_no_such_kernel_and_is_folded_only():
    evaluated = PointEvaluator(resnet_risk(torch.float64))
    assert not evaluated._is_fused
    assert len(evaluated._pairs) == 19
    assert evaluated.folding_error < 1e-13

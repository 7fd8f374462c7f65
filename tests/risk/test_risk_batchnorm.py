"""BatchNorm: frozen statistics by default, recomputed ones on request, never a derivative through them."""

from __future__ import annotations

import copy

import pytest
import torch
from risk_cases import digits, digits_convnet, draw, smooth_mlp
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk, batchnorm


def class_losses(model, images, labels):
    with torch.no_grad():
        losses = functional.cross_entropy(model.eval()(images), labels, reduction="none").double()
    return torch.stack([losses[labels == c].mean() for c in range(4)])


def moved_model(model, step):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p, part in zip(model.parameters(), step.split([p.numel() for p in model.parameters()])):
            p.add_(part.view(p.shape))
    return model


@pytest.mark.parametrize("build", [smooth_mlp, lambda: digits_convnet(torch.float64)])
@pytest.mark.parametrize("batch", [44, 11])
@pytest.mark.parametrize("chunk_size", [44, 7])
def test_recalibrated_statistics_are_those_of_update_bn(build, batch, chunk_size, monkeypatch):
    """The same batches in the same order, whatever fits a forward pass: equal to rounding (1e-12), also off the centre."""
    monkeypatch.setattr(batchnorm, "CALIBRATION_BATCH", batch)
    images, labels = digits()
    risk = ModelRisk(build(), (images, labels), calibration=images, chunk_size=chunk_size)
    recalibrated = risk.with_batchnorm("recalibrate")
    for scale in (0.0, 0.1):
        step = scale * draw(len(risk.theta), name="step")
        model = moved_model(build(), step)
        num_batches = 44 // batch
        update_bn([images[start::num_batches] for start in range(num_batches)], model)
        got = recalibrated.losses(recalibrated.theta + step)
        torch.testing.assert_close(got, class_losses(model, images, labels), rtol=1e-12, atol=1e-13)


def test_frozen_statistics_are_those_of_the_checkpoint_before_and_after_a_recalibration():
    images, labels = digits()
    risk = ModelRisk(smooth_mlp(), (images, labels))
    expected = class_losses(smooth_mlp(), images, labels)
    recalibrated = risk.with_batchnorm("recalibrate")
    recalibrated.losses(risk.theta + 1)
    for frozen in (risk, recalibrated.with_batchnorm("frozen"), risk.with_batchnorm("frozen")):
        torch.testing.assert_close(frozen.losses(frozen.theta), expected, rtol=1e-13, atol=0)
        assert frozen.attributes["batchnorm"] == "frozen"
    assert (recalibrated.losses(risk.theta) - expected).abs().max() > 0.01
    assert recalibrated.attributes["batchnorm"] == "recalibrated on 44 examples in batches of 44 at every point"


def test_recalibration_has_no_memory():
    """The losses at a point do not depend on the points visited before."""
    risk = ModelRisk(smooth_mlp(), digits()).with_batchnorm("recalibrate")
    first = risk.losses(risk.theta)
    risk.losses(risk.theta + 1)
    assert torch.equal(risk.losses(risk.theta), first)


def test_only_the_normalisation_layers_leave_evaluation_mode():
    """Dropout stays off while the statistics are recomputed."""
    images, labels = digits()
    layers = smooth_mlp()
    with_dropout = nn.Sequential(*layers[:3], nn.Dropout(0.5), *layers[3:])
    plain = ModelRisk(layers, (images, labels)).with_batchnorm("recalibrate")
    dropped = ModelRisk(with_dropout, (images, labels)).with_batchnorm("recalibrate")
    assert torch.equal(dropped.losses(dropped.theta), plain.losses(plain.theta))


def test_recalibration_of_a_subset_of_the_parameters():
    images, labels = digits()
    whole = ModelRisk(smooth_mlp(), (images, labels)).with_batchnorm("recalibrate")
    head = ModelRisk(smooth_mlp(), (images, labels), params="head").with_batchnorm("recalibrate")
    assert torch.equal(head.losses(head.theta), whole.losses(whole.theta))


def test_derivatives_are_refused():
    risk = ModelRisk(smooth_mlp(), digits()).with_batchnorm("recalibrate")
    lanes = torch.ones(1, 4)
    with pytest.raises(LandscapeError, match="derivatives need batchnorm 'frozen'"):
        risk.gradients(risk.theta, lanes)
    with pytest.raises(LandscapeError, match="derivatives need batchnorm 'frozen'"):
        risk.hvps(risk.theta, lanes, risk.theta[None])


def test_a_model_without_statistics_has_nothing_to_recalibrate():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    with pytest.raises(LandscapeError, match="the model has no BatchNorm statistics; use 'frozen'"):
        ModelRisk(model, digits()).with_batchnorm("recalibrate")


def test_recalibration_hardly_depends_on_the_chunk_size_though_the_examples_are_sorted_by_class():
    """Contiguous batches of sorted classes would each miss the spread between classes in their variance."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()
    inputs = torch.randn(64, 2, dtype=torch.float64)
    inputs[32:] += 10.0  # far apart: the variance is mostly between the classes
    labels = torch.arange(64) // 32
    losses = []
    for chunk_size in (64, 16):
        risk = ModelRisk(model, (inputs, labels), chunk_size=chunk_size).with_batchnorm("recalibrate")
        losses.append(risk.losses(risk.theta))
    assert torch.allclose(losses[0], losses[1], rtol=0.02)

"""Golden tests of what a surface leaves behind: buffers, modes, gradients, random state (3.5, 3.8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import (
    POLICIES,
    Fuse,
    check_fails,
    images,
    network,
    network_risk,
)
from torch import nn

from landscape.randomness import stream
from landscape.risk import batchnorm
from landscape.surface import measure_surface

GRID = {"kind": "plane", "x": [-1.0, 0.5], "y": [-1.0, 1.0]}


def state_of(model):
    """Return everything that a caller could find changed, and the state of the global generator."""
    layers = list(model.modules())
    return {
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identity": [tensor.data_ptr() for tensor in model.state_dict().values()],
        "modes": [layer.training for layer in layers],
        "momenta": [getattr(layer, "momentum", None) for layer in layers],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "hooks": [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers],
        "random state": torch.get_rng_state(),
    }


def check_restored(model, before):
    now = state_of(model)
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert value.equal(now[name]) if isinstance(value, torch.Tensor) else value == now[name], name


def used_model():
    """A network in the middle of its training: training mode, a gradient, a frozen bias."""
    model = network(Fuse()).train()
    model[0].bias.requires_grad_(False)
    model[-1].weight.grad = torch.ones_like(model[-1].weight)
    return model


# ---- 3.5 ----------------------------------------------------------------------------------------------------------


def check_finite(losses):
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_3_5_batchnorm_networks_are_finite_on_the_whole_plane(policy):
    model = network()
    risk = network_risk(model)
    assert risk.layout.num_parameters == sum(p.numel() for p in model.parameters())  # no buffer among them
    axis = np.linspace(-1, 1, 5)
    check_finite(measure_surface(risk, kind="plane", x=axis, y=axis[:4], batchnorm=policy).loss)


def test_3_5_statistics_perturbed_like_weights():
    """Parameters and buffers moved alike: a variance becomes negative, as in 120 of 121 cells of that tool."""

    def losses(moved_tensors):
        found = []
        for alpha in np.linspace(-1, 1, 5):
            moved = network()
            for tensor in moved_tensors(moved):
                d = torch.randn(tensor.shape, generator=stream(0, "defects/3.5"))
                tensor += 3 * alpha * d * tensor.norm() / d.norm()
            with torch.no_grad():
                found.append(moved(images()[0]).numpy())
        return np.stack(found)

    check_finite(losses(lambda model: [p.data for p in model.parameters()]))
    check_fails(check_finite, losses(lambda model: [t for t in model.state_dict().values() if t.is_floating_point()]))


@pytest.mark.parametrize("policy", POLICIES)
def test_3_5_statistics_are_identical_before_and_after(policy, monkeypatch):
    model = used_model()
    before = state_of(model)
    risk = network_risk(model)

    def check():
        first = risk.losses(risk.theta)
        measure_surface(risk, batchnorm=policy, **GRID)
        check_restored(model, before)
        assert risk.losses(risk.theta).equal(first)

    check()
    # Planted: the caller's own network is walked, and the statistics of the last point stay in it.
    monkeypatch.setattr("landscape.risk.intake.private_copy", lambda given: given.eval())
    monkeypatch.setattr("landscape.risk.model.copied", lambda given: given)
    given = used_model()
    network_risk(given)
    check_fails(check_restored, given, before)


def test_3_5_recalibration_that_writes_into_the_network(monkeypatch):
    def check(risk):
        statistics = dict(risk._model.named_buffers())
        before = {name: tensor.clone() for name, tensor in statistics.items()}
        risk.losses(1.5 * risk.theta)
        assert all(before[name].equal(tensor) for name, tensor in statistics.items())

    check(network_risk().with_batchnorm("recalibrate"))
    original = batchnorm.recalibrate

    def leaking(model, parameters, batches):
        buffers = original(model, parameters, batches)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
        return buffers

    risk = network_risk().with_batchnorm("recalibrate")
    monkeypatch.setattr("landscape.risk.model.recalibrate", leaking)
    check_fails(check, risk)


# ---- 3.8 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_3_8_the_model_is_left_as_it_was(policy):
    model = used_model()
    before = state_of(model)
    measure_surface(network_risk(model), batchnorm=policy, **GRID)
    check_restored(model, before)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("policy", POLICIES)
def test_3_8_everything_is_restored_after_an_exception(policy, share, monkeypatch):
    """At the first evaluation, in the middle (with recalibration, within it as well) and near the end."""
    model = used_model()
    before = state_of(model)
    risk = network_risk(model)
    theta = risk.theta.clone()
    monkeypatch.setattr(Fuse, "calls", 0)
    expected = measure_surface(risk, batchnorm=policy, **GRID)
    monkeypatch.setattr(Fuse, "left", int(share * Fuse.calls))
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_surface(risk, batchnorm=policy, **GRID)
    check_restored(model, before)
    assert risk.theta.equal(theta)
    monkeypatch.setattr(Fuse, "left", float("inf"))
    assert measure_surface(risk, batchnorm=policy, **GRID).identical(expected)


def test_3_8_a_model_left_moved_or_frozen_is_noticed():
    """Each of the ways in which that tool left the caller's model, and two more."""
    changes = {
        "moved": lambda model: nn.init.zeros_(model[0].weight),
        "requires_grad=False": lambda model: model.requires_grad_(False),
        "evaluation mode": lambda model: model.eval(),
        "statistics": lambda model: model[1].running_var.mul_(1.0000001),
        "gradient": lambda model: setattr(model[-1].weight, "grad", None),
        "random state": lambda model: torch.rand(1),
    }
    for change in changes.values():
        model = used_model()
        before = state_of(model)
        check_restored(model, before)
        with torch.random.fork_rng(devices=[]):
            change(model)
            check_fails(check_restored, model, before)


def test_3_8_an_exception_within_recalibration_leaves_no_layer_in_training_mode(monkeypatch):
    """The layers whose statistics are being recomputed, and the random state, are as before."""

    def check(risk):
        expected, layers = risk.losses(risk.theta), list(risk._model.modules())
        modes, random_state = [layer.training for layer in layers], torch.get_rng_state()
        with monkeypatch.context() as patch:
            patch.setattr(Fuse, "left", 0)
            with pytest.raises(RuntimeError, match="out of memory"):
                risk.losses(risk.theta)
        assert [layer.training for layer in layers] == modes
        assert torch.get_rng_state().equal(random_state)
        assert risk.losses(risk.theta).equal(expected)

    check(network_risk(used_model()).with_batchnorm("recalibrate"))

    def without_finally(model, parameters, batches):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()
        for batch in batches:
            torch.func.functional_call(model, {**parameters, **buffers}, (batch,))
        model.eval()
        return buffers

    risk = network_risk(used_model()).with_batchnorm("recalibrate")
    monkeypatch.setattr("landscape.risk.model.recalibrate", without_finally)
    check_fails(check, risk)

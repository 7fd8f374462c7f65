"""Golden tests of what a surface leaves behind and depends on: buffers, modes, random state, data (3.4, 3.5, 3.8, 3.12)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from golden_cases import (
    E1,
    POLICIES,
    Fuse,
    check_fails,
    evaluating,
    images,
    network,
    network_risk,
    plane,
    slanted,
    toy,
)
from torch import nn

from landscape.randomness import stream
from landscape.risk import ModelRisk, batchnorm
from landscape.surface import measure_surface, random_directions

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
    monkeypatch.setattr("landscape.risk.model.private_copy", lambda given: given.eval())
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


# ---- 3.4 and 3.8 --------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(Fuse, "calls", 0)
    expected = measure_surface(risk, batchnorm=policy, **GRID)
    monkeypatch.setattr(Fuse, "left", int(share * Fuse.calls))
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_surface(risk, batchnorm=policy, **GRID)
    check_restored(model, before)
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


# ---- 3.12 ---------------------------------------------------------------------------------------------------------


def check_repeats(evaluate):
    assert evaluate() == evaluate()


def loader_of(inputs, labels):
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    return torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))


def test_3_12_shuffling_loader():
    """A loader is read once: every grid point sees the same examples."""
    loader = loader_of(*images(30))
    risk = ModelRisk(network(), loader)
    d = random_directions(risk, num=1, seed=0, pair=0)
    for policy in POLICIES:
        check_repeats(
            lambda p=policy: measure_surface(risk, directions=d, x=[-1, 0.3], batchnorm=p).loss.values.tolist()
        )

    def two_batches():
        batches = [batch for batch, _ in zip(loader, range(2))]
        return [nn.functional.cross_entropy(network()(x), y).item() for x, y in batches]

    check_fails(check_repeats, two_batches)


def check_same_point(risk, d, e):
    """A point has the same value alone, on a line, and in a plane, and again after the model was elsewhere."""
    line = measure_surface(risk, directions=[d], x=[-1, 0.3, 2])
    again = measure_surface(risk, directions=[d], x=[0.3, 1])
    crossing = measure_surface(risk, kind="plane", directions=[d, e], x=[0.1, 0.3], y=[-1, 0])
    values = [s.loss.sel(alpha=0.3, pair=0).values.tolist() for s in (line, again, crossing.sel(beta=0))]
    assert values[0] == values[1] == values[2]


def test_3_12_the_same_grid_point_evaluated_twice(monkeypatch):
    risk = network_risk()
    check_same_point(risk, *random_directions(risk, num=2, seed=0, pair=0))
    e1, e2 = torch.eye(2, dtype=torch.float64)
    check_same_point(toy(slanted), e1, e2)
    calls = itertools.count()
    evaluating(monkeypatch, lambda evaluate, theta: evaluate(theta) + 1e-9 * (next(calls) % 7))  # other examples
    check_fails(check_same_point, toy(slanted), e1, e2)
    check_fails(check_repeats, lambda: plane().loss.values.tolist())


# ---- the second trap ----------------------------------------------------------------------------------------------


def check_from_the_centre(evaluate, x):
    """The last of many points is, to the bit, the one that is measured alone."""
    assert evaluate(x)[-1] == evaluate(x[[0, -1]])[-1]


def test_trap_walking_in_place_drifts(monkeypatch):
    risk = network_risk()
    d = random_directions(risk, num=1, seed=0, pair=0)
    x = np.linspace(-1, 1, 101)
    check_from_the_centre(lambda at: measure_surface(risk, "all", directions=d, x=at).loss.values[0, :, 0], x)

    def walked(at):
        theta, found = risk.theta + float(at[0]) * d[0], []
        for step in [0.0, *np.diff(at)]:
            theta = theta + float(step) * d[0]
            found.append(float(theta.double().sum()))
        return found

    check_fails(check_from_the_centre, walked, x)


def test_trap_walking_in_place_is_noticed_in_our_own_walk(monkeypatch):
    """Planted where toys are evaluated: each point is reached from the one before, in float32."""
    x = np.linspace(-1, 1, 101)

    def surface(at):
        return measure_surface(toy(slanted), "all", directions=[E1], x=at).loss.values[0, :, 0].tolist()

    check_from_the_centre(surface, x)
    place, previous = torch.zeros(2), torch.zeros(2, dtype=torch.float64)

    def in_place(evaluate, theta):
        place.add_((theta - previous).float())  # rounded at every step
        previous.copy_(theta)
        return evaluate(place.double())

    evaluating(monkeypatch, in_place)
    check_fails(check_from_the_centre, surface, x)

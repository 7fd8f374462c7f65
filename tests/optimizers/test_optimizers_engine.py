"""The engine: restoration, pass counts, schedules, state, errors; every entry of OPTIMIZERS goes through each test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from optimizer_cases import (
    SGD_OPTIONS,
    STEP_IS_PLAIN,
    build,
    closure_of,
    criterion,
    draw,
    gradients_seen,
    make_batch,
    make_model,
    weights,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.directions import gradient_ascent
from landscape.errors import LandscapeError
from landscape.optimizers import OPTIMIZERS, SAM, NeighbourhoodOptimizer, Term, build_optimizer

PASSES = {
    "sgd": (1, 1),
    "gnm": (1, 1),
    "sam": (2, 2),
    "asam": (2, 2),
    "imbsam": (2, 3),
    "ssesam": (3, 4),
    "ccsam": (1, 1),
    "focal-sam": (2, 3),
    "gnp": (2, 2),
    "lpf": (1, 1),
    "mp": (2, 2),
    "perturbed-gd": (2, 2),
    "swa": (1, 1),
    "spectral-norm": (1, 1),
}
FIRST_PASS_IS_PERTURBED = ("gnm", "lpf", "mp")
every_method = pytest.mark.parametrize("name", OPTIMIZERS)
every_perturbation = pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if name not in (*STEP_IS_PLAIN, "ccsam", "perturbed-gd")]
)


class Interruption(Exception):
    pass


def interrupted(closure, call):
    """Return the closure, raising after the forward pass of its given call (from 1)."""
    calls = []

    def run():
        calls.append(1)
        losses = closure()
        if len(calls) == call:
            raise Interruption
        return losses

    return run


class NoHostSynchronisation(TorchDispatchMode):
    """Fail on operations that read a value back or whose result shape depends on data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "_unique", "masked_select", "aten.equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in self.FORBIDDEN), f"{func} waits for the device"
        if "index" in str(func):
            indices = args[1] if isinstance(args[1], list | tuple) else []
            assert not any(i is not None and i.dtype == torch.bool for i in indices), f"{func} with a mask"
        return func(*args, **(kwargs or {}))


@every_method
def test_pass_counts(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    calls = []

    def closure():
        calls.append(1)
        return criterion(model(x), y)

    for _ in range(2):
        optimizer.step(closure, labels=y)
    assert (optimizer.num_forwards, optimizer.num_backwards) == tuple(2 * n for n in PASSES[name])
    assert len(calls) == optimizer.num_forwards


@dataclass(frozen=True)
class Mixture:
    """A rule of a user's own: alpha of SAM's gradient, 1 - alpha of the plain one, by weights of the examples."""

    alpha: float
    name: ClassVar[str] = "mixture"
    needs: ClassVar[frozenset[str]] = frozenset()

    def terms(self, batch):
        here = torch.full((12,), 1 - self.alpha, dtype=torch.float64)
        moved = torch.full((12,), self.alpha, dtype=torch.float64)
        assert all(a.equal(b) for a, b in zip(batch.gradient(), batch.gradient()))
        return [Term(here), Term(moved, gradient_ascent(batch.gradient(), 0.3))]


def test_a_new_rule_is_a_few_lines_and_repeats_no_pass():
    x, y = make_batch()
    results = []
    for rule in (Mixture(1.0), SAM(0.3)):
        model = make_model()
        optimizer = NeighbourhoodOptimizer(model.parameters(), rule, base_options=SGD_OPTIONS)
        for _ in range(3):
            optimizer.step(closure_of(model, x, y))
        results.append(weights(model))
        # The mean's gradient is asked for three times and computed once.
        assert optimizer.num_backwards == 3 * (3 if rule.name == "mixture" else 2)
        assert optimizer.num_forwards == 3 * 2
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@every_method
def test_pass_counts_are_what_autograd_ran(name):
    """Count the backward passes through the first layer by a hook on its output."""
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    backwards = []

    def closure():
        hidden = model[0](x)
        hidden.register_hook(lambda gradient: backwards.append(1))
        return criterion(model[2](model[1](hidden)), y)

    optimizer.step(closure, labels=y)
    assert len(backwards) == optimizer.num_backwards == PASSES[name][1]


@every_method
def test_weights_are_restored_bit_for_bit(name):
    """With learning rate 0 nothing may change, in single precision, where w + e - e would not be w."""
    model, (x, y) = make_model().float(), make_batch()
    before = weights(model)
    optimizer = build(name, model, base_options={"lr": 0.0})
    for _ in range(3):
        optimizer.step(closure_of(model, x.float(), y), labels=y)
    assert weights(model).equal(before)


@every_perturbation
def test_the_last_pass_is_at_perturbed_weights(name):
    model, (x, y) = make_model(), make_batch()
    before, seen = weights(model), []

    def closure():
        seen.append(weights(model))
        return criterion(model(x), y)

    build(name, model).step(closure, labels=y)
    assert (seen[-1] - before).norm() > 1e-3


@every_method
def test_an_exception_leaves_everything_as_it_was(name):
    for call in range(1, PASSES[name][0] + 1):
        model, (x, y) = make_model(), make_batch()
        optimizer = build(name, model, bn_statistics="first-pass")
        model[0].weight.grad = torch.ones_like(model[0].weight)
        before = weights(model)
        with pytest.raises(Interruption):
            optimizer.step(interrupted(closure_of(model, x, y), call), labels=y)
        assert weights(model).equal(before)
        assert model[0].weight.grad.equal(torch.ones_like(model[0].weight))
        assert not optimizer.state
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        optimizer.step(closure_of(model, x, y), labels=y)
        assert weights(model).isfinite().all()


@every_method
def test_gradients_are_set_for_the_base_step_only(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    seen = gradients_seen(optimizer)
    model[0].bias.grad = torch.full_like(model[0].bias, 1e6)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert seen[0].abs().max() < 100
    assert [p.grad is None for p in model.parameters()] == [True, False, True, True]
    assert model[0].bias.grad.equal(torch.full_like(model[0].bias, 1e6))


@every_method
def test_weight_decay_acts_at_the_restored_weights(name):
    model, (x, y) = make_model(), make_batch()
    before = weights(model)
    optimizer = build(name, model, base_options={"lr": 0.1, "weight_decay": 0.5})
    seen = gradients_seen(optimizer)
    optimizer.step(closure_of(model, x, y), labels=y)
    torch.testing.assert_close(weights(model), before - 0.1 * (seen[0] + 0.5 * before), rtol=1e-13, atol=1e-15)


@every_method
def test_frozen_and_unused_parameters_do_not_drift(name):
    model, (x, y) = make_model(), make_batch()
    model[0].weight.requires_grad_(False)
    unused = nn.Parameter(draw(3, name="unused"))
    frozen_before, unused_before = model[0].weight.clone(), unused.detach().clone()
    for p in (unused, model[0].weight):
        p.grad = torch.ones_like(p)  # left over from elsewhere; must not be stepped on
    optimizer = build(name, model, params=[("unused.weight", unused), *model.named_parameters()])
    for _ in range(3):
        optimizer.step(closure_of(model, x, y), labels=y)
    assert model[0].weight.equal(frozen_before)
    assert unused.detach().equal(unused_before)


@every_method
def test_the_returned_loss_is_the_mean_where_first_evaluated(name):
    model, (x, y) = make_model(), make_batch()
    values = []

    def closure():
        losses = criterion(model(x), y)
        values.append(losses.mean().item())
        return losses

    loss = build(name, model).step(closure, labels=y)
    assert loss.item() == values[0]
    assert not loss.requires_grad


@every_method
def test_nothing_waits_for_the_device(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    with NoHostSynchronisation():
        optimizer.step(closure_of(model, x, y), labels=y)


@every_method
def test_a_network_of_one_parameter(name):
    model, (x, y) = nn.Sequential(nn.Linear(5, 4, bias=False)).double(), make_batch()
    options = {"layers": "all"} if name == "mp" else {}
    optimizer = build(name, model, **options)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert torch.isfinite(model[0].weight).all()


@every_method
def test_more_examples_than_classes_or_fewer(name):
    for num in (1, 3, 40):
        model, (x, y) = make_model(), make_batch(num)
        optimizer = build(name, model)
        optimizer.step(closure_of(model, x, y), labels=y)
        assert weights(model).isfinite().all()


@every_method
@pytest.mark.parametrize("attach_to_base", [False, True])
def test_learning_rate_schedulers_attach_to_either(name, attach_to_base):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model, base_options={"lr": 0.1})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base if attach_to_base else optimizer, 1, gamma=0.5)
    seen = gradients_seen(optimizer)
    for lr in (0.1, 0.05, 0.025):
        before = weights(model)
        optimizer.step(closure_of(model, x, y), labels=y)
        scheduler.step()
        torch.testing.assert_close(before - weights(model), lr * seen[-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [torch.optim.lr_scheduler.OneCycleLR, torch.optim.lr_scheduler.ReduceLROnPlateau])
def test_schedulers_that_read_the_defaults_attach(make):
    model, (x, y) = make_model(), make_batch()
    optimizer = build("sam", model)
    options = {"max_lr": 0.1, "total_steps": 4} if make is torch.optim.lr_scheduler.OneCycleLR else {}
    scheduler = make(optimizer, **options)
    optimizer.step(closure_of(model, x, y), labels=y)
    scheduler.step(*([] if options else [1.0]))


@every_method
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_resumed_run_equals_an_uninterrupted_one(name, base, tmp_path):
    x, y = make_batch()
    options = {"base": base, "base_options": {"lr": 0.01, "weight_decay": 0.1}}
    if base is torch.optim.SGD:
        options["base_options"]["momentum"] = 0.9
    model = make_model()
    optimizer = build(name, model, **options)
    optimizer.start_epoch(2, 4)  # after the switch of SSE-SAM
    for step in range(5):
        if step == 3:
            torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
        optimizer.step(closure_of(model, x, y), labels=y)
    resumed_model = make_model(seed=1)
    resumed = build(name, resumed_model, **options)
    model_state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed_model.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)
    assert (resumed.epoch, resumed.num_epochs) == (2, 4)
    assert resumed.param_groups is resumed.base.param_groups
    for _ in range(2):
        resumed.step(closure_of(resumed_model, x, y), labels=y)
    assert weights(resumed_model).equal(weights(model))
    assert resumed.num_forwards == optimizer.num_forwards


def test_loading_through_the_base_keeps_the_groups_shared():
    model = make_model()
    optimizer = build("sam", model)
    optimizer.base.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.25).state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.125).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_parameter_groups_keep_their_options_and_can_be_added():
    model, (x, y) = make_model(), make_batch()
    optimizer = build("sam", model, params=[{"params": model[0].parameters(), "lr": 0.0}], base_options={"lr": 0.1})
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(closure_of(model, x, y), labels=y)
    moved = [not p.detach().equal(b) for p, b in zip(model.parameters(), before)]
    assert moved == [False, False, True, True]


def test_hooks_on_the_base_see_the_gradient_and_may_clip_it():
    model, (x, y) = make_model(), make_batch()
    optimizer = build("sam", model, base_options={"lr": 1.0})

    def clip(*_):
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    optimizer.base.register_step_pre_hook(clip)
    before = weights(model)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert (weights(model) - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def batchnorm_model():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(draw(*p.shape, name=name))
    return model


@every_method
def test_batchnorm_statistics_follow_the_policy(name):
    x, y = make_batch()
    once = batchnorm_model()
    once(x)
    updates = {}
    for policy in ("every-pass", "first-pass"):
        model = batchnorm_model()
        optimizer = build(name, model, bn_statistics=policy, base_options={"lr": 0.0})
        optimizer.step(closure_of(model, x, y), labels=y)
        updates[policy] = model[1].num_batches_tracked.item()
        if policy == "first-pass" and name not in FIRST_PASS_IS_PERTURBED:
            assert model[1].running_mean.equal(once[1].running_mean)
            assert model[1].running_var.equal(once[1].running_var)
    assert updates == {"every-pass": PASSES[name][0], "first-pass": 1}


def test_buffers_of_the_first_pass_survive_an_exception():
    model, (x, y) = batchnorm_model(), make_batch()
    optimizer = build("sam", model, bn_statistics="first-pass")
    with pytest.raises(Interruption):
        optimizer.step(interrupted(closure_of(model, x, y), 2), labels=y)
    assert model[1].num_batches_tracked.item() == 1


# ---- what people carry over from other optimizers ----------------------------------------------------------------


def test_an_option_of_the_rule_in_a_parameter_group_is_refused():
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "rho": 0.0}, {"params": [model.bias]}]
    with pytest.raises(LandscapeError, match="'rho' is an option of sam and holds for all parameters"):
        build_optimizer("sam", groups, base_options={"lr": 0.1})


def test_a_step_without_a_closure_and_a_base_with_its_own_are_refused():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer("sam", model.parameters(), base_options={"lr": 0.1})
    with pytest.raises(LandscapeError, match=r"step needs a closure .*GradScaler"):
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    with pytest.raises(LandscapeError, match="step needs a closure"):
        scaler.step(optimizer)
    with pytest.raises(LandscapeError, match="LBFGS, which evaluates closures itself"):
        build_optimizer("sam", model.parameters(), base=torch.optim.LBFGS)

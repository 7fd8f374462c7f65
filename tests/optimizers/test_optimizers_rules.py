"""What each method is defined by: its perturbation, its special cases, its schedule."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from optimizer_cases import (
    CLASS_COUNTS,
    SGD_OPTIONS,
    build,
    closure_of,
    criterion,
    gradients_seen,
    make_batch,
    make_model,
    weights,
)
from torch import nn

from landscape.models import NormedLinear
from landscape.optimizers import GNM, OPTIMIZERS, build_optimizer
from landscape.randomness import stream


def run(name, num_steps=3, labels=None, **changes):
    model, (x, y) = make_model(), make_batch()
    y = y if labels is None else labels
    optimizer = build(name, model, **changes)
    for _ in range(num_steps):
        optimizer.step(closure_of(model, x, y), labels=y)
    return weights(model)


def visited(name, num_steps=1, **changes):
    """Return where the passes of the last step were evaluated, relative to the weights at its start."""
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model, **changes)
    points = []

    def closure():
        points.append(weights(model))
        return criterion(model(x), y)

    for _ in range(num_steps):
        before = weights(model)
        points.clear()
        optimizer.step(closure, labels=y)
    return [point - before for point in points]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_registry_names_agree_and_options_have_defaults(name):
    rule = OPTIMIZERS[name]()
    assert rule.name == name
    assert all(hasattr(rule, field.name) for field in fields(rule))
    with pytest.raises(AttributeError):
        rule.name = "frozen"


def test_defaults_are_the_published_ones():
    defaults = {name: {f.name: f.default for f in fields(rule)} for name, rule in OPTIMIZERS.items()}
    assert defaults == {
        "sgd": {},
        "sam": {
            "rho": 0.05,
            "schedule": "constant",
            "rho_steps": (0.05, 0.1, 0.5, 0.6),
            "rho_epochs": (5, 160, 180),
            "rho_range": (0.05, 0.8),
        },
        "asam": {"rho": 0.5, "eta": None, "variant": "official"},
        "imbsam": {"rho": 0.05, "eta": 20, "tail_weight": 1.0},
        "ccsam": {
            "flat_ratio": 0.3,
            "noise_ratio": 0.01,
            "max_relative_radius": 0.05,
            "perturbation": "full",
            "norms": "per-tensor",
        },
        "ssesam": {"rho_head": 0.05, "rho_tail": 0.10, "gamma": 0.70, "eta": 100},
        "gnm": {
            "rho": 0.05,
            "sigma": 1 / 3,
            "clip": 1.0,
            "dis_mul": 0.1,
            "decay_every": 59,
            "schedule": "described",
        },
        "focal-sam": {
            "rho": 0.2,
            "gamma": 3.0,
            "lam": 0.5,
            "schedule": "constant",
            "rho_steps": (0.1, 0.2),
            "rho_epochs": (0.8,),
            "rho_range": (0.05, 0.8),
        },
        "gnp": {"r": 0.1, "alpha": 0.8, "variant": "paper"},
        "lpf": {"gamma": 0.002, "num_parts": 1},
        "mp": {
            "random_times": 2,
            "std_weight": 2.0,
            "bound": 0.01,
            "distribution": "discrete-beta",
            "layers": "last-convs",
            "num_layers": 4,
        },
        "perturbed-gd": {"radius": 0.1, "threshold": 0.1, "wait": 100, "gradient_at": "after", "variant": "ball"},
        "swa": {"start": 0.8, "swa_lr": 0.05, "schedule": "own"},
        "spectral-norm": {"num_iterations": 1, "head": True, "eps": 1e-12},
    }


@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_sam_goes_as_far_as_rho_over_all_tensors_jointly(rho):
    at_theta, perturbed = visited("sam", rho=rho)
    assert at_theta.norm() == 0
    # theta + eps - theta loses about 1e-16 |theta|, 1e-14 relative to the smallest rho
    assert perturbed.norm().item() == pytest.approx(rho, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "zero"), [("sam", "rho"), ("asam", "rho"), ("gnm", "sigma"), ("ccsam", "noise_ratio")]
)
def test_a_method_without_perturbation_is_plain_descent(name, zero):
    torch.testing.assert_close(run(name, **{zero: 0.0}), run("sgd"), rtol=1e-12, atol=1e-14)


def test_tail_weight_scales_the_tail_gradient_but_not_the_perturbation():
    gradients = []
    for tail_weight in (0.0, 1.0, 2.0):
        model, (x, y) = make_model(), make_batch()
        optimizer = build("imbsam", model, tail_weight=tail_weight)
        seen = gradients_seen(optimizer)
        optimizer.step(closure_of(model, x, y), labels=y)
        gradients.append(seen[0])
    # The guard 1e-12 in the norm's denominator weighs half as much against a gradient of twice the length.
    torch.testing.assert_close(gradients[2] - gradients[0], 2 * (gradients[1] - gradients[0]), rtol=1e-10, atol=1e-12)
    one, two = (visited("imbsam", tail_weight=w)[1] for w in (1.0, 2.0))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("zero", [{"rho_head": 0.0}, {"gamma": 0}])
def test_ssesam_without_head_perturbation_is_imbsam(zero):
    options = {"rho_tail": 0.3, "rho_head": 0.2, **zero}
    assert run("ssesam", **options).equal(run("imbsam", rho=0.3, tail_weight=1.0))


@pytest.mark.parametrize(("gamma", "num_epochs", "switch"), [(0.7, 200, 140), (0.07, 100, 7), (0.5, 3, 2)])
def test_ssesam_switches_after_a_share_of_the_training(gamma, num_epochs, switch):
    model, (x, y) = make_model(), make_batch()
    optimizer = build("ssesam", model, gamma=gamma)
    passes = []
    for epoch in (0, switch - 1, switch, num_epochs - 1):
        optimizer.start_epoch(epoch, num_epochs)
        before = optimizer.num_forwards, optimizer.num_backwards
        optimizer.step(closure_of(model, x, y), labels=y)
        passes.append((optimizer.num_forwards - before[0], optimizer.num_backwards - before[1]))
    assert passes == [(3, 4), (3, 4), (2, 3), (2, 3)]


@pytest.mark.parametrize("gamma", [0, 1])
def test_ssesam_without_a_switch_needs_no_epochs(gamma):
    model, (x, y) = make_model(), make_batch()
    optimizer = build_optimizer("ssesam", model.parameters(), tail_classes=[3], gamma=gamma)
    optimizer.step(closure_of(model, x, y), labels=y)
    assert optimizer.num_forwards == (2 if gamma == 0 else 3)


@pytest.mark.parametrize("name", ["imbsam", "ssesam"])
def test_a_batch_without_head_examples_is_finite(name):
    assert run(name, labels=make_batch()[1] % 2 + 2).isfinite().all()


def test_tail_classes_come_from_the_threshold_unless_named():
    counts = {"tail_classes": None, "class_counts": CLASS_COUNTS}
    assert build("imbsam", make_model(), **counts).task.tail_classes.tolist() == [3]
    assert build("imbsam", make_model(), eta=51, **counts).task.tail_classes.tolist() == [1, 2, 3]
    assert build("ssesam", make_model(), **counts).task.tail_classes.tolist() == [1, 2, 3]
    assert build("imbsam", make_model(), tail_classes=[0]).task.tail_classes.tolist() == [0]
    cifar100 = [int(500 * 0.01 ** (c / 99)) for c in range(100)]
    for name, num_tail in (("imbsam", 30), ("ssesam", 65)):
        tail = build(name, make_model(), class_counts=cifar100, tail_classes=None).task.tail_classes
        assert tail.tolist() == list(range(100 - num_tail, 100))


@pytest.mark.parametrize(
    ("schedule", "epoch", "std"),
    [
        ("described", 0, 1.6625e-3),
        ("released", 0, 3.325e-3),
        ("described", 1, 1.6625e-3),
        ("released", 59, 1.6625e-3),
        ("described", 59, 1.6625e-3),
        ("described", 60, 8.3125e-4),
        ("released", 60, 8.3125e-4),
        ("described", 119, 4.15625e-4),
    ],
)
def test_gnm_noise_on_the_published_number_of_parameters(schedule, epoch, std):
    """Prompts and classifier of the published CIFAR-100 setting: 168,960 parameters."""
    parameter = nn.Parameter(torch.zeros(168_960, dtype=torch.float64))
    optimizer = build_optimizer("gnm", [parameter], schedule=schedule, base_options={"lr": 0.0})
    optimizer.start_epoch(epoch, 200)
    seen = []

    def closure():
        seen.append(parameter.detach().clone())
        return (parameter**2).sum().reshape(1)

    optimizer.step(closure)
    # Standard error of a standard deviation: 1 / sqrt(2 * 168960) = 0.17 %; the stated values have four digits.
    assert seen[0].std().item() == pytest.approx(std, rel=5 * 0.0017)
    assert seen[0].norm().item() == pytest.approx(std * math.sqrt(168_960), rel=5 * 0.0017)
    limit = 3 * std / 0.9975  # the clip is at three standard deviations before clipping
    assert seen[0].abs().max().item() == pytest.approx(limit, rel=1e-3)


def test_gnm_without_decay_keeps_its_noise():
    assert {GNM(decay_every=None).decay(epoch) for epoch in (0, 1, 60, 10_000)} == {1.0}


def test_gnm_noise_follows_the_generator():
    def first_point(generator):
        model, (x, y) = make_model(), make_batch()
        optimizer = build("gnm", model)
        optimizer.start_epoch(0, 4, generator)
        points = []

        def closure():
            points.append(weights(model))
            return criterion(model(x), y)

        optimizer.step(closure)
        optimizer.step(closure)
        return points

    default, again = first_point(None), first_point(None)
    named, other = first_point(stream(1, "a")), first_point(stream(1, "b"))
    assert default[0].equal(again[0])
    assert not named[0].equal(other[0])
    assert not default[0].equal(named[0])
    start = weights(make_model())
    assert not (default[0] - start).equal(default[1] - start)


def test_sgd_is_the_base_optimizer_bit_for_bit():
    model, (x, y) = make_model().float(), make_batch()
    base = torch.optim.SGD(model.parameters(), **SGD_OPTIONS)
    for _ in range(5):
        base.zero_grad()
        criterion(model(x.float()), y).mean().backward()
        base.step()
    other = make_model().float()
    optimizer = build("sgd", other)
    for _ in range(5):
        optimizer.step(closure_of(other, x.float(), y))
    assert weights(other).equal(weights(model))


def test_the_cosine_head_is_found():
    assert isinstance(build("ccsam", make_model(head="cosine")).task.head, NormedLinear)

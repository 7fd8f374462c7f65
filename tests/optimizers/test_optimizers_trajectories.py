"""Each method against a plain loop written from its paper, over five steps and several base optimizers."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import STEP_IS_PLAIN, build, closure_of, criterion, make_batch, make_model, weights
from plain_loops import JUMPS, REFERENCES, along, grads_moved, grads_of, lpf_noise, zeros

from landscape.optimizers import OPTIMIZERS
from landscape.randomness import stream

EPOCHS = [0, 0, 2, 2, 2]  # of 4: after the second step SSE-SAM switches and GNM halves its noise
BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.05}),
}


def reference_run(name, base, options, x, y):
    model = make_model()
    optimizer = base(model.parameters(), **options)
    for step, epoch in enumerate(EPOCHS):
        if step == 0 or epoch != EPOCHS[step - 1]:
            noise = stream(7, f"noise/{epoch}")
        grads = REFERENCES[name](model, x, y, epoch, noise)
        for p, g in zip(model.parameters(), grads):
            p.grad = g
        optimizer.step()
    return weights(model)


def engine_run(name, base, options, x, y):
    model = make_model()
    optimizer = build(name, model, base=base, base_options=options, **(JUMPS if name == "perturbed-gd" else {}))
    for step, epoch in enumerate(EPOCHS):
        if step == 0 or epoch != EPOCHS[step - 1]:
            optimizer.start_epoch(epoch, 4, stream(7, f"noise/{epoch}"))
        optimizer.step(closure_of(model, x, y), labels=y)
    return weights(model)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_equal_a_plain_loop(name, base):
    x, y = make_batch()
    # 1e-9: rounding of a different summation order, amplified by Adam's division by a root of small squares.
    torch.testing.assert_close(
        engine_run(name, *BASES[base], x, y), reference_run(name, *BASES[base], x, y), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in STEP_IS_PLAIN])
def test_every_method_differs_from_plain_descent(name):
    x, y = make_batch()
    difference = engine_run(name, *BASES["sgd"], x, y) - engine_run("sgd", *BASES["sgd"], x, y)
    assert difference.abs().max() > 1e-4


def test_asam_with_all_parameters_scaled_has_no_offset():
    x, y = make_batch()
    model, other = make_model(), make_model()
    g = grads_of(criterion(other(x), y).mean(), other)
    norm = sum(((p.data * a) ** 2).sum() for p, a in zip(other.parameters(), g)) ** 0.5
    steps = [0.5 * p.data**2 * a / norm for p, a in zip(other.parameters(), g)]
    expected = [
        p.data - 0.1 * a for p, a in zip(other.parameters(), grads_moved(other, x, y, torch.ones(len(y)), steps))
    ]
    optimizer = build("asam", model, base_options={"lr": 0.1}, variant="all-parameters")
    optimizer.step(closure_of(model, x, y))
    torch.testing.assert_close(weights(model), torch.cat([e.flatten() for e in expected]), rtol=1e-12, atol=1e-12)


def test_gnp_as_released_mixes_in_the_normalised_gradient():
    x, y = make_batch()
    model, other = make_model(), make_model()
    ones = torch.ones(len(y))
    g = grads_of(criterion(other(x), y).mean(), other)
    moved = grads_moved(other, x, y, ones, along(g, 0.3))
    steps = [0.4 * a + 0.6 * b for a, b in zip(along(g, 1.0), moved)]
    expected = torch.cat([(p - 0.1 * step).detach().flatten() for p, step in zip(other.parameters(), steps)])
    optimizer = build("gnp", model, base_options={"lr": 0.1}, alpha=0.6, variant="released")
    optimizer.step(closure_of(model, x, y))
    torch.testing.assert_close(weights(model), expected, rtol=1e-11, atol=1e-13)
    assert (optimizer.num_forwards, optimizer.num_backwards) == (2, 2)


@pytest.mark.parametrize("num", [12, 11])
def test_lpf_parts_have_noise_of_their_own_and_equal_weight(num):
    """12 examples in 3 parts of 4; 11 in parts of 3, 4 and 4, so that an example of the first counts more."""
    x, y = make_batch(num)
    model, other = make_model(), make_model()
    optimizer = build("lpf", model, base_options={"lr": 0.1}, gamma=0.2, num_parts=3)
    optimizer.start_epoch(0, 4, stream(7, "noise"))
    optimizer.step(closure_of(model, x, y), labels=y)

    noise, total = stream(7, "noise"), zeros(other)
    draws = [lpf_noise(other, noise, 0.2) for _ in range(3)]
    parts = [range(4), range(4, 8), range(8, 12)] if num == 12 else [range(3), range(3, 7), range(7, 11)]
    for part, draw in zip(parts, draws):
        rows = torch.tensor(list(part))
        grads = grads_moved(other, x[rows], y[rows], torch.ones(len(rows)), draw)
        total = [a + b / 3 for a, b in zip(total, grads)]
    expected = torch.cat([(p - 0.1 * step).detach().flatten() for p, step in zip(other.parameters(), total)])
    torch.testing.assert_close(weights(model), expected, rtol=1e-11, atol=1e-13)
    assert (optimizer.num_forwards, optimizer.num_backwards) == (3, 3)


def test_perturbed_gd_with_the_gradient_before_the_jump_costs_one_pass():
    x, y = make_batch()
    model, other = make_model(), make_model()
    optimizer = build("perturbed-gd", model, base_options={"lr": 0.1}, gradient_at="before", **JUMPS)
    optimizer.start_epoch(0, 4, stream(7, "noise"))
    optimizer.step(closure_of(model, x, y))
    g = grads_of(criterion(other(x), y).mean(), other)
    noise = stream(7, "noise")
    draw = [torch.randn(p.shape, generator=noise, dtype=p.dtype) for p in other.parameters()]
    share = torch.rand((), generator=noise, dtype=x.dtype).item() ** (1 / len(weights(other)))
    steps = along(draw, JUMPS["radius"] * share)
    expected = torch.cat([(p + s - 0.1 * a).detach().flatten() for p, s, a in zip(other.parameters(), steps, g)])
    torch.testing.assert_close(weights(model), expected, rtol=1e-12, atol=1e-14)
    assert (optimizer.num_forwards, optimizer.num_backwards) == (1, 1)


def test_stochastic_perturbed_gd_adds_noise_to_every_gradient():
    x, y = make_batch()
    model, other = make_model(), make_model()
    optimizer = build("perturbed-gd", model, base_options={"lr": 0.1}, variant="stochastic", radius=0.5)
    optimizer.start_epoch(0, 4, stream(7, "noise"))
    optimizer.step(closure_of(model, x, y))
    noise, total = stream(7, "noise"), []
    for a in grads_of(criterion(other(x), y).mean(), other):
        total.append(a + 0.5 / len(weights(other)) ** 0.5 * torch.randn(a.shape, generator=noise, dtype=a.dtype))
    expected = torch.cat([(p - 0.1 * step).detach().flatten() for p, step in zip(other.parameters(), total)])
    torch.testing.assert_close(weights(model), expected, rtol=1e-12, atol=1e-14)
    assert (optimizer.num_forwards, optimizer.num_backwards) == (1, 1)

"""Each method against a plain loop written from its paper, over five steps and several base optimizers."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CLASS_COUNTS, OPTIONS, TAIL, build, closure_of, criterion, make_batch, make_model, weights
from torch.nn import functional

from landscape.optimizers import OPTIMIZERS
from landscape.randomness import stream

EPOCHS = [0, 0, 2, 2, 2]  # of 4: after the second step SSE-SAM switches and GNM halves its noise
BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.05}),
}


def grads_of(loss, model):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def grads_moved(model, x, y, mask, steps):
    """Move the weights, differentiate the masked loss over B, move back."""
    saved = [p.data.clone() for p in model.parameters()]
    for p, step in zip(model.parameters(), steps):
        p.data = p.data + step
    grads = grads_of((criterion(model(x), y) * mask).sum() / len(y), model)
    for p, value in zip(model.parameters(), saved):
        p.data = value
    return grads


def along(grads, rho):
    norm = sum((g**2).sum() for g in grads) ** 0.5
    return [rho * g / norm for g in grads]


def zeros(model):
    return [torch.zeros_like(p) for p in model.parameters()]


def sgd(model, x, y, epoch, noise):
    return grads_of(criterion(model(x), y).mean(), model)


def sam(model, x, y, epoch, noise):
    ones = torch.ones(len(y), dtype=x.dtype)
    g = grads_moved(model, x, y, ones, zeros(model))
    return grads_moved(model, x, y, ones, along(g, OPTIONS["sam"]["rho"]))


def asam(model, x, y, epoch, noise):
    ones = torch.ones(len(y), dtype=x.dtype)
    g = grads_moved(model, x, y, ones, zeros(model))
    scale = [p.data.abs() + 0.01 if "weight" in n else torch.ones_like(p) for n, p in model.named_parameters()]
    norm = sum(((t * a) ** 2).sum() for t, a in zip(scale, g)) ** 0.5
    return grads_moved(model, x, y, ones, [0.5 * t**2 * a / norm for t, a in zip(scale, g)])


def imbsam(model, x, y, epoch, noise):
    tail = torch.tensor([float(c in TAIL) for c in y.tolist()], dtype=x.dtype)
    g_head = grads_moved(model, x, y, 1 - tail, zeros(model))
    g_tail = grads_moved(model, x, y, 2 * tail, zeros(model))
    moved = grads_moved(model, x, y, 2 * tail, along(g_tail, OPTIONS["imbsam"]["rho"]))
    return [a + b for a, b in zip(g_head, moved)]


def ssesam(model, x, y, epoch, noise):
    tail = torch.tensor([float(c in TAIL) for c in y.tolist()], dtype=x.dtype)
    rho_head = OPTIONS["ssesam"]["rho_head"] if epoch < 2 else 0.0
    total = zeros(model)
    for mask, rho in ((1 - tail, rho_head), (tail, OPTIONS["ssesam"]["rho_tail"])):
        g = grads_moved(model, x, y, mask, zeros(model))
        total = [a + b for a, b in zip(total, grads_moved(model, x, y, mask, along(g, rho)))]
    return total


def gnm(model, x, y, epoch, noise):
    factor = OPTIONS["gnm"]["rho"] * 0.1 * {0: 1.0, 2: 0.5}[epoch]
    steps = []
    for p in model.parameters():
        z = torch.randn(p.shape, generator=noise, dtype=p.dtype) / 3
        steps.append(factor * z.clamp(-1, 1))
    return grads_moved(model, x, y, torch.ones(len(y), dtype=x.dtype), steps)


def ccsam(model, x, y, epoch, noise):
    head, backbone = model[2], model[:2]
    features = backbone(x)
    logits = features @ head.weight.T + head.bias
    theta = torch.cat([head.weight.flatten(), head.bias]).detach()
    flat = torch.zeros(len(y), dtype=x.dtype)
    for c in sorted(set(y.tolist())):
        rows = torch.tensor([i for i, label in enumerate(y.tolist()) if label == c])
        loss = functional.cross_entropy(logits[rows], y[rows])
        moved = []
        for p, g in zip(
            (head.weight, head.bias), torch.autograd.grad(loss, (head.weight, head.bias), retain_graph=True)
        ):
            radius = (theta.norm() / (2 * g.norm())).sqrt() * (theta.numel() / (CLASS_COUNTS[c] - 1)) ** 0.25
            moved.append(p + OPTIONS["ccsam"]["noise_ratio"] * radius * g / g.norm())
        at_moved = criterion(features[rows] @ moved[0].T + moved[1], y[rows])
        flat = flat.index_put((rows,), at_moved)
    return grads_of((0.7 * criterion(logits, y) + 0.3 * flat).mean(), model)


REFERENCES = {"sgd": sgd, "sam": sam, "asam": asam, "imbsam": imbsam, "ssesam": ssesam, "gnm": gnm, "ccsam": ccsam}


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
    optimizer = build(name, model, base=base, base_options=options)
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


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "sgd"])
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

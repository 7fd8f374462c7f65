"""Every method's step once more, as a plain loop written from its paper: gradients with ``backward``, no engine."""

from __future__ import annotations

import torch
from optimizer_cases import CLASS_COUNTS, OPTIONS, TAIL, criterion
from scipy import stats
from torch.func import functional_call
from torch.nn import functional


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


def focal_sam(model, x, y, epoch, noise):
    options = OPTIONS["focal-sam"]
    shares = [count / sum(CLASS_COUNTS) for count in CLASS_COUNTS]
    c = torch.tensor([options["lam"] * (1 - shares[label]) ** options["gamma"] for label in y.tolist()], dtype=x.dtype)
    plain = grads_moved(model, x, y, 1 - c, zeros(model))
    g = grads_moved(model, x, y, c, zeros(model))
    flat = grads_moved(model, x, y, c, along(g, options["rho"]))
    return [a + b for a, b in zip(plain, flat)]


def gnp(model, x, y, epoch, noise):
    alpha, ones = OPTIONS["gnp"]["alpha"], torch.ones(len(y), dtype=x.dtype)
    g = grads_moved(model, x, y, ones, zeros(model))
    moved = grads_moved(model, x, y, ones, along(g, OPTIONS["gnp"]["r"]))
    return [(1 - alpha) * a + alpha * b for a, b in zip(g, moved)]


def lpf_noise(model, noise, gamma):
    steps = []
    for p in model.parameters():
        step = torch.randn(p.shape, generator=noise, dtype=p.dtype)
        if p.dim() == 1:
            step *= gamma * sum(w**2 for w in p.tolist()) ** 0.5
        else:
            for row, filter_weights in zip(step, p.data):
                row *= gamma * sum(w**2 for w in filter_weights.flatten().tolist()) ** 0.5
        steps.append(step)
    return steps


def lpf(model, x, y, epoch, noise):
    return grads_moved(model, x, y, torch.ones(len(y), dtype=x.dtype), lpf_noise(model, noise, OPTIONS["lpf"]["gamma"]))


def mp(model, x, y, epoch, noise):
    """Two noisy copies of the last weight, differentiated together with twice their standard deviation."""
    parameters, bound = [0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0], OPTIONS["mp"]["bound"]
    weights, losses = dict(model.named_parameters()), []
    for _ in range(2):
        which = torch.randint(49, (), generator=noise).item()
        beta = stats.beta(parameters[which // 7], parameters[which % 7])
        draw = torch.rand(weights["2.weight"].shape, generator=noise, dtype=x.dtype)
        step = torch.empty_like(draw)
        for index, u in enumerate(draw.flatten().tolist()):
            fifth = min(int(beta.ppf(u) * 5), 4)
            step.view(-1)[index] = bound * (fifth - 2) / 4
        moved = {**weights, "2.weight": weights["2.weight"] + step}
        losses.append(criterion(functional_call(model, moved, (x,)), y).mean())
    mean = (losses[0] + losses[1]) / 2
    std = (((losses[0] - mean) ** 2 + (losses[1] - mean) ** 2) / (2 - 1)).sqrt()
    return grads_of(mean + 2 * std, model)


JUMPS = {"radius": 0.3, "threshold": 100.0, "wait": 1}  # in the first step and in every second one


def perturbed_gd(model, x, y, epoch, noise):
    """The clock is the model's: steps so far, and the step of the last jump."""
    t, last = getattr(model, "clock", (0, -JUMPS["wait"] - 1))
    ones = torch.ones(len(y), dtype=x.dtype)
    g = grads_moved(model, x, y, ones, zeros(model))
    draw = [torch.randn(p.shape, generator=noise, dtype=p.dtype) for p in model.parameters()]
    share = torch.rand((), generator=noise, dtype=x.dtype).item()
    if sum((a**2).sum() for a in g) ** 0.5 <= JUMPS["threshold"] and t - last > JUMPS["wait"]:
        dimension = sum(p.numel() for p in model.parameters())
        for p, step in zip(model.parameters(), along(draw, JUMPS["radius"] * share ** (1 / dimension))):
            p.data += step
        last = t
    model.clock = (t + 1, last)
    return grads_moved(model, x, y, ones, zeros(model))


REFERENCES = {
    "sgd": sgd,
    "sam": sam,
    "asam": asam,
    "imbsam": imbsam,
    "ssesam": ssesam,
    "gnm": gnm,
    "ccsam": ccsam,
    "focal-sam": focal_sam,
    "gnp": gnp,
    "lpf": lpf,
    "mp": mp,
    "perturbed-gd": perturbed_gd,
    "swa": sgd,
    "spectral-norm": sgd,
}

"""What a training step costs in passes: every optimizer against its own forward and backward passes and a bare loop.

    python -m analyses.benchmarks.steps --out CSV [--threads 1] [--layout channels-last] [--device cpu] [--rounds 15]

ResNet-32, batches of 128 random images of 3 x 32 x 32, training mode, float32. In every round each optimizer makes one
step, in turn with bare PyTorch loops (``loss.mean().backward(); optimizer.step()``) and with timed passes: a forward, a
backward that retains its graph, a backward that does not. ``implied`` is the sum of the passes of a method in its round;
a row holds the median over rounds of the step's time over it, and the quartiles. One thread is timed by its own seconds,
more of them by the wall clock. Every optimizer asks glibc to keep what is freed
(:func:`landscape.memory.keep_freed_memory`), for the bare loops and the passes too: without that, memory is returned after
some passes and not after others, and fetching 30,000 pages again takes 60 ms of a pass of 230, or 500 ms beside busy
neighbours: rows ``default`` of the allocator show it. First of all every optimizer's gradient is asserted to be that of a
plain loop, on ResNet-20 in float64.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.memory import keep_freed_memory
from landscape.models import build_model, find_head
from landscape.optimizers import OPTIMIZERS, NeighbourhoodOptimizer, build_optimizer
from landscape.randomness import stream

NUM_CLASSES, BATCH = 10, 128
COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
TAIL = [6, 7, 8, 9]
BASE = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 2e-4}
OPTIONS: dict[str, dict[str, Any]] = {"ccsam": {"max_relative_radius": None}, "ssesam": {"gamma": 1.0}}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "thread": time.thread_time}
Gradients = list[Tensor]


@dataclass(frozen=True)
class Passes:
    """Forward passes, backward passes that retain their graph for the next one, and backward passes that do not."""

    forward: int
    retained: int
    last: int


# What the methods need: SAM's family twice everything; head and tail apart share the forward pass at theta.
PASSES: dict[str, Passes] = {
    "sgd": Passes(1, 0, 1),
    "gnm": Passes(1, 0, 1),
    "sam": Passes(2, 0, 2),
    "asam": Passes(2, 0, 2),
    "gnp": Passes(2, 0, 2),
    "imbsam": Passes(2, 1, 2),
    "focal-sam": Passes(2, 1, 2),
    "ssesam": Passes(3, 1, 3),
    "ccsam": Passes(1, 0, 1),
}


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def problem(model_name: str, num: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    generator = stream(0, "benchmark/steps")
    model = build_model(model_name, num_classes=NUM_CLASSES, in_channels=3, image_size=32).to(device, dtype)
    images = torch.randn(num, 3, 32, 32, generator=generator, dtype=dtype).to(device)
    return model, images, torch.randint(NUM_CLASSES, (num,), generator=generator).to(device)


def optimizer_of(name: str, model: nn.Module) -> NeighbourhoodOptimizer:
    optimizer = build_optimizer(
        name,
        model.parameters(),
        base_options=BASE,
        model=model,
        criterion=criterion,
        class_counts=COUNTS,
        tail_classes=TAIL if name in ("imbsam", "ssesam") else None,
        **OPTIONS.get(name, {}),
    )
    optimizer.start_epoch(0, 200)
    return optimizer


# ---- the answers, as plain loops ----------------------------------------------------------------------------------


class PlainLoop:
    """Gradients at moved weights, written without the package."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.params = dict(model.named_parameters())
        self.tail = torch.isin(labels, torch.tensor(TAIL)).to(images.dtype)

    def at(self, steps: Gradients | None = None, weights: Tensor | None = None) -> Gradients:
        moved = {n: p + s for (n, p), s in zip(self.params.items(), steps)} if steps else self.params
        losses = criterion(functional_call(self.model, moved, (self.images,)), self.labels)
        objective = (losses if weights is None else losses * weights).sum() / len(losses)
        return list(torch.autograd.grad(objective, list(self.params.values())))

    def along(self, gradient: Gradients, rho: float) -> Gradients:
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        return [rho * g / norm for g in gradient]

    def sharp(self, rho: float, weights: Tensor | None = None) -> Gradients:
        return self.at(self.along(self.at(weights=weights), rho), weights)

    def expected(self, rule: Any) -> Gradients:
        """Return the gradient of the rule's step."""
        formulas: dict[str, Callable[[], Gradients]] = {
            "sgd": self.at,
            "gnm": lambda: self.at(self.noise(rule)),
            "sam": lambda: self.sharp(rule.rho),
            "asam": lambda: self.at(self.adaptive(rule.rho)),
            "gnp": lambda: sums(
                times(1 - rule.alpha, self.at()), times(rule.alpha, self.sharp(rule.r)),
            ),
            "imbsam": lambda: sums(self.at(weights=1 - self.tail), self.sharp(rule.rho, self.tail)),
            "ssesam": lambda: sums(self.sharp(rule.rho_head, 1 - self.tail), self.sharp(rule.rho_tail, self.tail)),
            "focal-sam": lambda: self.focal(rule),
            "ccsam": lambda: self.by_class(rule),
        }  # fmt: skip
        return formulas[rule.name]()

    def noise(self, rule: Any) -> Gradients:
        generator = stream(0, "optimizer/noise/epoch=0")
        draws = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in self.params.values()]
        return [0.05 * 0.1 * (z / 3).clamp(-1, 1) for z in draws]

    def adaptive(self, rho: float) -> Gradients:
        gradient = self.at()
        scales = [p.abs() + 0.01 if "weight" in n else torch.ones_like(p) for n, p in self.params.items()]
        norm = torch.cat([(t * g).flatten() for t, g in zip(scales, gradient)]).norm()
        return [(rho * t**2 * g / norm).detach() for t, g in zip(scales, gradient)]

    def focal(self, rule: Any) -> Gradients:
        share = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
        c = (rule.lam * (1 - share) ** rule.gamma)[self.labels].to(self.images.dtype)
        return sums(self.at(weights=1 - c), self.sharp(rule.rho, c))

    def by_class(self, rule: Any) -> Gradients:
        head = find_head(self.model)[1]
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        losses = criterion(self.model(self.images), self.labels)
        handle.remove()
        own = dict(head.named_parameters())
        norm = torch.cat([p.flatten() for p in own.values()]).norm()
        k = sum(p.numel() for p in own.values())
        flat = torch.zeros_like(losses)
        for c in self.labels.unique().tolist():
            rows = (self.labels == c).nonzero().flatten()
            moved = {}
            for n, g in zip(own, torch.autograd.grad(losses[rows].mean(), list(own.values()), retain_graph=True)):
                radius = (norm / (2 * g.norm())).sqrt() * (k / (COUNTS[c] - 1)) ** 0.25
                moved[n] = own[n] + (rule.noise_ratio * radius * g / g.norm()).detach()
            perturbed = criterion(functional_call(head, moved, (seen[0][rows],)), self.labels[rows])
            flat = flat.index_put((rows,), perturbed)
        mixture = ((1 - rule.flat_ratio) * losses + rule.flat_ratio * flat).mean()
        return list(torch.autograd.grad(mixture, list(self.params.values())))


def sums(a: Gradients, b: Gradients) -> Gradients:
    return [x + y for x, y in zip(a, b)]


def times(factor: float, a: Gradients) -> Gradients:
    return [factor * x for x in a]


def assert_answers(names: list[str]) -> None:
    """Every optimizer's gradient is the plain loop's, in float64 to rounding."""
    for name in names:
        model, images, labels = problem("resnet20", 24, torch.float64, "cpu")
        optimizer = optimizer_of(name, model)
        expected = PlainLoop(model, images, labels).expected(optimizer.rule)
        seen: list[Gradients] = []
        optimizer.base.register_step_pre_hook(
            lambda *_, model=model, seen=seen: seen.append([p.grad.clone() for p in model.parameters()])
        )
        optimizer.step(lambda: criterion(model(images), labels), labels)  # noqa: B023  (called at once)
        ours, theirs = (torch.cat([g.flatten() for g in gradient]) for gradient in (seen[0], expected))
        error = float((ours - theirs).norm() / theirs.norm())
        assert error < 1e-9, f"{name}: the gradient differs by {error:.1e}"


# ---- the times ----------------------------------------------------------------------------------------------------


def measure(names: list[str], layout: str, device: str, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of every step and pass in each round, (rounds,) by name; the first round warms up."""

    def prepared() -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
        model, images, labels = problem("resnet32", BATCH, torch.float32, device)
        if layout == "channels-last":
            model = model.to(memory_format=torch.channels_last)
        return model, lambda: criterion(model(images), labels), labels

    def bare() -> Callable[[], object]:
        model, closure, _ = prepared()
        optimizer = torch.optim.SGD(model.parameters(), **BASE)

        def run() -> None:
            closure().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    runs: dict[str, Callable[[], object]] = {"bare loop": bare()}
    for name in names:
        model, closure, labels = prepared()
        optimizer = optimizer_of(name, model)
        runs[name] = lambda o=optimizer, c=closure, y=labels: o.step(c, y)
    runs["bare loop again"] = bare()
    model, closure, _ = prepared()
    params = list(model.parameters())
    times: dict[str, list[float]] = {}

    now = CLOCKS[clock_name(device)]

    def clock(name: str, run: Callable[[], Any]) -> Any:
        start = now()
        result = run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.setdefault(name, []).append(now() - start)
        return result

    order = list(runs)
    for number in range(rounds + 1):
        # The passes three times in a round, so that they are near every method; another order in every round.
        for position, name in enumerate(order[number % len(order) :] + order[: number % len(order)]):
            if position % 4 == 0:
                loss = clock("forward", lambda: closure().mean())
                clock("retained", lambda loss=loss: torch.autograd.grad(loss, params, retain_graph=True))
                clock("last", lambda loss=loss: torch.autograd.grad(loss, params))
                del loss
            clock(name, runs[name])
    return {name: per_round(values, rounds + 1)[1:] for name, values in times.items()}


def clock_name(device: str) -> str:
    """Return what is read: one thread's own seconds leave out those in which others had its core."""
    return "thread" if device == "cpu" and torch.get_num_threads() == 1 else "wall"


def per_round(values: list[float], rounds: int) -> np.ndarray:
    """Return one number per round: the mean of what was timed in it."""
    return np.array(values).reshape(rounds, -1).mean(axis=1)


def rows_of(times: dict[str, np.ndarray], names: list[str]) -> list[dict[str, object]]:
    plain = (times["bare loop"] + times["bare loop again"]) / 2
    rows = []
    for name in ["bare loop", "bare loop again", *names]:
        passes = PASSES.get(name, Passes(1, 0, 1))
        implied = passes.forward * times["forward"] + passes.retained * times["retained"] + passes.last * times["last"]
        row: dict[str, object] = {
            "method": name,
            "forwards": passes.forward,
            "backwards": passes.retained + passes.last,
        }
        row["milliseconds"] = f"{1e3 * np.median(times[name]):.1f}"
        for column, unit in (("over_implied", implied), ("over_bare_loop", plain)):
            low, middle, high = np.quantile(times[name] / unit, [0.25, 0.5, 0.75])
            row |= {column: f"{middle:.3f}", f"{column}_quartiles": f"{low:.3f}-{high:.3f}"}
        rows.append(row)
    for name in ("forward", "retained", "last"):
        title = {"forward": "forward", "retained": "backward, graph kept", "last": "backward"}[name]
        rows.append({"method": title, "milliseconds": f"{1e3 * np.median(times[name]):.1f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layout", choices=["contiguous", "channels-last"], default="channels-last")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="names, comma-separated; default all that are there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = [name for name in PASSES if name in OPTIMIZERS and (not given.only or name in given.only.split(","))]
    assert_answers(names)
    rows = rows_of(measure(names, given.layout, given.device, given.rounds), names)
    is_gpu = given.device == "cuda"
    environment = {
        "layout": given.layout,
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        "threads": given.threads,
        "allocator": "keeps freed memory" if keep_freed_memory() else "default",
        "clock": clock_name(given.device),
        "rounds": given.rounds,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    is_new = not given.out.exists()
    with given.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *environment], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(row | environment for row in rows)


if __name__ == "__main__":
    main()

"""What a Hessian product costs in gradients: plain double backward against ours, alone, in Lanczos, and in many lanes.

    python -m analyses.benchmarks.products --data-dir DIR --checkpoint FILE --out CSV

A ResNet-20 that somebody else trained, real CIFAR-10 test images, float32. The unit is one ordinary
``torch.autograd.grad`` of the mean cross-entropy through the ordinary model. Every answer is asserted first (against
plain double backward, float64 first); then all sides are timed in turn, and a row holds the ratio of medians and its
spread: the quartiles of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.loading import load_risk
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.products import Chunk, ChunkedHessian
from landscape.spectrum import Lanczos

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Float32 rounding switches single ReLUs, which moves a product by about 1e-3 of itself; float64 settles the answer.
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-9}
NUM_STEPS = 30
NUM_LANES = 100
NUM_IMAGES = 350  # of the lanes, 2 to 5 each
EVERYTHING = 1 << 62

Run = Callable[[], Any]


def seconds_of(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Return the seconds (rounds,) of each run, taken in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(-1, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def hardest(risk: ModelRisk) -> ModelRisk:
    """Return the risk on the images of largest loss: where p is 1 - 1e-7, float32 has no digit of the Hessian left."""
    num = len(risk._examples.labels)
    with torch.no_grad():
        losses = torch.cat([risk.per_example(risk.theta, slice(k, min(k + 100, num))) for k in range(0, num, 100)])
    return risk.restricted(losses.topk(NUM_IMAGES).indices.sort().values)


def chunk_of(num: int, risk: ModelRisk) -> list[Chunk]:
    return [(0, slice(0, num), torch.full((num,), 1 / num, dtype=risk.dtype, device=risk.device))]


def plain_product(risk: ModelRisk, rows: slice, coefficients: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v -> Hv by PyTorch's own double backward through a retained graph."""
    point = risk.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(risk.per_example(point, rows), point, coefficients, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, point, v, retain_graph=True)[0]


def require_equal(ours: Tensor, plain: Tensor) -> None:
    error = float((ours - plain).norm() / plain.norm())
    assert error <= TOLERANCE[plain.dtype], f"products differ by {error:.1e}"


def ordinary_gradient(risk: ModelRisk, num: int) -> Run:
    """Return the unit: autograd through the ordinary model."""
    model: nn.Module = risk._network.module
    parameters = [p.requires_grad_() for p in model.parameters()]
    inputs: Any = risk._examples.read(slice(0, num), risk.dtype)
    labels = risk._examples.labels[:num]
    return lambda: torch.autograd.grad(functional.cross_entropy(model(inputs), labels), parameters)


def products_alone(risk: ModelRisk, num: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of one product in every way, and of Lanczos steps, over ``num`` images."""
    generator = stream(0, "benchmark/product")
    v = torch.randn(risk.theta.numel(), generator=generator, dtype=torch.float64).to(risk.theta)
    for same in (risk.in_float64(), risk):
        (_, rows, coefficients), w = chunk_of(num, same)[0], v.to(same.theta)
        expected = plain_product(same, rows, coefficients)(w)
        for strategy in ("retained", "fresh", "reverse-over-forward"):
            operator = ChunkedHessian(
                same.per_example, same.theta, chunk_of(num, same), budget=EVERYTHING, strategy=strategy
            )
            require_equal(operator(w[None, None])[0, 0], expected)
    runs: dict[str, Run] = {"gradient": ordinary_gradient(risk, num)}
    before = plain_product(risk, rows, coefficients)
    runs["plain double backward"] = lambda: before(v)
    for strategy in ("retained", "fresh", "reverse-over-forward"):
        operator = ChunkedHessian(
            risk.per_example, risk.theta, chunk_of(num, risk), budget=EVERYTHING, strategy=strategy
        )
        runs[strategy] = lambda operator=operator: operator(v[None, None])
    kept = ChunkedHessian(risk.per_example, risk.theta, chunk_of(num, risk), budget=EVERYTHING, strategy="retained")
    times = seconds_of(runs, rounds, risk.device)

    def lanczos() -> None:
        Lanczos(lambda vectors: kept(vectors[:, None])[:, 0], v[None]).extend(NUM_STEPS)

    steps = seconds_of({"gradient": runs["gradient"], "steps": lanczos}, max(2, rounds // 4), risk.device)
    times["Lanczos step"] = steps["steps"] / NUM_STEPS
    times["gradient beside Lanczos"] = steps["gradient"]
    return times


def many_lanes(risk: ModelRisk, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of one product of each of 100 lanes of 2 to 5 images: joint graphs and a loop."""
    chunks: list[Chunk] = []
    start = 0
    for lane in range(NUM_LANES):
        num = 2 + lane % 4
        coefficients = torch.full((num,), 1 / num, dtype=risk.dtype, device=risk.device)
        chunks.append((lane, slice(start, start + num), coefficients))
        start += num
    generator = stream(0, "benchmark/lanes")
    vectors = torch.randn(NUM_LANES, 1, risk.theta.numel(), generator=generator).to(risk.theta)
    operators = {  # the loop's products follow each other, each with all threads; joint ones have a thread per graph
        name: ChunkedHessian(
            risk.per_example, risk.theta, chunks, budget=EVERYTHING, joint=joint, inputs_per_example=numbers
        )
        for name, joint, numbers in (("joint", True, risk.inputs_per_example), ("loop", False, 0))
    }
    assert operators["joint"].strategies["joint"] == NUM_LANES
    require_equal(operators["joint"](vectors), operators["loop"](vectors))
    plain = [plain_product(risk, rows, coefficients) for _, rows, coefficients in chunks]
    runs: dict[str, Run] = {name: lambda operator=operator: operator(vectors) for name, operator in operators.items()}
    runs["plain loop"] = lambda: [product(v[0]) for product, v in zip(plain, vectors)]
    return seconds_of(runs, rounds, risk.device)


def row_of(name: str, num: int | str, seconds: np.ndarray, unit: np.ndarray, unit_name: str) -> dict[str, object]:
    low, high = np.quantile(seconds / unit[: len(seconds)], [0.25, 0.75])
    return {
        "quantity": name,
        "images": num,
        "unit": unit_name,
        "ratio": f"{np.median(seconds) / np.median(unit):.3g}",
        "quartiles": f"{low:.3g}-{high:.3g}",
        "seconds": f"{np.median(seconds):.4g}",
        "rounds": len(seconds),
    }


def environment(device: torch.device) -> dict[str, object]:
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    today = datetime.now(UTC).date().isoformat()
    return {
        "dtype": "float32",
        "device": where,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": today,
    }


def measure(risk: ModelRisk, rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with precise_arithmetic():
        for num in (1, 5, 64):
            times = products_alone(risk, num, rounds)
            unit, beside = times.pop("gradient"), times.pop("gradient beside Lanczos")
            for name, seconds in times.items():
                rows.append(row_of(name, num, seconds, beside if name == "Lanczos step" else unit, "gradient"))
        lanes = many_lanes(risk, max(2, rounds // 4))
        for name in ("plain loop", "loop"):
            rows.append(row_of(f"{name} of {NUM_LANES} lanes", "2 to 5", lanes[name], lanes["joint"], "joint product"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    risk = load_risk(
        options.checkpoint, model="resnet20", dataset="cifar10", data_dir=options.data_dir, split="test",
        mean=MEAN, std=STD, max_per_class=200, device=options.device,
    )  # fmt: skip
    assert isinstance(risk, ModelRisk)
    rows = [{**row, **environment(risk.device)} for row in measure(hardest(risk), options.rounds)]
    is_new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row["quantity"], row["images"], row["ratio"], row["quartiles"])


if __name__ == "__main__":
    main()

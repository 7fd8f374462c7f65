"""Single Hessian products of the peers and ours, in turn, and the rows of a comparison's table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum.bridge import bridged
from landscape.spectrum.pyhessian import trainable_copy

PRODUCT_TOLERANCE = 1e-5  # the median over the classes
# Where rounding switches a single ReLU in one of the two, the products of that class are those of neighbouring functions.
KINK = 1e-3
COLUMNS = (
    "row",
    "images_per_class",
    "peer",
    "quantity",
    "theirs",
    "ours",
    "ratio",
    "ratio_low",
    "ratio_high",
    "repeats",
    "note",
)

Batch = tuple[Tensor, Tensor]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def class_batch(risk: ModelRisk, c: int) -> Batch:
    examples = risk._examples
    rows = slice(examples.offsets[c], examples.offsets[c + 1])
    inputs: Any = examples.read(rows, risk.dtype)
    return inputs, examples.labels[rows]


def ratio_row(name: str, images: int, peer: str, theirs: list[float], ours: list[float], note: str) -> dict:
    """Return the ratio of medians with the smallest and largest ratio of a pair of turns."""
    pairs = [a / b for a, b in zip(theirs, ours)]
    a, b = statistics.median(theirs), statistics.median(ours)
    return row(name, images, peer, "time", a, b, (a / b, min(pairs), max(pairs)), len(pairs), note)


def row(
    name: str, images: int, peer: str, quantity: str, theirs: float, ours: float, ratio: tuple, repeats: int, note: str
) -> dict:
    numbers = [f"{x:.4g}" for x in (theirs, ours, *ratio)]
    return dict(zip(COLUMNS, (name, images, peer, quantity, *numbers, repeats, note)))


def pyhessian_product(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    import pyhessian

    with bridged(torch.float32):
        operator = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=batch[1].device.type == "cuda")
    sizes = [p.numel() for p in operator.params]

    def product(vector: Tensor) -> Tensor:
        parts = [part.view(p.shape) for part, p in zip(vector.split(sizes), operator.params)]
        images = pyhessian.hessian_vector_product(operator.gradsH, operator.params, parts)
        return torch.cat([image.reshape(-1) for image in images])

    return product


def eigenthings_product(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(model, [batch], supervised_loss(nn.functional.cross_entropy)).matvec


def curvlinops_product(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [batch], check_deterministic=False
    )
    return lambda vector: operator @ vector


PRODUCTS: dict[str, Callable[[nn.Module, Batch], Callable[[Tensor], Tensor]]] = {
    "pyhessian": pyhessian_product,
    "hessian-eigenthings": eigenthings_product,
    "curvlinops-for-pytorch": curvlinops_product,
}


def compare_products(risk: ModelRisk, images: int, *, repeats: int, classes: list[int]) -> list[dict]:
    """Return rows: seconds of one product, in turn, after the answers agreed.

    Of one class alone, and of every class, each with a vector of its own, as the per-class protocol multiplies: there the
    peers go through the classes one by one, and ours form all products in one call.
    """
    batches = [class_batch(risk, c) for c in classes]
    lanes = torch.eye(len(risk.class_names), dtype=torch.float64)[classes]
    vectors = torch.randn(len(classes), len(risk.theta), generator=stream(0, "benchmark/vector"), dtype=torch.float64)
    vectors = (vectors / vectors.norm(dim=1, keepdim=True)).to(risk.theta)
    exact = risk.in_float64().hvps(risk.in_float64().theta, lanes[:1], vectors[:1].double())[0]
    rows = []
    with risk.hessian(risk.theta, lanes[:1]) as alone, risk.hessian(risk.theta, lanes) as together:
        for name, make in PRODUCTS.items():
            try:
                theirs = [make(trainable_copy(risk), batch) for batch in batches]
            except ImportError:
                print(f"  {name} is not installed: left out")
                continue
            calls: dict[str, dict[str, Callable[[], Tensor]]] = {
                "one class": {
                    "theirs": lambda theirs=theirs: theirs[0](vectors[0])[None],
                    "ours": lambda: alone(vectors[:1, None])[:, 0],
                },
                "every class": {
                    "theirs": lambda theirs=theirs: torch.stack([product(v) for product, v in zip(theirs, vectors)]),
                    "ours": lambda: together(vectors[:, None])[:, 0],
                },
            }
            for what, sides in calls.items():
                answers = {key: call().double() for key, call in sides.items()}
                sizes = answers["ours"].norm(dim=1)
                gaps = (answers["theirs"] - answers["ours"]).norm(dim=1) / sizes
                gap, widest = float(gaps.median()), float(gaps.max())
                assert gap < PRODUCT_TOLERANCE, f"{name}: the products of {what} differ by {gap:.1e}"
                assert widest < KINK, f"{name}: the products of a class differ by {widest:.1e}"
                error = {key: float((answer[0] - exact).norm() / exact.norm()) for key, answer in answers.items()}
                seconds: dict[str, list[float]] = {key: [] for key in sides}
                for _ in range(repeats):
                    for key, call in sides.items():
                        synchronise(risk.device)
                        start = time.perf_counter()
                        call()
                        synchronise(risk.device)
                        seconds[key].append(time.perf_counter() - start)
                note = f"products differ by {gap:.1e}; from float64, kinks included: theirs {error['theirs']:.1e}, "
                note += f"ours {error['ours']:.1e}"
                rows.append(
                    ratio_row(f"product seconds, {what}", images, name, seconds["theirs"], seconds["ours"], note)
                )
                print(f"  product of {what}, {images} images, {name}: ratio {rows[-1]['ratio']}", flush=True)
    return rows

"""Ways to form a product with the Hessian of one chunk of examples, and which is the fastest here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from landscape.errors import unknown_name
from landscape.risk.arithmetic import load_forward_mode
from landscape.risk.kernels import TwiceDifferentiable

# Bytes at whose multiples PyTorch places new tensors on a CPU.
ALIGNMENT = 64

logger = logging.getLogger(__name__)

Strategy = Literal["auto", "retained", "reverse-over-forward", "fresh"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

# Differentiable losses (rows,) at a point (n,) of a range of rows, or of rows by number.
PerExample = Callable[[Tensor, Any], Tensor]
Graph = tuple[Tensor, Tensor]  # a gradient, and the point it depends on


def require_strategy(name: str) -> None:
    """Raise LandscapeError for a name that is no strategy."""
    if name not in STRATEGIES:
        raise unknown_name("strategy of Hessian products", name, STRATEGIES)


def gradient_graph(per_example: PerExample, theta: Tensor, rows: Any, coefficients: Tensor) -> Graph:
    """Return the gradient of ``sum_i coefficients[i] losses[i]`` with its graph, and the point it depends on."""
    point = theta.detach().clone().requires_grad_()
    with TwiceDifferentiable():
        losses = per_example(point, rows)
    if not losses.requires_grad:  # the model does not use the chosen parameters
        return torch.zeros_like(point), point
    (gradient,) = torch.autograd.grad(losses, point, coefficients, create_graph=True, materialize_grads=True)
    return gradient, point


def aligned(vector: Tensor) -> Tensor:
    """Return a tensor that begins where a new one would: the last bits of a product depend on the place of its operands."""
    return vector.clone() if vector.device.type == "cpu" and vector.data_ptr() % ALIGNMENT else vector


def backward_twice(graph: Graph, vectors: Tensor, *, keep: bool = True) -> list[Tensor | None]:
    """Return one product (n,) per row of vectors (P, n); None where the Hessian is zero."""
    gradient, point = graph
    if not gradient.requires_grad:
        return [None] * len(vectors)
    last = len(vectors) - 1
    return [
        torch.autograd.grad(gradient, point, aligned(vector), retain_graph=keep or p < last, materialize_grads=True)[0]
        for p, vector in enumerate(vectors)
    ]


def backward_over_forward(
    per_example: PerExample, theta: Tensor, rows: Any, coefficients: Tensor, vectors: Tensor
) -> list[Tensor | None]:
    """Return one product (n,) per row of vectors (P, n): the gradient of the losses' derivative along the vector.

    Costs 2.67 gradients beside the 3 of two backward passes, and keeps nothing. Raises NotImplementedError or
    RuntimeError where an operation has no forward-mode derivative.
    """
    load_forward_mode()
    products: list[Tensor | None] = []
    for vector in vectors:
        point = theta.detach().clone().requires_grad_()
        with forward_ad.dual_level():
            with TwiceDifferentiable():
                losses = per_example(forward_ad.make_dual(point, aligned(vector)), rows)
            slopes = forward_ad.unpack_dual(losses).tangent
            if slopes is None or not slopes.requires_grad:
                products.append(None)
                continue
            (part,) = torch.autograd.grad(slopes, point, coefficients, materialize_grads=True)
        products.append(part)
    return products


def fastest_route(
    per_example: PerExample,
    theta: Tensor,
    rows: Any,
    coefficients: Tensor,
    known: MutableMapping[str, Any],
) -> str:
    """Return "reverse-over-forward" or "fresh", whichever forms one product of a chunk in less time (known or measured).

    Both run twice and the second is timed. A route that fails is out; fresh graphs work wherever second derivatives
    do.
    """
    key = f"route {theta.dtype}"
    if key in known:
        return str(known[key])
    vectors = torch.ones_like(theta)[None] / theta.numel() ** 0.5
    routes: dict[str, Callable[[], list[Tensor | None]]] = {
        "fresh": lambda: backward_twice(gradient_graph(per_example, theta, rows, coefficients), vectors, keep=False),
        "reverse-over-forward": lambda: backward_over_forward(per_example, theta, rows, coefficients, vectors),
    }
    seconds: dict[str, float] = {}
    for name, run in routes.items():
        try:
            run()
            _wait(theta.device)
            start = time.perf_counter()
            run()
            _wait(theta.device)
            seconds[name] = time.perf_counter() - start
        except (NotImplementedError, RuntimeError) as error:
            if name == "fresh":
                raise
            logger.debug("no forward-mode derivative, fresh graphs instead: %s", error)
    known[key] = min(seconds, key=seconds.__getitem__)
    known[f"seconds {theta.dtype}"] = seconds
    return str(known[key])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_bytes(
    per_example: PerExample, theta: Tensor, num_rows: int, known: MutableMapping[str, Any]
) -> tuple[int, int]:
    """Return (bytes per example, bytes beside them) of a gradient graph kept for products, as measured once.

    Every storage that the graph saves is counted once; two sizes tell what grows with the examples. What both graphs share
    (weights that are held fixed, constants of the loss) is there without them. Measured in one precision, known in all.
    """
    key = f"bytes {theta.dtype}"
    for other in (torch.float32, torch.float64):
        if key not in known and f"bytes {other}" in known:
            known[key] = tuple(size * theta.dtype.itemsize // other.itemsize for size in known[f"bytes {other}"])
    if key not in known:
        few, more = min(2, num_rows), min(4, num_rows)
        smaller, larger = (_saved_storages(per_example, theta, num) for num in (few, more))  # both held
        first, second = (_own_bytes(one, beside=two) for one, two in ((smaller, larger), (larger, smaller)))
        each = (second - first) // (more - few) if more > few else first // few
        known[key] = (max(each, 1), max(first - few * each, 0))
    each, beside = known[key]
    return each, beside


def _saved_storages(per_example: PerExample, theta: Tensor, num: int) -> dict[int, torch.UntypedStorage]:
    """Return what the graph of some examples saves, by address; held, so that no address is used twice."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    rows = slice(0, num)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradient_graph(per_example, theta, rows, theta.new_ones(num))
    storages.pop(theta.untyped_storage().data_ptr(), None)
    return storages


def _own_bytes(storages: dict[int, torch.UntypedStorage], *, beside: dict[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for address, storage in storages.items() if address not in beside)

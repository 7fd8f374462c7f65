"""Rows on the operators themselves: class sums, refusal of moving data, coverage of layers, cost in floating-point operations.

Part of ``python -m analyses.benchmarks.lanczos``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from analyses.benchmarks.lanczos import Row
from analyses.benchmarks.products import ordinary_gradient
from analyses.redrawn_augmentation.study import digits, softmax_regression, train
from landscape.data.augmentation import find_transform
from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.augmented import RedrawnRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.lanczos import sphere

ADDITIVE = {torch.float32: 1e-6, torch.float64: 1e-12}
DENSE = 1e-10
GRADIENTS = 2.2
NUM_VECTORS = 3
RAGGED = 7  # examples per forward pass: the last of a class is smaller


def operator_rows(name: str, risk: ModelRisk) -> Iterator[Row]:
    """Yield the rows of one network; those that need no network come with the digits."""
    yield from additivity_rows(name, risk)
    if name == "digits network":
        yield from refusal_rows()
        yield from coverage_rows()
    else:
        yield flop_row(name, risk)


# ---- class sums -------------------------------------------------------------------------------------------------------


def additivity_rows(name: str, risk: ModelRisk) -> Iterator[Row]:
    r"""Compare H v of the whole with :math:`\sum_c (n_c / N) H_c v`: one lane, all data, against ten lanes, their sum."""
    for same in (risk, risk.in_float64()):
        counts = same.class_counts.double()
        shares = (counts / counts.sum())[None]
        every = torch.eye(len(counts), dtype=torch.float64)
        size = len(same.theta)
        vectors = torch.cat([sphere(1, size, stream(k, "additivity")) for k in range(NUM_VECTORS)]).to(same.theta)
        whole = PlainHessian(same)
        plain = whole(vectors)
        moved = _distance(whole(vectors, flipped=True), plain)
        for chunk_size in (None, RAGGED):
            with same.hessian(same.theta, shares, chunk_size=chunk_size) as product:
                total = product(vectors[None])[0].double()
            with same.hessian(same.theta, every, chunk_size=chunk_size) as product:
                parts = product(vectors.expand(len(counts), -1, -1)).double()
            parts = shares[0].to(parts)[:, None, None] * parts
            summed, sizes = parts.sum(0), torch.linalg.vector_norm(parts, dim=2).sum(0)
            in_parts = float(((summed - total).norm(dim=1) / sizes).max())
            dtype = str(same.dtype).removeprefix("torch.")
            images = " to ".join(f"{c}" for c in sorted({int(counts.min()), int(counts.max())}))
            case = f"{name}, {dtype}, {images} images per class" + (f", {chunk_size} per pass" if chunk_size else "")
            how = f"|sum_c (n_c / N) H_c v - H v| / |H v|, largest of {NUM_VECTORS} random v; "
            how += f"{in_parts:.1e} in units of sum_c |(n_c / N) H_c v|, those of the pre-flight"
            error = _distance(summed, total)
            yield Row.at_most("class additivity", case, target=ADDITIVE[same.dtype], measured=error, how=how)
            how = "the sum against plain double backward through all images at once; that product itself moves by "
            how += f"{moved:.1e} when the images are taken in reverse order"
            measured = f"{_distance(summed, plain):.2g}"
            yield Row.record("class sum against plain autograd", case, measured=measured, how=how)


def _distance(left: Tensor, right: Tensor) -> float:
    """Return the largest |left - right| / |right| over rows."""
    left, right = left.double(), right.double()
    return float(((left - right).norm(dim=1) / right.norm(dim=1)).max())


class PlainHessian:
    """v -> Hv of the mean cross-entropy over all examples by PyTorch's own double backward."""

    def __init__(self, risk: ModelRisk) -> None:
        self._model = copy.deepcopy(risk._network.module).eval()
        self._parameters = [p.requires_grad_() for p in self._model.parameters()]
        self._inputs: Any = risk._examples.read(slice(0, len(risk._examples.labels)), risk.dtype)
        self._labels = risk._examples.labels

    def __call__(self, vectors: Tensor, *, flipped: bool = False) -> Tensor:
        """Return the products of vectors (P, n)."""
        order = torch.arange(len(self._labels), device=self._labels.device)
        order = order.flip(0) if flipped else order
        loss = functional.cross_entropy(self._model(self._inputs[order]), self._labels[order])
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        images = [torch.autograd.grad(flat, self._parameters, v, retain_graph=True) for v in vectors]
        return torch.stack([torch.cat([g.reshape(-1) for g in image]) for image in images])


# ---- moving data ------------------------------------------------------------------------------------------------------


class Undeclared:
    """A redrawn risk that does not say so: what a live augmenting loader looks like from outside."""

    is_fixed = True

    def __init__(self, risk: RedrawnRisk) -> None:
        self._risk = risk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._risk, name)


def refusal_rows() -> Iterator[Row]:
    """Redraw the images of a convex model at every product: no number may be called curvature of anything."""
    dataset = digits((150, 120, 90, 60, 45, 15, 12, 9, 5, 5))
    model = train(softmax_regression(), dataset, seed=0)
    transform = find_transform(dataset)
    plain = ModelRisk(model, dataset.train, transform=dataset.normalise)
    options = SpectrumOptions(num_bootstrap=0)
    lanes = [str(c) for c in range(10)] + ["all"]
    refused = named = 0
    for lane in lanes:
        try:
            measure_spectrum(Undeclared(RedrawnRisk(plain, transform.redraw, seed=0)), lane, options=options)
        except LandscapeError as error:
            refused += "augmentation" in str(error)
        redrawn = measure_spectrum(RedrawnRisk(plain, transform.redraw, seed=0), lane, options=options)
        named += str(redrawn.verdict.values[0]) == "refused"
    fixed = measure_spectrum(plain, lanes, options=options)
    case = "softmax regression on shifted digits, 5 to 150 images per class"
    how = "lanes whose measurement stops with an error that names augmentation, by the repeat and symmetry checks alone"
    yield Row.all_of("redrawn data refused", case, measured=refused, total=len(lanes), how=how)
    how = "lanes whose verdict is 'refused' where the redrawing is declared"
    yield Row.all_of("redrawn data get no verdict", case, measured=named, total=len(lanes), how=how)
    how = "lanes that the same data get 'no negative curvature' for when they stay fixed"
    positive = int((fixed.verdict.values == "no negative curvature").sum())
    yield Row.all_of("fixed data are convex", case, measured=positive, total=len(lanes), how=how)


# ---- coverage ---------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


class DotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        k = self.keys(x)
        return self.out(functional.scaled_dot_product_attention(k, k, x).mean(1))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.block, x.mean(1), use_reentrant=False))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.out = nn.Linear(2, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean(1)) ** 2


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss of the caller's: focal with gamma 2."""
    log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2) * log_p


def smooth(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), *middle, nn.Tanh(), nn.Linear(3, 3))


COVERAGE: dict[str, tuple[type[nn.Module] | Any, dict[str, Any]]] = {
    "LSTM": (Recurrent, {}),
    "BatchNorm in training mode": (lambda: smooth(nn.BatchNorm1d(3)), {"batchnorm": "batch"}),
    "scaled-dot-product attention": (DotProduct, {}),
    "activation checkpointing": (Checkpointed, {}),
    "unused parameters": (Unused, {}),
    "callable loss": (smooth, {"loss": focal}),
}


def coverage_error(name: str) -> float:
    """Return the relative error of the lane of all data against the dense Hessian of plain double backward."""
    make, options = COVERAGE[name]
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream(0, f"coverage/{name}").get_state())
        model = make().double()
    inputs = torch.randn(12, 8, 8, generator=stream(0, "coverage/inputs"), dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(4)
    risk = ModelRisk(model, (inputs, labels), **options)
    reference = copy.deepcopy(model).train("batchnorm" in options)
    parameters = list(reference.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        logits = reference(inputs)
        losses = options.get("loss", functional.cross_entropy)(
            logits, labels, **({} if "loss" in options else {"reduction": "none"})
        )
        gradients = torch.autograd.grad(losses.mean(), parameters, create_graph=True, materialize_grads=True)
        rows = []
        for entry in torch.cat([g.reshape(-1) for g in gradients]):
            second = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) if entry.requires_grad \
                else [torch.zeros_like(p) for p in parameters]  # fmt: skip
            rows.append(torch.cat([g.reshape(-1) for g in second]))
    dense = torch.stack(rows).detach()
    vectors = torch.randn(1, 5, len(dense), generator=stream(0, "coverage/vectors"), dtype=torch.float64)
    with risk.hessian(risk.theta, torch.full((1, 3), 1 / 3, dtype=torch.float64)) as product:
        got = product(vectors)[0]
    expected = vectors[0] @ dense
    return float((got - expected).norm() / expected.norm())


def coverage_rows() -> Iterator[Row]:
    """Check the six that the peers divide among themselves."""
    errors = {name: coverage_error(name) for name in COVERAGE}
    right = sum(error <= DENSE for error in errors.values())
    how = f"products within {DENSE:g} of the dense Hessian, float64: "
    how += ", ".join(f"{k} {v:.0e}" for k, v in errors.items())
    yield Row.all_of("coverage", "small networks", measured=right, total=len(COVERAGE), how=how)


# ---- cost -------------------------------------------------------------------------------------------------------------


def flop_row(name: str, risk: ModelRisk) -> Row:
    """Count the floating-point operations of a product on a kept graph, in gradients."""
    num = int(risk._examples.offsets[1])
    row = torch.eye(len(risk.class_names), dtype=torch.float64)[:1]
    with FlopCounterMode(display=False) as gradient:
        ordinary_gradient(risk, num)()
    with risk.hessian(risk.theta, row, strategy="retained") as product:
        v = torch.ones_like(risk.theta)[None, None]
        product(v)
        with FlopCounterMode(display=False) as spent:
            product(v)
    ratio = spent.get_total_flops() / gradient.get_total_flops()
    how = "FlopCounterMode: convolutions and matrix products of one product on a kept graph over those of one gradient"
    return Row.at_most("product in gradients", f"{name}, {num} images", target=GRADIENTS, measured=ratio, how=how)

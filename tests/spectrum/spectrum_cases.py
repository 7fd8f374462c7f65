"""Operators, risks and networks whose spectra are known."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk


def orthogonal(size: int, name: str = "Q") -> Tensor:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(size, size, generator=stream(0, f"test/{name}"), dtype=torch.float64))[0]


def matrix_of(spectrum: np.ndarray, name: str = "Q") -> Tensor:
    """Return a symmetric matrix with the given eigenvalues and random eigenvectors."""
    q = orthogonal(len(spectrum), name)
    return q * torch.as_tensor(spectrum, dtype=torch.float64) @ q.T


def quadratic(matrices: list[Tensor], *, gradient: Tensor | None = None, scale: float = 1.0, **options) -> AnalyticRisk:
    """Return the risk with class losses scale (1 + g'x + x'A_c x / 2) at the origin."""
    size = len(matrices[0])
    dtype = options.pop("dtype", torch.float64)
    stacked = torch.stack(matrices)
    slope = torch.zeros(size, dtype=torch.float64) if gradient is None else gradient

    def losses(x: Tensor) -> Tensor:
        a, g = stacked.to(x.dtype), slope.to(x.dtype)
        return scale * (1 + x @ g + torch.einsum("i,cij,j->c", x, a, x) / 2)

    return AnalyticRisk(losses, torch.zeros(size, dtype=dtype), **options)


def toy(function, *point: float, dtype: torch.dtype = torch.float64) -> AnalyticRisk:
    """Return a scalar function of a few numbers as a risk of one class."""
    return AnalyticRisk(lambda x: function(*x)[None], torch.tensor(point, dtype=dtype))


class Counting:
    """A risk that counts the vectors multiplied by its Hessians."""

    def __init__(self, risk):
        self._risk = risk
        self.num_products = 0

    def __getattr__(self, name):
        return getattr(self._risk, name)

    def in_float64(self):
        exact = self._risk.in_float64()
        return self if exact is self._risk else exact

    def hvps(self, theta, weights, vectors):
        self.num_products += 1  # used on the classes of one lane: one pass over its examples
        return self._risk.hvps(theta, weights, vectors)

    @contextmanager
    def hessian(self, theta, weights, **options):
        with self._risk.hessian(theta, weights, **options) as product:

            def counted(vectors, lanes=None):
                self.num_products += vectors.shape[0] * vectors.shape[1]
                return product(vectors, lanes=lanes)

            yield counted


COUNTS = (20, 10, 5, 2)
GROUPS = {"head": (0,), "medium": (1,), "tail": (2, 3)}


def digits(dtype: torch.dtype = torch.float64, counts: tuple[int, ...] = COUNTS) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 8, 8) in [-1, 1] and labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])
    return torch.tensor(images[rows], dtype=dtype).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(
        labels[rows], dtype=torch.int64
    )


def tanh_network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a network of 119 - 10 = 109 parameters with weights from a named stream."""
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 1
            draw = torch.randn(p.shape, generator=stream(0, f"test/{name}"), dtype=torch.float64)
            p.copy_(draw / fan_in**0.5)
    return model.to(dtype)


def network_risk(dtype: torch.dtype = torch.float64) -> ModelRisk:
    """Return the tanh network on digits, with groups."""
    return ModelRisk(tanh_network(dtype), digits(dtype), groups=GROUPS)


def dense_hessian(model: nn.Module, images: Tensor, labels: Tensor, lane: list[float]) -> np.ndarray:
    """Return the Hessian of sum_c lane[c] (mean loss of class c) by nested automatic differentiation."""
    model = model.eval()
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    weights = (torch.tensor(lane, dtype=images.dtype) / torch.bincount(labels, minlength=len(lane)))[labels]

    def loss(theta: Tensor) -> Tensor:
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        logits = functional_call(model, parts, (images,))
        return (functional.cross_entropy(logits, labels, reduction="none") * weights).sum()

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.func.jacrev(torch.func.grad(loss))(theta).numpy()


def negative_energy_of(values: np.ndarray) -> float:
    """Return tr(H-) / tr|H| of exact eigenvalues."""
    return float(-values[values < 0].sum() / np.abs(values).sum())

"""Small classifiers on long-tailed digits, with oracles that share no code with the risk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.models import build_model
from landscape.randomness import stream

COUNTS = (23, 12, 6, 3)  # head to tail; ragged under every chunk size tried
GROUPS = {"head": (0,), "medium": (1,), "tail": (2, 3)}


def digits(*, counts: tuple[int, ...] = COUNTS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 8, 8) in about [-1, 1] and labels (N,), shuffled."""
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])
    order = torch.randperm(len(rows), generator=stream(0, "test/order")).numpy()
    pixels = torch.tensor(images[rows[order]], dtype=dtype).view(-1, 1, 8, 8) / 8 - 1
    return pixels, torch.tensor(labels[rows[order]], dtype=torch.int64)


def fill(model: nn.Module, *, scale: float = 0.5) -> nn.Module:
    """Draw every parameter from its own stream; weights scaled by the root of the fan-in."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 1
            draw = torch.randn(p.shape, generator=stream(0, f"test/{name}"), dtype=torch.float64)
            p.copy_(2 * scale * draw / fan_in**0.5)
    return model


def smooth_mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Tanh network of 8 x 8 digits with BatchNorm: 64 averaged to 16, to 5, to 4 classes; 119 parameters."""
    layers = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)]
    model = nn.Sequential(*layers)
    fill(model)
    with torch.no_grad():
        model[3].running_mean.copy_(torch.linspace(-0.5, 0.5, 5))
        model[3].running_var.copy_(torch.linspace(0.5, 2.0, 5))
    return model.to(dtype)


def digits_convnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The package's convnet with BatchNorm statistics of the digits."""
    model = build_model("convnet", num_classes=len(COUNTS), in_channels=1, image_size=8, seed=1).to(dtype)
    images, _ = digits(dtype=dtype)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


def flat_loss(
    model: nn.Module, images: Tensor, labels: Tensor, example_weights: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the weighted sum of cross-entropies as a function of the flat parameters, and these parameters."""
    model = model.eval()
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        logits = functional_call(model, parts, (images,))
        return (functional.cross_entropy(logits, labels, reduction="none") * example_weights).sum()

    return loss, torch.cat([p.reshape(-1) for p in named.values()])


def example_weights(labels: Tensor, lane: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the weight of each example where lane c enters with lane[c] times its class mean."""
    counts = torch.bincount(labels, minlength=len(lane))
    return (torch.tensor(lane, dtype=dtype) / counts)[labels]


def dense_hessian(model: nn.Module, images: Tensor, labels: Tensor, lane: list[float]) -> Tensor:
    """Return the Hessian (n, n) of a lane by nested automatic differentiation of the whole loss."""
    loss, theta = flat_loss(model, images, labels, example_weights(labels, lane, images.dtype))
    return torch.func.jacrev(torch.func.grad(loss))(theta)


def unit(num_classes: int, c: int) -> list[float]:
    """Return the weights of a single class."""
    return [float(k == c) for k in range(num_classes)]


def draw(*shape: int, name: str = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers of a named stream."""
    return torch.randn(*shape, generator=stream(0, f"test/{name}"), dtype=torch.float64).to(dtype)

"""A small long-tailed problem with smooth activations, in float64, that the optimizer tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.models import NormedLinear
from landscape.optimizers import NeighbourhoodOptimizer, build_optimizer
from landscape.randomness import stream

CLASS_COUNTS = [100, 50, 20, 5]
TAIL = [2, 3]
# Options under which every rule differs from plain descent within five steps of two epochs.
OPTIONS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.3},
    "imbsam": {"rho": 0.3, "tail_weight": 2.0},
    "ssesam": {"rho_head": 0.2, "rho_tail": 0.4, "gamma": 0.5},
    "gnm": {"rho": 1.0, "decay_every": 1},
    "ccsam": {"noise_ratio": 0.05, "max_relative_radius": None},
    "focal-sam": {"rho": 0.3, "gamma": 2.0, "lam": 0.8},
    "gnp": {"r": 0.3, "alpha": 0.7},
    "lpf": {"gamma": 0.1},
    "mp": {"bound": 0.4, "layers": "last-weights", "num_layers": 1},
    "perturbed-gd": {"radius": 0.3, "threshold": 1e-3},  # never jumps; the tests that want it to say so
}
STEP_IS_PLAIN = ("sgd", "swa", "spectral-norm")
SGD_OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, f"test/{name}"), dtype=torch.float64)


def make_model(seed: int = 0, *, head: str = "linear", num_classes: int = 4) -> nn.Sequential:
    last = NormedLinear(6, num_classes) if head == "cosine" else nn.Linear(6, num_classes)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), last).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=stream(seed, f"test/{name}"), dtype=p.dtype))
    return model


def make_batch(num: int = 12, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    return draw(num, 5), torch.arange(num) % num_classes


def build(name: str, model: nn.Module, **changes: Any) -> NeighbourhoodOptimizer:
    settings: dict[str, Any] = {
        "base_options": SGD_OPTIONS,
        "model": model,
        "criterion": criterion,
        "class_counts": CLASS_COUNTS,
        "tail_classes": TAIL,
        **OPTIONS.get(name, {}),
        **changes,
    }
    optimizer = build_optimizer(name, settings.pop("params", None) or model.parameters(), **settings)
    optimizer.start_epoch(0, 4)
    return optimizer


def closure_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: criterion(model(x), y)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def gradients_seen(optimizer: NeighbourhoodOptimizer) -> list[Tensor]:
    """Return a list that receives the flat gradient of every base step."""
    seen: list[Tensor] = []

    def record(base: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.append(
            flat([p.grad.clone() for group in base.param_groups for p in group["params"] if p.grad is not None])
        )

    optimizer.base.register_step_pre_hook(record)
    return seen

"""Surfaces of single classes as other packages compute them, on the same weights, images, directions and grid."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape import ModelRisk
from landscape.models import build_model

Grid = np.ndarray  # (K_y, K_x)
OneClass = Callable[[nn.Module, Tensor, Tensor, Sequence[Tensor], np.ndarray], Grid]


def plain_network(risk: ModelRisk, model_name: str) -> nn.Module:
    """Return the ordinary module with the risk's weights, as a user of the other packages has it."""
    model = build_model(model_name, num_classes=10, in_channels=3, image_size=32).eval()
    model.load_state_dict(risk._model.state_dict())
    return model.requires_grad_(False)


def images_of(risk: ModelRisk, c: int) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of one class, as the model reads them."""
    examples = risk._examples
    rows = slice(examples.offsets[c], examples.offsets[c + 1])
    inputs: Any = examples.read(rows, risk.dtype)
    return inputs.contiguous(), examples.labels[rows]


def tree_of(risk: ModelRisk, direction: Tensor) -> list[Tensor]:
    """Return a direction as one tensor per parameter, in the module's order."""
    return [part.clone() for part in risk.layout.unflatten(direction.to(risk.dtype))]


def eager_loop(
    model: nn.Module, inputs: Tensor, labels: Tensor, axes: Sequence[Sequence[Tensor]], coordinates: np.ndarray
) -> Grid:
    """Return the losses on a square grid by the plainest loop: set the weights, forward, mean."""
    centre = [p.detach().clone() for p in model.parameters()]
    out = np.zeros((len(coordinates), len(coordinates)))
    with torch.inference_mode():
        for i, beta in enumerate(coordinates):
            for j, alpha in enumerate(coordinates):
                for p, w, a, b in zip(model.parameters(), centre, *axes):
                    p.copy_(w + float(alpha) * a + float(beta) * b)
                out[i, j] = nn.functional.cross_entropy(model(inputs), labels).item()
    return out


def landscaper(
    model: nn.Module, inputs: Tensor, labels: Tensor, axes: Sequence[Sequence[Tensor]], coordinates: np.ndarray
) -> Grid:
    """Return Landscaper's grid: its own walk, normalisation and edits of the values included."""
    from landscaper.compute import compute_loss_landscape

    def loss(moved: nn.Module, data: tuple[Tensor, Tensor]) -> float:
        return nn.functional.cross_entropy(moved(data[0]), data[1]).item()

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        grid, _ = compute_loss_landscape(
            model,
            (inputs, labels),
            [list(axis) for axis in axes],
            loss,
            steps=len(coordinates),
            distance=float(coordinates[-1]),
            dim=2,
            device="cpu",
        )
    return np.asarray(grid).T


def loss_landscapes_corrected(
    model: nn.Module, inputs: Tensor, labels: Tensor, axes: Sequence[Sequence[Tensor]], coordinates: np.ndarray
) -> Grid:
    """Return loss-landscapes' grid in place, with its metric and parameter arithmetic, in an order that shifts no row."""
    from loss_landscapes.metrics import Loss
    from loss_landscapes.model_interface.model_parameters import ModelParameters
    from loss_landscapes.model_interface.model_wrapper import wrap_model

    wrapped = wrap_model(model)
    metric = Loss(nn.functional.cross_entropy, inputs, labels)
    point = wrapped.get_module_parameters()
    first, second = (ModelParameters([part.clone() for part in axis]) for axis in axes)
    start, step = float(coordinates[0]), float(coordinates[1] - coordinates[0])
    point.add_(first * start)
    point.add_(second * start)
    right, up = first * step, second * step
    out = np.zeros((len(coordinates), len(coordinates)))
    last = len(coordinates) - 1
    for i in range(len(coordinates)):
        columns = range(last + 1) if i % 2 == 0 else range(last, -1, -1)
        for j in columns:
            out[i, j] = metric(wrapped)
            if j != columns[-1]:
                point.add_(right) if i % 2 == 0 else point.sub_(right)
        point.add_(up)
    return out


PEERS: dict[str, Callable[..., Grid]] = {
    "plain loop over classes": eager_loop,
    "Landscaper 1.3.1": landscaper,
    "loss-landscapes 3.0.6, corrected": loss_landscapes_corrected,
}

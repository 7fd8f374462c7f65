"""How weights are drawn before training: every number from one explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from landscape.models.heads import NormedLinear


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of a network from ``generator``, in the order of its modules.

    A network with a scheme of its own has a method ``draw_weights(generator)``. For the others, convolutions and linear
    layers are He-normal by fan-in, biases uniform within one over the root of the fan-in, cosine columns unit vectors.
    Normalisation layers stay as they are built: the identity.
    """
    own = getattr(module, "draw_weights", None)
    if own is not None:
        own(generator)
        return
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                draw_uniform(layer.bias, layer.weight, generator)
        elif isinstance(layer, NormedLinear):
            draw_columns(layer, generator)


@torch.no_grad()
def draw_uniform(tensor: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill a tensor uniformly within one over the root of the fan-in of ``weight``, as torch does by default."""
    bound = 1 / math.sqrt(weight[0].numel())
    tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def draw_columns(head: NormedLinear, generator: torch.Generator) -> None:
    """Fill a cosine head uniformly in [-1, 1] and normalise its columns, as in the released LDAM code."""
    weight = head.weight.uniform_(-1, 1, generator=generator)
    weight.div_(torch.linalg.vector_norm(weight, dim=0))


@torch.no_grad()
def draw_default(layer: nn.Module, generator: torch.Generator) -> None:
    """Fill a convolution or linear layer as torch does by default; a cosine head with unit columns."""
    if isinstance(layer, NormedLinear):
        draw_columns(layer, generator)
        return
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    draw_uniform(layer.weight, layer.weight, generator)
    if layer.bias is not None:
        draw_uniform(layer.bias, layer.weight, generator)

"""Networks beside the model: what enters its classifier, layers on top of that, frozen copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.models import find_head


def num_features(model: nn.Module) -> int:
    """Return the number of features that enter the model's classifier."""
    _, head = find_head(model)
    return head.in_features if isinstance(head, nn.Linear) else len(dict(head.named_parameters())["weight"])


@contextmanager
def recorded_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record what enters the model's classifier, (B, features) per call; the hook is removed whatever happens."""
    seen: list[Tensor] = []
    handle = find_head(model)[1].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters the classifier and what leaves the model, from one forward pass."""
    with recorded_features(model) as seen:
        logits = model(images)
    if len(seen) != 1:
        raise LandscapeError(
            f"expected a model that calls its classifier once, it was called {len(seen)} times: choose method plain"
        )
    return seen[0], logits


def draw_weights(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw the linear layers of a module as the models': He-normal weights, biases within one over the root of fan-in."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                bound = 1 / math.sqrt(layer.in_features)
                layer.bias.uniform_(-bound, bound, generator=generator)
    return module


def perceptron(sizes: Sequence[int], generator: torch.Generator, *, has_batchnorm: bool = False) -> nn.Module:
    """Return linear layers of these sizes with ReLU between, BatchNorm before each ReLU if asked."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        if i:
            layers += [nn.BatchNorm1d(before)] * has_batchnorm + [nn.ReLU()]
        layers.append(torch.nn.utils.skip_init(nn.Linear, before, after))
    return draw_weights(nn.Sequential(*layers), generator)


def second_classifier(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a classifier of the kind of the model's own, with weights drawn anew."""
    head = copy.deepcopy(find_head(model)[1])
    if isinstance(head, nn.Linear):
        if head.bias is None:
            with torch.no_grad():
                nn.init.kaiming_normal_(head.weight, generator=generator)
            return head
        return draw_weights(head.cpu(), generator)
    with torch.no_grad():  # cosines
        weight = dict(head.cpu().named_parameters())["weight"].uniform_(-1, 1, generator=generator)
        weight.div_(torch.linalg.vector_norm(weight, dim=0))
    return head


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a module whose weights take no gradient."""
    return copy.deepcopy(model).requires_grad_(False)

"""A network as a function of its chosen parameters: the flat vector in, the logits out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import LandscapeError
from landscape.layout import ParameterLayout, choose_parameters
from landscape.models import find_head
from landscape.risk.arithmetic import created_in, has_recurrence, plain_checkpointing, plain_recurrence
from landscape.risk.batchnorm import batch_normalisations, batch_statistics
from landscape.risk.differentiability import custom_operations, once_differentiable_operations
from landscape.risk.embeddings import PlainEmbeddings, has_special_embeddings
from landscape.risk.filters import filter_dims_of
from landscape.risk.inputs import Inputs, call_with, logits_in
from landscape.risk.stateless import call_at


@dataclass(frozen=True)
class Network:
    """A private module, the layout of its chosen parameters, and every other tensor it reads, held fixed."""

    module: nn.Module
    layout: ParameterLayout
    theta: Tensor  # (n,) the chosen parameters as they are in the module
    frozen: dict[str, Tensor]  # the parameters that were not chosen
    buffers: dict[str, Tensor]
    batch_layers: tuple[_BatchNorm, ...]  # those that use the statistics of the batch
    has_recurrence: bool
    has_special_embeddings: bool
    output: int | str | None = None  # which entry of the module's output is the logits

    @classmethod
    def of(
        cls, module: nn.Module, params: str, *, uses_batch_statistics: bool = False, output: int | str | None = None
    ) -> Network:
        """Choose parameters of a module by :func:`landscape.layout.choose_parameters`."""
        named = dict(module.named_parameters())
        try:
            head_name: str | None = find_head(module)[0]
        except LandscapeError:
            head_name = None
        chosen = choose_parameters(named, params, head_name=head_name)
        layout = ParameterLayout.of(chosen, filter_dims=filter_dims_of(module))
        theta = layout.flatten([t.detach() for t in chosen.values()])
        frozen = {name: t.detach() for name, t in named.items() if name not in chosen}
        layers = tuple(batch_normalisations(module).values()) if uses_batch_statistics else ()
        special = has_recurrence(module), has_special_embeddings(module)
        return cls(module, layout, theta, frozen, dict(module.named_buffers()), layers, *special, output)

    def parameters_at(self, theta: Tensor) -> dict[str, Tensor]:
        """Return all parameters by name, the chosen ones as views of ``theta`` (n,)."""
        return {**self.frozen, **self.layout.named(theta)}

    def logits(self, theta: Tensor, inputs: Inputs, buffers: dict[str, Tensor] | None = None) -> Tensor:
        """Return the logits (B, C) of inputs (B, ...) at ``theta``, differentiable twice."""
        return self.logits_with({**(buffers or self.buffers), **self.parameters_at(theta)}, inputs)

    def logits_with(self, tensors: dict[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the logits (B, C) with tensors by name in the place of the module's."""

        def forward(*args: Tensor, **named: Tensor) -> Any:
            return call_at(self.module, tensors, args, named)

        recurrence = plain_recurrence() if self.has_recurrence else nullcontext()
        embeddings = PlainEmbeddings() if self.has_special_embeddings else nullcontext()
        statistics, own_dtype = batch_statistics(self.batch_layers), created_in(self.theta.dtype)
        with plain_checkpointing(), recurrence, embeddings, statistics, own_dtype:
            return logits_in(call_with(forward, inputs), self.output)


def measured_graph(
    theta: Tensor, per_example: Callable[[Tensor, slice], Tensor], num_examples: int
) -> tuple[int, list[str], list[str]]:
    """Return the bytes one example's graph keeps for a backward pass (weights not counted), what has no second one, and what
    brings a backward pass of its own."""
    num = min(2, num_examples)
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        if tensor.dim() > 0 and tensor.shape[0] == num:  # per-example tensors; weights are shared
            total += tensor.numel() * tensor.element_size()
        return tensor

    point = theta.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = per_example(point, slice(0, num))
    return max(total // num, 1), once_differentiable_operations(losses), custom_operations(losses)

"""A forward pass on a GPU, captured once per shape and replayed: one launch in the place of a hundred."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from landscape.risk.inputs import Inputs

logger = logging.getLogger(__name__)

Key = tuple[Any, ...]
# Passes before a capture: they choose kernels and allocate what stays.
WARM_UP = 3


class Replayed:
    """A function of (inputs, labels) that is captured in a CUDA graph for every shape that comes, and replayed.

    The weights that the function reads must stay at their addresses and may change in place. Where an operation cannot
    be captured (it synchronises, say), the function runs as it is. Returned tensors are the caller's own.
    """

    def __init__(self, function: Callable[[Inputs, Tensor], Tensor]) -> None:
        self._function = function
        self._graphs: dict[Key, tuple[Any, Inputs, Tensor, Tensor]] = {}
        self.is_capturing = True

    def __call__(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """Return what the function returns for these inputs."""
        if not self.is_capturing:
            return self._function(inputs, labels)
        key = (_shape(inputs), tuple(labels.shape))
        if key not in self._graphs:
            try:
                self._graphs[key] = self._captured(inputs, labels)
            except RuntimeError as error:
                logger.debug("the forward pass is not captured: %s", error)
                self.is_capturing = False
                torch.cuda.synchronize()
                return self._function(inputs, labels)
        graph, own_inputs, own_labels, output = self._graphs[key]
        _copy(own_inputs, inputs)
        own_labels.copy_(labels)
        graph.replay()
        return output.clone()

    def _captured(self, inputs: Inputs, labels: Tensor) -> tuple[Any, Inputs, Tensor, Tensor]:
        own_inputs = {name: t.clone() for name, t in inputs.items()} if isinstance(inputs, dict) else inputs.clone()
        own_labels = labels.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._function(own_inputs, own_labels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(own_inputs, own_labels)
        return graph, own_inputs, own_labels, output


def _shape(inputs: Inputs) -> Key:
    if isinstance(inputs, dict):
        return tuple((name, tuple(t.shape)) for name, t in inputs.items())
    return tuple(inputs.shape)


def _copy(target: Inputs, source: Inputs) -> None:
    if isinstance(target, dict) and isinstance(source, dict):
        for name, tensor in target.items():
            tensor.copy_(source[name])
    elif isinstance(target, Tensor) and isinstance(source, Tensor):
        target.copy_(source)

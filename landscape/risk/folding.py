"""BatchNorm with fixed statistics, folded into the convolution before it, for any weights that come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Pair:
    """A convolution whose output goes into one BatchNorm layer: their dotted names, and the layer's epsilon."""

    convolution: str
    normalisation: str
    epsilon: float

    def weights(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r"""Return weight and bias of the one convolution that does both.

        .. math:: W' = s W, \quad b' = \beta + s\,(b - \mu), \qquad s = \gamma / \sqrt{\sigma^2 + \epsilon}

        ``tensors`` are all parameters and buffers by dotted name; s acts on the output channels.
        """
        weight, bias = tensors[f"{self.convolution}.weight"], tensors.get(f"{self.convolution}.bias")
        mean, variance = (tensors[f"{self.normalisation}.running_{name}"] for name in ("mean", "var"))
        gamma, beta = (tensors.get(f"{self.normalisation}.{name}") for name in ("weight", "bias"))
        scale = torch.rsqrt(variance + self.epsilon)
        if gamma is not None:
            scale = gamma * scale
        shift = -mean * scale if bias is None else (bias - mean) * scale
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift if beta is None else beta + shift


@torch.no_grad()
def find_pairs(module: nn.Module, run: Callable[[], object]) -> list[Pair]:
    """Return the convolutions that feed a BatchNorm layer with running statistics, as one forward pass ``run`` shows.

    Only layers that the pass calls exactly once count. That nothing else reads the convolution's output cannot be
    seen here: whoever folds compares the outputs.
    """
    names = {layer: name for name, layer in module.named_modules()}
    calls: dict[nn.Module, int] = {}
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the outputs, so that no address is used twice
    fed: dict[_BatchNorm, nn.Module] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if isinstance(layer, _BatchNorm) and inputs and id(inputs[0]) in made_by:
            fed[layer] = made_by[id(inputs[0])][0]
        if isinstance(output, Tensor):
            made_by[id(output)] = (layer, output)

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    sources = list(fed.values())
    return [
        Pair(names[source], names[layer], layer.eps)
        for layer, source in fed.items()
        if _can_fold(source, layer) and calls[layer] == calls[source] == 1 and sources.count(source) == 1
    ]


def _can_fold(source: nn.Module, layer: nn.Module) -> bool:
    return (
        isinstance(source, _ConvNd)
        and not isinstance(source, _ConvTransposeNd)
        and isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and not layer.training
        # A layer that is hooked or reparametrised computes its weight itself.
        and not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in (source, layer))
    )


def fold(module: nn.Module, pairs: Sequence[Pair]) -> None:
    """Take the BatchNorm layers out of a module and give their convolutions a bias; the weights are set by the caller."""
    for pair in pairs:
        convolution = module.get_submodule(pair.convolution)
        if convolution.bias is None:
            weight = convolution.weight
            convolution.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
        parent, _, name = pair.normalisation.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())

"""The models by name, and the one function that builds and initialises them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from landscape.errors import LandscapeError, unknown_name
from landscape.models.heads import NormedLinear
from landscape.models.resnet import ResNet
from landscape.models.small import MLP, ConvNet
from landscape.randomness import stream

Head = Literal["linear", "cosine"]
HeadFactory = Callable[[int], nn.Module]


def _mlp(make_head: HeadFactory, in_channels: int, image_size: int) -> nn.Module:
    return MLP(make_head(MLP.num_features), num_inputs=in_channels * image_size**2)


def _convnet(make_head: HeadFactory, in_channels: int, image_size: int) -> nn.Module:
    return ConvNet(make_head(ConvNet.num_features), in_channels=in_channels)


def _resnet(make_head: HeadFactory, in_channels: int, image_size: int, *, num_blocks: int) -> nn.Module:
    return ResNet(make_head(ResNet.num_features), num_blocks=num_blocks, in_channels=in_channels)


# name -> factory (make_head, in_channels, image_size); make_head takes the number of features
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "resnet20": partial(_resnet, num_blocks=3),
    "resnet32": partial(_resnet, num_blocks=5),
    "resnet44": partial(_resnet, num_blocks=7),
    "resnet56": partial(_resnet, num_blocks=9),
    "resnet110": partial(_resnet, num_blocks=18),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    head: Head = "linear",
    seed: int = 0,
) -> nn.Module:
    """Build a model with reproducible weights, on the CPU in float32 and in training mode.

    Parameters
    ----------
    name
        A key of :data:`MODELS`.
    num_classes, in_channels, image_size
        Shape of the task; images are square. Only the MLP depends on ``image_size``.
    head
        ``"linear"``, or ``"cosine"`` (:class:`NormedLinear`) as losses on cosines need it.
    seed
        Root seed; the weights come from its stream ``model/init``. The global generator is left as it was.

    Raises
    ------
    LandscapeError
        For an unknown model or head, or a shape that is not positive.

    Notes
    -----
    Weights of convolutions and linear layers are He-normal by fan-in, biases uniform within one over the root of the
    fan-in, cosine columns uniform in [-1, 1] per entry and then normalised, as in the released LDAM code.

    Examples
    --------
    >>> model = build_model("resnet32", num_classes=10, in_channels=3, image_size=32)
    >>> sum(parameter.numel() for parameter in model.parameters())
    464154
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    if head not in get_args(Head):
        raise unknown_name("head", head, get_args(Head))
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise LandscapeError(f"{what} must be at least 1, got {value}")

    def make_head(num_features: int) -> nn.Module:
        kind = nn.Linear if head == "linear" else NormedLinear
        return kind(num_features, num_classes)

    # torch.nn fills new layers from the global generator; those values are replaced below.
    with torch.random.fork_rng(devices=[]):
        model = MODELS[name](make_head, in_channels, image_size)
    _initialise(model, stream(seed, "model/init"))
    return model


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight from ``generator``, in the order of the modules; normalisation layers start at the identity."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.weight[0].numel())
                    module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, NormedLinear):
                weight = module.weight.uniform_(-1, 1, generator=generator)
                weight.div_(torch.linalg.vector_norm(weight, dim=0))

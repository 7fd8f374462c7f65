"""The models by name, and the one function that builds and initialises them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from landscape.errors import LandscapeError, unknown_name
from landscape.models.dropout import set_dropout_generator
from landscape.models.heads import HeadFactory, NormedLinear, find_head
from landscape.models.imagenet import Block, ImageNetResNet, Stem
from landscape.models.initialisation import draw_default, initialise
from landscape.models.libraries import LIBRARIES
from landscape.models.resnet import BBNResNet, ResNet
from landscape.models.small import MLP, ConvNet
from landscape.models.vit import DeepPrompts, VisionTransformer, ViTShape, require_whole
from landscape.randomness import stream

Head = Literal["linear", "cosine"]


def _mlp(make_head: HeadFactory, in_channels: int, image_size: int) -> nn.Module:
    return MLP(make_head(MLP.num_features), num_inputs=in_channels * image_size**2)


def _convnet(make_head: HeadFactory, in_channels: int, image_size: int) -> nn.Module:
    return ConvNet(make_head(ConvNet.num_features), in_channels=in_channels)


def _resnet(make_head: HeadFactory, in_channels: int, image_size: int, *, num_blocks: int) -> nn.Module:
    return ResNet(make_head(ResNet.num_features), num_blocks=num_blocks, in_channels=in_channels)


def _bbn(make_head: HeadFactory, in_channels: int, image_size: int, *, unused_blocks: bool = True) -> nn.Module:
    _require_switch("unused_blocks", unused_blocks)
    return BBNResNet(make_head(BBNResNet.num_features), in_channels=in_channels, unused_blocks=unused_blocks)


def _imagenet(
    make_head: HeadFactory,
    in_channels: int,
    image_size: int,
    *,
    num_blocks: Sequence[int],
    block: Block,
    groups: int,
    group_width: int,
    stem: Stem,
    width: int = 64,
) -> nn.Module:
    require_whole("width", width)
    return ImageNetResNet(
        make_head(ImageNetResNet.num_features(block, width)),
        block=block,
        num_blocks=num_blocks,
        in_channels=in_channels,
        groups=groups,
        group_width=group_width,
        width=width,
        stem=stem,
    )


def _vit(
    make_head: HeadFactory, in_channels: int, image_size: int, *, recompute: bool = False, **sizes: int
) -> nn.Module:
    _require_switch("recompute", recompute)
    shape = ViTShape(image_size, in_channels, **sizes)
    return VisionTransformer(make_head(shape.width), shape, recompute=recompute)


def _vit_gnm(
    make_head: HeadFactory,
    in_channels: int,
    image_size: int,
    *,
    num_prompts: int = 10,
    head_dropout: float = 0.1,
    train_backbone: bool = False,
    recompute: bool = False,
    **sizes: int,
) -> nn.Module:
    _require_switch("recompute", recompute)
    shape = ViTShape(image_size, in_channels, **sizes)
    prompts = DeepPrompts(num_prompts, "append", "cls+prompts", "gnm-pt", head_dropout=head_dropout)
    model = VisionTransformer(make_head(shape.width), shape, prompts=prompts, recompute=recompute)
    return _frozen(model, train_backbone)


def _vit_vpt(
    make_head: HeadFactory,
    in_channels: int,
    image_size: int,
    *,
    num_prompts: int = 5,
    prompt_dropout: float = 0.0,
    train_backbone: bool = False,
    recompute: bool = False,
    **sizes: int,
) -> nn.Module:
    _require_switch("recompute", recompute)
    shape = ViTShape(image_size, in_channels, **sizes)
    prompts = DeepPrompts(num_prompts, "insert", "cls", "vpt", prompt_dropout=prompt_dropout)
    model = VisionTransformer(make_head(shape.width), shape, prompts=prompts, recompute=recompute)
    return _frozen(model, train_backbone)


def _frozen(model: VisionTransformer, train_backbone: bool) -> VisionTransformer:
    """Hold everything but prompts and classifier fixed, unless the backbone is to be trained too."""
    _require_switch("train_backbone", train_backbone)
    model.requires_grad_(train_backbone)
    model.prompts.requires_grad_(True)
    model.head.requires_grad_(True)
    return model


def _require_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise LandscapeError(f"{name}: expected true or false, got {value!r}")


_RESNET_50 = partial(_imagenet, num_blocks=(3, 4, 6, 3), block="bottleneck", groups=1, group_width=64, stem="imagenet")

# name -> factory (make_head, in_channels, image_size, **options); make_head takes the number of features. A ResNet for CIFAR
# has 6n + 2 layers, which 50 and 152 are too: the ImageNet networks say in their names that they are others.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "resnet20": partial(_resnet, num_blocks=3),
    "resnet32": partial(_resnet, num_blocks=5),
    "resnet44": partial(_resnet, num_blocks=7),
    "resnet56": partial(_resnet, num_blocks=9),
    "resnet110": partial(_resnet, num_blocks=18),
    "resnet32-bbn": _bbn,
    "resnet34-cifar": partial(_RESNET_50, block="basic", stem="cifar"),
    "resnet50-imagenet": _RESNET_50,
    "resnet152-imagenet": partial(_RESNET_50, num_blocks=(3, 8, 36, 3)),
    "resnext50-imagenet": partial(_RESNET_50, groups=32, group_width=4),
    "vit-b16": _vit,
    "vit-b16-gnm": _vit_gnm,
    "vit-b16-vpt": _vit_vpt,
}


def model_options(name: str) -> tuple[str, ...]:
    """Return the names of the options that :func:`build_model` takes for a model.

    Raises
    ------
    LandscapeError
        For an unknown model.

    Examples
    --------
    >>> model_options("vit-b16-vpt")
    ('num_prompts', 'prompt_dropout', 'train_backbone', 'recompute', 'patch_size', 'width', 'depth', 'num_heads')
    """
    factory = _factory(name)
    settled = {"make_head", "in_channels", "image_size", *getattr(factory, "keywords", ())}
    parameters = inspect.signature(factory).parameters.values()
    own = [p.name for p in parameters if p.name not in settled and p.kind is not p.VAR_KEYWORD]
    sizes = [f.name for f in fields(ViTShape) if f.name not in settled]
    return (*own, *(sizes if any(p.kind is p.VAR_KEYWORD for p in parameters) else ()))


def check_model(name: str, options: Mapping[str, Any]) -> None:
    """Raise LandscapeError for a name that is no model, or an option that this model has not; nothing is built.

    Values are checked by :func:`build_model`, and so is the name within another library.
    """
    known = model_options(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of model '{name}'", option, known or ["(none)"])


def _factory(name: str) -> Callable[..., nn.Module]:
    library, colon, within = name.partition(":")
    if colon and library in LIBRARIES:
        return partial(LIBRARIES[library], name=within)
    if name not in MODELS:
        variants = [
            known for known in MODELS if known.startswith(f"{name}-")
        ]  # resnet50 is resnet50-imagenet, not resnet56
        raise unknown_name("model", name, variants or [*MODELS, *(f"{library}:NAME" for library in LIBRARIES)])
    return MODELS[name]


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    head: Head = "linear",
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Build a model with reproducible weights, on the CPU in float32 and in training mode.

    Parameters
    ----------
    name
        A key of :data:`MODELS`; or ``torchvision:NAME`` or ``timm:NAME`` where that package is installed.
    num_classes, in_channels, image_size
        Shape of the task; images are square. The MLP and vision transformers depend on ``image_size``: published weights
        of the latter want 224.
    head
        ``"linear"``, or ``"cosine"`` (:class:`NormedLinear`) as losses on cosines need it.
    seed
        Root seed; the weights come from its stream ``model/init``, the masks of dropout from ``model/dropout``. The global
        generator is left as it was.
    **options
        Options of the model, see :func:`model_options`: ``width`` of the ImageNet networks; ``patch_size``, ``width``,
        ``depth``, ``num_heads`` and ``recompute`` (memory for time) of the vision transformers, with prompts also
        ``num_prompts``, ``head_dropout`` or ``prompt_dropout``, and ``train_backbone`` (by default only prompts and classifier
        require a gradient); ``unused_blocks`` of ``resnet32-bbn``; ``pretrained`` of other libraries' models.

    Raises
    ------
    LandscapeError
        For an unknown model, option or head, a value out of range, a shape that is not positive or does not fit, or a
        library that is not installed.

    Notes
    -----
    Weights are drawn as the network's release does, see the classes; networks of other libraries as these do, from our
    stream. Where nothing is published, convolutions and linear layers are He-normal by fan-in, biases uniform within one
    over the root of the fan-in, cosine columns uniform in [-1, 1] per entry and then normalised, as in the LDAM code.

    Examples
    --------
    >>> model = build_model("resnet32", num_classes=10, in_channels=3, image_size=32)
    >>> sum(parameter.numel() for parameter in model.parameters())
    464154
    """
    check_model(name, options)
    if head not in get_args(Head):
        raise unknown_name("head", head, get_args(Head))
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise LandscapeError(f"{what} must be at least 1, got {value}")

    def make_head(num_features: int) -> nn.Module:
        kind = nn.Linear if head == "linear" else NormedLinear
        return kind(num_features, num_classes)

    generator = stream(seed, "model/init")
    # Layers fill themselves from the global generator: ours are drawn again below, another library's keep what comes.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream(seed, "model/library").get_state())
        model = _factory(name)(make_head, in_channels, image_size, **options)
    if name in MODELS:
        initialise(model, generator)
    else:
        draw_default(find_head(model)[1], generator)
    set_dropout_generator(model, stream(seed, "model/dropout"))
    return model

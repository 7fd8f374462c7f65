"""Which registered network a state dict belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.models.heads import NormedLinear
from landscape.models.registry import MODELS

VIT_B16 = {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12}
HEAD_WIDTH = 64  # of one attention head in every published ViT up to L; shapes do not show it
PLANES = 64  # of the first stage, as published
# blocks of the four stages, whether they are bottlenecks, groups, side of the first kernel -> name
FOUR_STAGES: dict[tuple[tuple[int, ...], bool, int, int], str] = {
    ((3, 4, 6, 3), True, 1, 7): "resnet50-imagenet",
    ((3, 8, 36, 3), True, 1, 7): "resnet152-imagenet",
    ((3, 4, 6, 3), True, 32, 7): "resnext50-imagenet",
    ((3, 4, 6, 3), False, 1, 3): "resnet34-cifar",
}


@dataclass(frozen=True)
class Architecture:
    """What the shapes of a state dict say about the network: arguments for :func:`landscape.models.build_model`."""

    model: str
    in_channels: int
    num_classes: int
    head: str
    options: Mapping[str, Any] = field(default_factory=dict)


def infer_architecture(state_dict: Mapping[str, Tensor]) -> Architecture | None:
    """Recognise residual networks of CIFAR and ImageNet and vision transformers by the names and shapes of their tensors.

    A classifier with a bias is linear, weight (classes, features); one without is a cosine head, weight (features,
    classes). Options that have their published values are left out.

    Parameters
    ----------
    state_dict
        Names without wrappers' prefixes, as :func:`landscape.checkpoint.read_checkpoint` returns them.

    Returns
    -------
    Architecture or None
        None if it is none of ours, lacks its classifier, or could be several (with prompts: GNM-PT's and VPT's have the
        same tensors).
    """
    for recognise in (_cifar_resnet, _bbn_resnet, _four_stages, _vit):
        found = recognise(state_dict)
        if found is not None:
            return found
    return None


def infer_model(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the registered name of the network these tensors belong to, or None (see :func:`infer_architecture`)."""
    architecture = infer_architecture(state_dict)
    return architecture.model if architecture else None


def _described(
    model: str, state: Mapping[str, Tensor], *, stem: str, head: str, options: Mapping[str, Any] | None = None
) -> Architecture | None:
    """Return the architecture of a name, its classifier read from the state dict; None without one."""
    weight = state.get(f"{head}.weight")
    if weight is None or weight.ndim != 2:
        return None
    is_linear = f"{head}.bias" in state
    num_classes = weight.shape[0] if is_linear else weight.shape[1]
    kind = "linear" if is_linear else "cosine"
    return Architecture(model, state[stem].shape[1], num_classes, kind, dict(options or {}))


def _blocks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many residual blocks each ``layer<n>`` has."""
    blocks: dict[str, int] = {}
    for name in state:
        found = re.match(r"(layer\d+)\.\d+\.conv1\.weight$", name)
        if found:
            blocks[found[1]] = blocks.get(found[1], 0) + 1
    return blocks


def _has_stem(state: Mapping[str, Tensor]) -> bool:
    return "conv1.weight" in state and state["conv1.weight"].ndim == 4


def _cifar_resnet(state: Mapping[str, Tensor]) -> Architecture | None:
    """6n + 2 layers for n blocks in each of three stages; of the ImageNet networks with as many, none has three stages."""
    blocks = _blocks(state)
    if (
        not _has_stem(state)
        or state["conv1.weight"].shape[2:] != (3, 3)
        or sorted(blocks) != ["layer1", "layer2", "layer3"]
    ):
        return None
    model = f"resnet{6 * blocks['layer1'] + 2}"
    if len(set(blocks.values())) != 1 or model not in MODELS:
        return None
    return _described(model, state, stem="conv1.weight", head="linear")


def _bbn_resnet(state: Mapping[str, Tensor]) -> Architecture | None:
    if not _has_stem(state) or _blocks(state) != {"layer1": 5, "layer2": 5, "layer3": 4}:
        return None
    options = {} if "cb_block.conv1.weight" in state else {"unused_blocks": False}
    return _verified(
        _described("resnet32-bbn", state, stem="conv1.weight", head="classifier.fc", options=options), state
    )


def _four_stages(state: Mapping[str, Tensor]) -> Architecture | None:
    second, blocks = state.get("layer1.0.conv2.weight"), _blocks(state)
    if not _has_stem(state) or second is None or second.ndim != 4:
        return None
    stem, is_bottleneck = state["conv1.weight"], "layer1.0.conv3.weight" in state
    stages = tuple(blocks.get(f"layer{n}", 0) for n in (1, 2, 3, 4))
    model = FOUR_STAGES.get((stages, is_bottleneck, len(second) // second.shape[1], stem.shape[-1]))
    if model is None:
        return None
    options = {} if len(stem) == PLANES else {"width": len(stem)}
    return _verified(_described(model, state, stem="conv1.weight", head="fc", options=options), state)


def _vit(state: Mapping[str, Tensor]) -> Architecture | None:
    patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patches is None or positions is None or patches.ndim != 4 or len(patches) % HEAD_WIDTH:
        return None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    sizes = {"patch_size": patches.shape[2], "width": len(patches), "depth": depth}
    sizes["num_heads"] = len(patches) // HEAD_WIDTH
    options = {name: value for name, value in sizes.items() if value != VIT_B16[name]}
    found = _described("vit-b16", state, stem="patch_embed.proj.weight", head="head", options=options)
    return _verified(found, state, image_size=patches.shape[2] * math.isqrt(positions.shape[1] - 1))


def _verified(found: Architecture | None, state: Mapping[str, Tensor], *, image_size: int = 224) -> Architecture | None:
    """Return an architecture whose network has exactly these names and shapes, else None; no weights are drawn."""
    if found is None:
        return None
    kind = nn.Linear if found.head == "linear" else NormedLinear
    try:
        with torch.device("meta"):
            model = MODELS[found.model](
                lambda num_features: kind(num_features, found.num_classes),
                found.in_channels,
                image_size,
                **found.options,
            )
    except LandscapeError:
        return None
    return found if _shapes(model.state_dict()) == _shapes(state) else None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by name, but for the counters that files older than torch 0.4.1 lack."""
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

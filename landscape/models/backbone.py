"""Published weights put into a network without touching its classifier and its prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.models.heads import find_head

# Classifiers and prompts by the names of torchvision, timm and the released codes; pre_logits is what timm's older
# ImageNet-21k weights have between backbone and classifier, which GNM-PT leaves out too.
NOT_BACKBONE = re.compile(r"(head|head_dist|fc|linear|classifier|pre_logits|prompt_learner)\.|(prompts|Prompt_Tokens)$")
WRAPPERS = ("module.", "model.", "_orig_mod.", "encoder.")
COUNTER = "num_batches_tracked"
SHOWN = 4


def load_backbone(model: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy the weights of a backbone into a network; its own classifier and prompts stay as they are.

    Parameters
    ----------
    model
        The network; unchanged if the weights do not fit.
    state_dict
        Weights of torchvision, timm or a release, with or without a classifier (of any number of classes, or the
        representation layer of older ImageNet-21k weights). Prefixes of wrappers that all names share are taken off.

    Returns
    -------
    tuple
        The names in ``state_dict`` that were left out: classifiers and prompts.

    Raises
    ------
    LandscapeError
        If tensors of the backbone are missing, unknown or of another shape.

    Examples
    --------
    >>> from landscape.models import build_model
    >>> options = {"in_channels": 1, "image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
    >>> plain = build_model("vit-b16", num_classes=1000, seed=1, **options)
    >>> prompted = build_model("vit-b16-gnm", num_classes=10, **options)
    >>> load_backbone(prompted, plain.state_dict())
    ('head.weight', 'head.bias')
    >>> bool((prompted.blocks[0].mlp.fc1.weight == plain.blocks[0].mlp.fc1.weight).all())
    True
    """
    state = _unwrapped(state_dict)
    head = f"{find_head(model)[0]}."
    named = model.state_dict().items()
    own = {name: t for name, t in named if not name.startswith(head) and not NOT_BACKBONE.match(name)}
    left_out = [n for n in state if n not in own and (n.startswith(head) or NOT_BACKBONE.match(n))]
    given = {name: tensor for name, tensor in state.items() if name not in left_out}
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    wrong = {
        "missing": [name for name in own if name not in given and not name.endswith(COUNTER)],
        "unknown": [name for name in given if name not in own],
        "of another shape": shapes,
    }
    listed = "; ".join(f"{what}: {_shortened(names)}" for what, names in wrong.items() if names)
    if listed:
        raise LandscapeError(f"the weights are not those of this backbone ({type(model).__name__}): {listed}")
    model.load_state_dict(given, strict=False)
    return tuple(left_out)


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state_dict)
    while state and (prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), "")):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shortened(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest

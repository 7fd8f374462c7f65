"""Networks of torchvision and timm by name, where these packages are installed, with a classifier of ours."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from landscape.errors import LandscapeError
from landscape.models.heads import HeadFactory, mark_head

TORCHVISION_OUTPUTS = 1000  # of every classifier that torchvision builds unasked


def from_torchvision(
    make_head: HeadFactory, in_channels: int, image_size: int, *, name: str, pretrained: bool | str = False
) -> nn.Module:
    """Return a classification network of torchvision, its last linear layer replaced.

    Parameters
    ----------
    make_head
        From a number of features to the classifier.
    in_channels, image_size
        Of the images; torchvision's networks take 3 channels.
    name
        As ``torchvision.models.list_models`` gives it.
    pretrained
        False: no weights are downloaded. True: the default ones are, or those of a name such as ``IMAGENET1K_V1``.

    Raises
    ------
    LandscapeError
        If torchvision is not installed or does not know the name, the weights cannot be had, the classifier is not a
        linear layer, or the images have not 3 channels.
    """
    models = _library("torchvision", f"torchvision:{name}").models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if in_channels != 3:
        raise LandscapeError(f"torchvision:{name} takes images of 3 channels, got {in_channels}: choose another model")
    options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
    weights = "DEFAULT" if pretrained is True else pretrained or None
    model = _created(f"torchvision:{name}", lambda: models.get_model(name, weights=weights, **options))
    last = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1:]
    if not last or last[0][1].out_features != TORCHVISION_OUTPUTS or hasattr(model, "aux_logits"):
        raise LandscapeError(f"torchvision:{name} does not end in one linear classifier: choose another model")
    return _with_head(model, last[0][0], make_head)


def from_timm(
    make_head: HeadFactory, in_channels: int, image_size: int, *, name: str, pretrained: bool = False
) -> nn.Module:
    """Return a network of timm, its classifier replaced.

    Parameters
    ----------
    make_head
        From a number of features to the classifier.
    in_channels, image_size
        Of the images; networks for one size are built for this one.
    name
        As ``timm.list_models`` gives it, with or without a tag: ``vit_base_patch16_224.augreg_in21k``.
    pretrained
        Whether the weights of the name, or of its default tag, are downloaded.

    Raises
    ------
    LandscapeError
        If timm is not installed or does not know the name, the weights cannot be had, or the classifier is not a linear
        layer.
    """
    timm = _library("timm", f"timm:{name}")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 2}  # two stand for the classifier to come
    recorded = timm.get_pretrained_cfg(name)
    if recorded is not None and recorded.fixed_input_size and recorded.input_size[-1] != image_size:
        options["img_size"] = image_size
    model: Any = _created(f"timm:{name}", lambda: timm.create_model(name, pretrained=bool(pretrained), **options))
    classifier = model.get_classifier()
    path = next((path for path, layer in model.named_modules() if layer is classifier), None)
    if path is None or not isinstance(classifier, nn.Linear):
        raise LandscapeError(f"timm:{name} does not end in one linear classifier: choose another model")
    return _with_head(model, path, make_head)


# what stands before the colon of a name -> factory (make_head, in_channels, image_size, name=what stands behind it)
LIBRARIES: dict[str, Callable[..., nn.Module]] = {"torchvision": from_torchvision, "timm": from_timm}


def _library(package: str, model: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise LandscapeError(
            f"model '{model}' needs the package {package}, which cannot be imported ({error}): "
            f"pip install 'landscape-longtail[{package}]'"
        ) from None


def _unknown(package: str, name: str, known: list[str]) -> LandscapeError:
    nearest = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.3)) or "none is near"
    return LandscapeError(f"{package} has no model '{name}': did you mean one of: {nearest}? It knows {len(known)}")


def _created(model: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LandscapeError(f"model '{model}' could not be built or its weights not be had: {first}") from error


def _with_head(model: nn.Module, path: str, make_head: HeadFactory) -> nn.Module:
    parent, _, name = path.rpartition(".")
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    setattr(model.get_submodule(parent), name, make_head(old.in_features))
    mark_head(model, path)
    return model

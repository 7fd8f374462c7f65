"""The losses by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from landscape.class_weights import Counts
from landscape.errors import unknown_name
from landscape.losses.adjustment import BalancedSoftmax, ClassDependentTemperatures, LogitAdjusted, VectorScaling
from landscape.losses.clouded import GCL, AngularGCL, AsymmetricGCL
from landscape.losses.entropy import CrossEntropy, Focal, LabelAwareSmoothing
from landscape.losses.margins import LDAM

LOSSES: dict[str, type[nn.Module]] = {
    "ce": CrossEntropy,
    "focal": Focal,
    "label-aware": LabelAwareSmoothing,
    "ldam": LDAM,
    "balanced-softmax": BalancedSoftmax,
    "logit-adjusted": LogitAdjusted,
    "cdt": ClassDependentTemperatures,
    "vs": VectorScaling,
    "gcl": GCL,
    "gcl-angular": AngularGCL,
    "asymmetric-gcl": AsymmetricGCL,
}
# Their scales and margins are meant for cosines; see wants_cosines for an option that changes this.
COSINE_LOSSES: frozenset[str] = frozenset({"ldam", "gcl", "gcl-angular", "asymmetric-gcl"})


def wants_cosines(name: str, **options: Any) -> bool:
    """Return whether a loss with these options is meant for the bare cosines of a normalised head.

    Examples
    --------
    >>> wants_cosines("ldam"), wants_cosines("ldam", logits_scaled=True), wants_cosines("vs")
    (True, False, False)
    """
    return name in COSINE_LOSSES and not options.get("logits_scaled", False)


def build_loss(name: str, class_counts: Counts, **options: Any) -> nn.Module:
    """Build a loss by name: a module ``(logits (B, C), labels (B,)) -> (B,)``, in training mode like every new one.

    Parameters
    ----------
    name
        A key of :data:`LOSSES`.
    class_counts
        Training examples of each class, (C,); at least 1, except where the loss does not use them (ce, focal).
    options
        Keyword arguments of the loss's class.

    Raises
    ------
    LandscapeError
        For an unknown loss or option, or a value out of range.

    Examples
    --------
    >>> build_loss("ldam", [5000, 500, 50], max_margin=0.5).margins
    tensor([0.1581, 0.2812, 0.5000], dtype=torch.float64)
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    known = [option for option in inspect.signature(LOSSES[name]).parameters if option != "class_counts"]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of loss '{name}'", option, known or ["(none)"])
    return LOSSES[name](class_counts, **options)

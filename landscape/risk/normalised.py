"""The network with its confidence taken away: logits of zero mean and unit norm."""

from __future__ import annotations

import copy

from torch import Tensor
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.losses import cross_entropy
from landscape.risk.model import ModelRisk
from landscape.risk.protocol import ClassRisk

NAME = "ce of normalised logits"


def normalised_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the cross-entropy (B,) of :math:`(f - \bar f) / \|f - \bar f\|_2` for logits f (B, C), labels (B,).

    Source: Andriushchenko et al., ICML 2023, section 3.

    Examples
    --------
    >>> logits, labels = torch.tensor([[3.0, 1.0, -1.0]], dtype=torch.float64), torch.tensor([0])
    >>> once, scaled = (normalised_cross_entropy(a * logits + 5, labels) for a in (1.0, 40.0))
    >>> bool((once - scaled).abs() < 1e-12)
    True
    """
    centred = logits - logits.mean(1, keepdim=True)
    return cross_entropy(functional.normalize(centred, dim=1), labels)


def logit_normalised(risk: ClassRisk) -> ModelRisk:
    """Return the same risk, weights and data with :func:`normalised_cross_entropy` in the place of its loss.

    Raises
    ------
    LandscapeError
        For a risk without logits.
    """
    if not isinstance(risk, ModelRisk):
        raise LandscapeError("logits 'normalised': this risk has no logits, it is not a network's; use 'raw'")
    clone = copy.copy(risk)
    clone.loss, clone.loss_name = normalised_cross_entropy, NAME
    clone.attributes = {**risk.attributes, "objective": NAME}
    return clone

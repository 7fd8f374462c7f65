"""What enters the classifier: features of examples beside their logits, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.models import find_head, is_cosine_head
from landscape.risk.arithmetic import precise_arithmetic

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk


def linear_head(risk: ModelRisk) -> tuple[str, nn.Linear]:
    """Return the dotted name and the module of a classifier z = W phi + b.

    Raises
    ------
    LandscapeError
        If the model has no classifier that is recognised, or one that is not linear: a cosine head's logits do not
        depend on the norms of its weights.
    """
    name, head = find_head(risk._network.module)
    if is_cosine_head(head) or not isinstance(head, nn.Linear):
        raise LandscapeError(
            f"needs a linear classifier z = W phi + b, got the cosine head '{name}', whose logits do not depend on |w|"
        )
    return name, head


def head_weight(risk: ModelRisk) -> Tensor:
    """Return the classifier's weight (C, d) at theta, one row per class."""
    name, _ = linear_head(risk)
    return risk._network.parameters_at(risk.theta)[f"{name}.weight" if name else "weight"]


def features_and_logits(risk: ModelRisk) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, the features (m, d) that enter the linear classifier, and the logits (m, C), at theta.

    Raises
    ------
    LandscapeError
        If the classifier is not linear, does not see one vector per example once, or the model changes what it returns:
        the logits are then no linear function of these features.

    Examples
    --------
    >>> from landscape import ModelRisk
    >>> risk = ModelRisk(nn.Linear(3, 2), (torch.eye(3), torch.tensor([0, 1, 1])))
    >>> [(tuple(phi.shape), tuple(z.shape)) for _, phi, z in features_and_logits(risk)]
    [((3, 3), (3, 2))]
    """
    name, head = linear_head(risk)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append((inputs[0], output))

    for rows in risk.row_chunks():
        seen.clear()
        handle = head.register_forward_hook(keep)
        try:
            with torch.no_grad(), precise_arithmetic():
                logits = risk.logits(risk.theta, rows)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0][0].dim() != 2 or not torch.equal(seen[0][1], logits):
            raise LandscapeError(
                f"needs logits that are the output of the linear layer '{name}' for one vector per example; "
                "this model uses that layer otherwise"
            )
        yield rows, seen[0][0], logits

"""Class weights from class counts, and when training uses them."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from landscape.class_weights import Counts, class_weights
from landscape.errors import LandscapeError, unknown_name

Reweight = Literal["none", "cb", "drw"]


class Reweighting(nn.Module):
    r"""Class weights as a function of the epoch, applied to per-example losses.

    Parameters
    ----------
    kind
        ``"none"``; ``"cb"``, class-balanced from the first epoch; ``"drw"``, the same weights from ``start_epoch`` on.
    class_counts
        Training examples of each class.
    beta
        See :func:`class_weights`.
    start_epoch
        First epoch (counted from 0) with weights under ``"drw"``: 160 of 200 on CIFAR, 60 of 90 on ImageNet-LT.
    weights
        Which weights, a key of :data:`CLASS_WEIGHTS`.

    Notes
    -----
    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019. Differs from the released code in: 1. training longer than twice
    ``start_epoch`` keeps the weights, there it raises an IndexError.
    """

    class_weights: Tensor

    def __init__(
        self,
        kind: Reweight,
        class_counts: Counts,
        *,
        beta: float = 0.9999,
        start_epoch: int = 160,
        weights: str = "effective-number",
    ) -> None:
        super().__init__()
        if kind not in get_args(Reweight):
            raise unknown_name("re-weighting", kind, get_args(Reweight))
        if start_epoch < 0:
            raise LandscapeError(f"start_epoch must be at least 0, got {start_epoch}")
        self.kind = kind
        self.start_epoch = start_epoch if kind == "drw" else 0
        self.register_buffer("class_weights", class_weights(weights, class_counts, beta=beta))

    def weights(self, epoch: int) -> Tensor | None:
        """Return the class weights of an epoch, (C,) float64 with sum C, or None where all are equal."""
        return None if self.kind == "none" or epoch < self.start_epoch else self.class_weights

    def forward(self, losses: Tensor, labels: Tensor, epoch: int) -> Tensor:
        r"""Return per-example losses whose plain mean is :math:`\sum_i w_{y_i} \ell_i / \sum_i w_{y_i}`, (B,).

        The weighted mean of the released code: on a batch of one class the weights cancel.
        """
        weights = self.weights(epoch)
        if weights is None:
            return losses
        per_example = weights.to(losses.dtype)[labels]
        return losses * (per_example / per_example.mean())

    def weigh(self, loss: nn.Module, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Return the losses of a batch under the weights of an epoch, (B, C), (B,) -> (B,), for a plain mean.

        A loss whose weights are inside (:class:`Focal`) gets none from here, and leaves its own out until
        ``start_epoch`` under ``"drw"``.
        """
        if getattr(loss, "weights_inside", False):
            losses: Tensor = loss(logits, labels, is_weighted=epoch >= self.start_epoch)
            return losses
        return self(loss(logits, labels), labels, epoch)

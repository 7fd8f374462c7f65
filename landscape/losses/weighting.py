"""Class weights from class counts, and when training uses them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, unknown_name
from landscape.losses.inputs import Counts, validated_counts

Reweight = Literal["none", "cb", "drw"]


def class_balanced_weights(class_counts: Counts, beta: float = 0.9999) -> Tensor:
    r"""Return class weights by effective number, (C,) float64, with sum C.

    .. math:: w_c \propto (1 - \beta) / (1 - \beta^{n_c}), \qquad \sum_c w_c = C

    Parameters
    ----------
    class_counts
        Training examples of each class, at least 1.
    beta
        From 0 (equal weights) up to, but not including, 1 (whose limit is the inverse count).

    Notes
    -----
    Source: Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019, eq. 2 and released
    normalisation; 0.9999 in LDAM-DRW and its descendants, 0.9998 in GNM.

    Examples
    --------
    >>> class_balanced_weights([5000, 500, 50])
    tensor([0.0341, 0.2752, 2.6907], dtype=torch.float64)
    """
    counts = validated_counts(class_counts)
    if not 0 <= beta < 1:
        raise LandscapeError(f"beta must be at least 0 and below 1, got {beta}")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weights = -(1 - beta) / torch.expm1(counts * log_beta)
    return weights * len(counts) / weights.sum()


class Reweighting(nn.Module):
    r"""Class weights as a function of the epoch, applied to per-example losses.

    Parameters
    ----------
    kind
        ``"none"``; ``"cb"``, class-balanced from the first epoch; ``"drw"``, the same weights from ``start_epoch`` on.
    class_counts
        Training examples of each class.
    beta
        See :func:`class_balanced_weights`.
    start_epoch
        First epoch (counted from 0) with weights under ``"drw"``: 160 of 200 on CIFAR, 60 of 90 on ImageNet-LT.

    Notes
    -----
    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019. Differs from the released code in: 1. training longer than twice
    ``start_epoch`` keeps the weights, there it raises an IndexError.
    """

    class_weights: Tensor

    def __init__(self, kind: Reweight, class_counts: Counts, *, beta: float = 0.9999, start_epoch: int = 160) -> None:
        super().__init__()
        if kind not in get_args(Reweight):
            raise unknown_name("re-weighting", kind, get_args(Reweight))
        if start_epoch < 0:
            raise LandscapeError(f"start_epoch must be at least 0, got {start_epoch}")
        self.kind = kind
        self.start_epoch = start_epoch if kind == "drw" else 0
        self.register_buffer("class_weights", class_balanced_weights(class_counts, beta))

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

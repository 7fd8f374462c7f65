"""Class weights from class counts, and when training uses them."""

from __future__ import annotations

from collections.abc import Callable
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
    return class_weights("effective-number", class_counts, beta=beta)


def class_weights(kind: str, class_counts: Counts, *, beta: float = 0.9999) -> Tensor:
    r"""Return class weights of a kind, (C,) float64, with sum C; as weights of losses or, by example, of a sampler.

    ===========================  =====================================================================================
    kind                         :math:`w_c \propto`
    ===========================  =====================================================================================
    ``equal``                    1
    ``effective-number``         :math:`(1 - \beta) / (1 - \beta^{n_c})`
    ``graded-effective-number``  the same with :math:`\beta_c = \beta + 10^{-5} \hat m_c`, where :math:`\hat m_c` runs
                                 from 0 for the most frequent to 1 for the rarest class as in :class:`GCL`
    ``inverse``                  :math:`1 / n_c`: a sampler that draws examples with these weights is balanced
    ``inverse-sqrt``             :math:`1 / \sqrt{n_c}`: a sampler draws a class with probability
                                 :math:`\propto \sqrt{n_c}`
    ===========================  =====================================================================================

    Parameters
    ----------
    kind
        A key of :data:`CLASS_WEIGHTS`.
    class_counts
        Training examples of each class, at least 1.
    beta
        Of the effective numbers, from 0 up to, but not including, 1; the other kinds do not use it.

    Raises
    ------
    LandscapeError
        For an unknown kind, a count below 1, or beta out of range.

    Notes
    -----
    Source: effective number, Cui et al., CVPR 2019, eq. 2 (sampler ``Resample`` of LDAM-DRW, ``EffectNumRS`` of GCL);
    graded, Li et al., *GCL*, CVPR 2022, released sampler ``CBENRS``, also in LPT; inverse, ``BalancedRS`` of GCL's second
    stage; inverse-sqrt, square-root sampling, Kang et al., *Decoupling*, ICLR 2020, eq. 1 with q = 1/2.

    Examples
    --------
    >>> class_weights("inverse", [4, 2, 1])
    tensor([0.4286, 0.8571, 1.7143], dtype=torch.float64)
    """
    if kind not in CLASS_WEIGHTS:
        raise unknown_name("kind of class weights", kind, CLASS_WEIGHTS)
    counts = validated_counts(class_counts)
    if not 0 <= beta < 1:
        raise LandscapeError(f"beta must be at least 0 and below 1, got {beta}")
    weights = CLASS_WEIGHTS[kind](counts, beta)
    return weights * len(counts) / weights.sum()


def rarity(counts: Tensor) -> Tensor:
    r"""Return :math:`(\log n_{\max} - \log n_c) / (\log n_{\max} - \log n_{\min})`, or 0 with equal counts, (C,)."""
    rise = counts.max().log() - counts.log()
    return rise / rise.max() if rise.max() > 0 else rise


def _effective_number(counts: Tensor, beta: float | Tensor) -> Tensor:
    betas = torch.as_tensor(beta, dtype=counts.dtype)
    return -(1 - betas) / torch.expm1(counts * betas.log())


def _graded_effective_number(counts: Tensor, beta: float) -> Tensor:
    if beta + BETA_RISE >= 1:
        raise LandscapeError(f"beta of graded-effective-number must be below {1 - BETA_RISE:g}, got {beta}")
    return _effective_number(counts, beta + BETA_RISE * rarity(counts))


BETA_RISE = 1e-5  # released code of GCL
CLASS_WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "equal": lambda counts, beta: torch.ones_like(counts),
    "effective-number": _effective_number,
    "graded-effective-number": _graded_effective_number,
    "inverse": lambda counts, beta: 1 / counts,
    "inverse-sqrt": lambda counts, beta: counts**-0.5,
}


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

"""Weights of classes by their number of examples: what re-weighted losses and re-sampled batches share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name

Counts = Sequence[int] | Tensor


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
                                 from 0 for the most frequent to 1 for the rarest class as in GCL
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
    counts = checked_counts(class_counts)
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


def checked_counts(class_counts: Counts, *, minimum: int = 1) -> Tensor:
    """Return validated class counts, (C,) float64 on the CPU."""
    counts = torch.as_tensor(class_counts).detach().to(dtype=torch.float64, device="cpu").clone()
    if counts.dim() != 1 or len(counts) == 0:
        raise LandscapeError(f"class_counts must be one number per class, got shape {tuple(counts.shape)}")
    bad = ~(counts >= minimum) | ~counts.isfinite()
    if bad.any():
        c = int(bad.nonzero()[0])
        raise LandscapeError(f"class_counts must be at least {minimum}, got {counts[c]:g} for class {c}")
    return counts

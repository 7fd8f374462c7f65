"""Negative log-probabilities that keep their digits: what every loss that rests on cross-entropy is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def surprises(logits: Tensor, dim: int = 1) -> Tensor:
    r"""Return :math:`-\log \text{softmax}(z)` along a dimension, to rounding at every size, its derivatives too.

    With j the largest logit of an example and :math:`d_k = z_k - z_j`,

    .. math:: -\log p_k = \log\Big(1 + \sum_{l \ne j} e^{d_l}\Big) - d_k, \qquad d_j = 0 \text{ exactly}

    The same function whichever logit j is, so it is smooth where two of them are equal. The usual form,
    :math:`\log \sum_l e^{z_l - z_j} - d_k`, rounds a sum near 1: in float32 the loss of a fitted example is a multiple of
    1.2e-7, and its slope :math:`p_y - 1` and curvature :math:`p_y (1 - p_y)` lose their digits with it. Here slope and
    curvature are sums of the other classes' probabilities.

    Logits in half precision are taken to float32.

    Examples
    --------
    >>> surprises(torch.tensor([[17.0, 0.0]]))
    tensor([[4.1399e-08, 1.7000e+01]])
    """
    differences, others = _differences(logits, dim)
    return others - differences


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return :math:`-\\log p_y` of each example, (B, C), (B,) -> (B,); see :func:`surprises`.

    Examples
    --------
    >>> cross_entropy(torch.tensor([[17.0, 0.0]]), torch.tensor([0]))
    tensor([4.1399e-08])
    """
    differences, others = _differences(logits, 1)
    return (others - differences.gather(1, labels[:, None]))[:, 0]


def _differences(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the logits less the largest, a constant 0 in its place, and -log of the largest one's probability."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    largest = logits.detach().argmax(dim, keepdim=True)
    # A constant at the largest: its own slope, 1 - 1 + p, would cancel.
    differences = (logits - logits.gather(dim, largest)).scatter(dim, largest, 0.0)
    return differences, differences.exp().scatter(dim, largest, 0.0).sum(dim, keepdim=True).log1p()

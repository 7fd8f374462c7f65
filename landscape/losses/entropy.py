"""Cross-entropy, and cross-entropy that is focused on what is misclassified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.losses.inputs import Counts, checked_logits, cross_entropy, validated_counts, validated_number


class CrossEntropy(nn.Module):
    r"""Softmax cross-entropy, :math:`\text{CE}(z)`."""

    def __init__(self, class_counts: Counts) -> None:
        super().__init__()
        self.num_classes = len(validated_counts(class_counts, minimum=0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return cross_entropy(checked_logits(logits, self.num_classes), labels)


class Focal(nn.Module):
    r"""Focal loss, :math:`(1 - p_y)^\gamma\, \text{CE}(z)` with :math:`p = \text{softmax}(z)`.

    Parameters
    ----------
    gamma
        Focusing exponent, at least 0; 1 as in the released LDAM code. 0 is cross-entropy.

    Notes
    -----
    Source: Lin et al., *Focal Loss*, ICCV 2017, eq. 4, for the softmax. Differs from the LDAM code in: 1. p is the
    probability itself; there class weights enter p as well, :math:`p = \exp(-w_y \text{CE})`.
    """

    def __init__(self, class_counts: Counts, *, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = validated_number("gamma", gamma, minimum=0)
        self.num_classes = len(validated_counts(class_counts, minimum=0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        ce = cross_entropy(checked_logits(logits, self.num_classes), labels)
        # 1 - p without cancellation; kept off 0, where a power below 2 has no second derivative.
        miss = (-torch.expm1(-ce)).clamp_min(torch.finfo(ce.dtype).tiny)
        return miss**self.gamma * ce

"""A margin that grows with the rarity of the class."""

from __future__ import annotations

from torch import Tensor, nn

from landscape.class_weights import Counts, checked_counts
from landscape.losses.inputs import checked_logits, is_target, validated_flag, validated_number
from landscape.losses.likelihood import cross_entropy


class LDAM(nn.Module):
    r"""Label-distribution-aware margin, :math:`\text{CE}(s\,(z - m_y e_y))` on cosines z.

    .. math:: m_c = m_{\max}\, n_c^{-1/4} / \max_k n_k^{-1/4}

    Parameters
    ----------
    max_margin
        Margin of the rarest class: 0.5 on CIFAR; 0.3 was used on ImageNet-LT and iNaturalist.
    scale
        s, 30 as released.
    logits_scaled
        False: the scale is part of the loss, so the logits are bare cosines of a
        :class:`landscape.models.NormedLinear` head. True: the logits z have their scale already, and only the margin
        is scaled, :math:`\text{CE}(z - s\, m_y e_y)`; also what a linear head needs.

    Notes
    -----
    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019, eq. 12-13 and released code. Its descendants differ in: 1. RIDE and
    GNM-PT multiply the cosines by s in the model, hence ``logits_scaled``; 2. SSE-SAM takes this form with a linear
    head, where z has no scale of its own and a margin of 15 (0.5 times 30) is one in raw logits.

    Examples
    --------
    >>> z, y = torch.tensor([[0.5, -0.1]]), torch.tensor([1])
    >>> LDAM([9, 1])(z, y) == LDAM([9, 1], logits_scaled=True)(30 * z, y)
    tensor([True])
    """

    margins: Tensor

    def __init__(
        self, class_counts: Counts, *, max_margin: float = 0.5, scale: float = 30.0, logits_scaled: bool = False
    ) -> None:
        super().__init__()
        self.logits_scaled = validated_flag("logits_scaled", logits_scaled)
        counts = checked_counts(class_counts)
        self.scale = validated_number("scale", scale, above=0)
        margins = counts**-0.25
        self.num_classes = len(counts)
        self.register_buffer("margins", validated_number("max_margin", max_margin, minimum=0) * margins / margins.max())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        margins = self.margins.to(logits.dtype) * is_target(checked_logits(logits, self.num_classes), labels)
        if self.logits_scaled:
            return cross_entropy(logits - self.scale * margins, labels)
        return cross_entropy(self.scale * (logits - margins), labels)

"""Logits that are shifted or divided by class, so that rare classes need larger ones in training."""

from __future__ import annotations

from torch import Tensor, nn

from landscape.class_weights import Counts, checked_counts
from landscape.losses.inputs import checked_logits, validated_number
from landscape.losses.likelihood import cross_entropy


class BalancedSoftmax(nn.Module):
    r"""Balanced softmax, :math:`\text{CE}(z + \log n)`.

    Notes
    -----
    Source: Ren et al., *Balanced Meta-Softmax*, NeurIPS 2020, eq. 3. Equal to :class:`LogitAdjusted` at
    :math:`\tau = 1`: the logits differ by the constant :math:`\log N`.
    """

    shifts: Tensor

    def __init__(self, class_counts: Counts) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("shifts", counts.log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return cross_entropy(checked_logits(logits, self.num_classes) + self.shifts.to(logits.dtype), labels)


class LogitAdjusted(nn.Module):
    r"""Logit-adjusted softmax, :math:`\text{CE}(z + \tau \log \pi)`.

    Parameters
    ----------
    tau
        Strength, 1 as in the paper; 0 is cross-entropy.

    Notes
    -----
    Source: Menon et al., *Long-tail Learning via Logit Adjustment*, ICLR 2021, eq. 10.
    """

    shifts: Tensor

    def __init__(self, class_counts: Counts, *, tau: float = 1.0) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("shifts", validated_number("tau", tau) * (counts / counts.sum()).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return cross_entropy(checked_logits(logits, self.num_classes) + self.shifts.to(logits.dtype), labels)


class VectorScaling(nn.Module):
    r"""Vector scaling, :math:`\text{CE}(z / \Delta + \tau \log \pi)` with :math:`\Delta_c = (n_{\max} / n_c)^\gamma`.

    Parameters
    ----------
    gamma
        Exponent of the multiplicative factor; 0 is :class:`LogitAdjusted`.
    tau
        Strength of the additive term; 0 is :class:`ClassDependentTemperatures` (CDT).

    Notes
    -----
    Source: Kini et al., *Label-Imbalanced and Group-Sensitive Classification*, NeurIPS 2021, and its released code,
    which has the defaults 0.3 and 1. Others in use: (0.2, 1.2) in its CIFAR-10 example, (0.05, 0.75) in SSE-SAM.
    Released code writes :math:`\Delta_c = n_c^{-\gamma} / \min_k n_k^{-\gamma}`, which is the same.
    """

    temperatures: Tensor
    shifts: Tensor

    def __init__(self, class_counts: Counts, *, gamma: float = 0.3, tau: float = 1.0) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("temperatures", _temperatures(counts, gamma))
        self.register_buffer("shifts", validated_number("tau", tau) * (counts / counts.sum()).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        adjusted = checked_logits(logits, self.num_classes) / self.temperatures.to(logits.dtype) + self.shifts.to(
            logits.dtype
        )
        return cross_entropy(adjusted, labels)


class ClassDependentTemperatures(nn.Module):
    r"""Class-dependent temperatures, :math:`\text{CE}(z / \Delta)` with :math:`\Delta_c = (n_{\max} / n_c)^\gamma`.

    Parameters
    ----------
    gamma
        Exponent, 0.3 like that of :class:`VectorScaling`; 0 is cross-entropy.

    Notes
    -----
    Source: Ye et al., *Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning*, 2020
    (arXiv 2001.01385). Equal to :class:`VectorScaling` at :math:`\tau = 0`.

    Examples
    --------
    >>> ClassDependentTemperatures([5000, 500, 50], gamma=0.5).temperatures
    tensor([ 1.0000,  3.1623, 10.0000], dtype=torch.float64)
    """

    temperatures: Tensor

    def __init__(self, class_counts: Counts, *, gamma: float = 0.3) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("temperatures", _temperatures(counts, gamma))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return cross_entropy(checked_logits(logits, self.num_classes) / self.temperatures.to(logits.dtype), labels)


def _temperatures(counts: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(n_{\max} / n_c)^\gamma`, (C,)."""
    return (counts.max() / counts) ** validated_number("gamma", gamma, minimum=0)

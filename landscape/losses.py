"""Per-example losses for long-tailed classification, and class re-weighting.

Every loss is a module: ``loss(logits (B, C), labels (B,)) -> (B,)``. The class constants are float64 buffers that are
cast to the type of the logits. Losses do not average and do not weight; :class:`Reweighting` does the latter.

Notation: :math:`n_c` training examples of class c, :math:`N` of all, :math:`\\pi_c = n_c / N`, logits z, label y,
:math:`\\text{CE}(z) = -\\log \\text{softmax}(z)_y`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError, unknown_name

Counts = Sequence[int] | Tensor
Reweight = Literal["none", "cb", "drw"]


class CrossEntropy(nn.Module):
    r"""Softmax cross-entropy, :math:`\text{CE}(z)`."""

    def __init__(self, class_counts: Counts) -> None:
        super().__init__()
        self.num_classes = len(_counts(class_counts, minimum=0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return _cross_entropy(_checked(logits, self.num_classes), labels)


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
        self.gamma = _number("gamma", gamma, minimum=0)
        self.num_classes = len(_counts(class_counts, minimum=0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        ce = _cross_entropy(_checked(logits, self.num_classes), labels)
        # 1 - p without cancellation; kept off 0, where a power below 2 has no second derivative.
        miss = (-torch.expm1(-ce)).clamp_min(torch.finfo(ce.dtype).tiny)
        return miss**self.gamma * ce


class LDAM(nn.Module):
    r"""Label-distribution-aware margin, :math:`\text{CE}(s\,(z - m_y e_y))` on cosines z.

    .. math:: m_c = m_{\max}\, n_c^{-1/4} / \max_k n_k^{-1/4}

    Parameters
    ----------
    max_margin
        Margin of the rarest class: 0.5 on CIFAR; 0.3 was used on ImageNet-LT and iNaturalist.
    scale
        s, 30 as released.

    Notes
    -----
    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019, eq. 12-13 and released code. The scale is part of the loss, so the
    logits are bare cosines of a :class:`landscape.models.NormedLinear` head.
    """

    margins: Tensor

    def __init__(self, class_counts: Counts, *, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        counts = _counts(class_counts)
        self.scale = _number("scale", scale, above=0)
        margins = counts**-0.25
        self.num_classes = len(counts)
        self.register_buffer("margins", _number("max_margin", max_margin, minimum=0) * margins / margins.max())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        margins = self.margins.to(logits.dtype) * _is_target(_checked(logits, self.num_classes), labels)
        return _cross_entropy(self.scale * (logits - margins), labels)


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
        counts = _counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("shifts", counts.log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return _cross_entropy(_checked(logits, self.num_classes) + self.shifts.to(logits.dtype), labels)


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
        counts = _counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("shifts", _number("tau", tau) * (counts / counts.sum()).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return _cross_entropy(_checked(logits, self.num_classes) + self.shifts.to(logits.dtype), labels)


class VectorScaling(nn.Module):
    r"""Vector scaling, :math:`\text{CE}(z / \Delta + \tau \log \pi)` with :math:`\Delta_c = (n_{\max} / n_c)^\gamma`.

    Parameters
    ----------
    gamma
        Exponent of the multiplicative factor; 0 is :class:`LogitAdjusted`.
    tau
        Strength of the additive term; 0 is class-dependent temperatures (CDT).

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
        counts = _counts(class_counts)
        self.num_classes = len(counts)
        self.register_buffer("temperatures", (counts.max() / counts) ** _number("gamma", gamma, minimum=0))
        self.register_buffer("shifts", _number("tau", tau) * (counts / counts.sum()).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        adjusted = _checked(logits, self.num_classes) / self.temperatures.to(logits.dtype) + self.shifts.to(
            logits.dtype
        )
        return _cross_entropy(adjusted, labels)


class GCL(nn.Module):
    r"""Gaussian clouded logits, :math:`\text{CE}(s\,(z - a\,|u|\,\hat m - m\, e_y))` on cosines z.

    .. math:: \hat m_c = (\log n_{\max} - \log n_c) / (\log n_{\max} - \log n_{\min}), \qquad
              u \sim \text{clip}(N(0, 1/3^2), \pm 1) \text{ for each logit}

    Parameters
    ----------
    scale, margin, noise_mul
        s, m and a: 30, 0 and 0.5 in the released first stage; 20, 0.1, 0.5 in its second; 25, 0.1, 1 in GNM.

    Attributes
    ----------
    generator
        Where the noise comes from; assign one before training. None by default.

    Raises
    ------
    LandscapeError
        In training mode, if no generator has been assigned.

    Notes
    -----
    Source: Li et al., *Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment*, CVPR 2022, and released
    code. Differs in: 1. the noise is drawn in training mode only, there also in evaluation, where it would make two
    evaluations of the loss differ; 2. the second stage's focal factor is left out; 3. with equal counts, where the
    released code divides by zero, there is no noise.
    """

    generator: torch.Generator | None = None
    clouds: Tensor

    def __init__(
        self, class_counts: Counts, *, scale: float = 30.0, margin: float = 0.0, noise_mul: float = 0.5
    ) -> None:
        super().__init__()
        counts = _counts(class_counts)
        self.scale = _number("scale", scale, above=0)
        self.margin = _number("margin", margin)
        self.noise_mul = _number("noise_mul", noise_mul, minimum=0)
        rarity = counts.max().log() - counts.log()
        self.num_classes = len(counts)
        self.register_buffer("clouds", rarity / rarity.max() if rarity.max() > 0 else rarity)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); with noise in training mode."""
        adjusted = logits - self.margin * _is_target(_checked(logits, self.num_classes), labels)
        if self.training and self.noise_mul > 0:
            adjusted = adjusted - self.noise_mul * self._noise(logits) * self.clouds.to(logits.dtype)
        return _cross_entropy(self.scale * adjusted, labels)

    def _noise(self, logits: Tensor) -> Tensor:
        """Draw :math:`|u|` for each logit on the generator's device, (B, C)."""
        if self.generator is None:
            raise LandscapeError("gcl draws noise in training mode: assign loss.generator, or call loss.eval()")
        draw = torch.empty_like(logits, device=self.generator.device).normal_(std=1 / 3, generator=self.generator)
        return draw.clamp_(-1, 1).abs_().to(logits.device)


LOSSES: dict[str, type[nn.Module]] = {
    "ce": CrossEntropy,
    "focal": Focal,
    "ldam": LDAM,
    "balanced-softmax": BalancedSoftmax,
    "logit-adjusted": LogitAdjusted,
    "vs": VectorScaling,
    "gcl": GCL,
}
COSINE_LOSSES: frozenset[str] = frozenset({"ldam", "gcl"})  # their scales and margins are meant for cosines


def build_loss(name: str, class_counts: Counts, **options: Any) -> nn.Module:
    """Build a loss by name: a module ``(logits (B, C), labels (B,)) -> (B,)``, in training mode like every new one.

    Parameters
    ----------
    name
        A key of :data:`LOSSES`.
    class_counts
        Training examples of each class, (C,); at least 1, except where the loss does not use them (ce, focal).
    options
        Keyword arguments of the loss's class.

    Raises
    ------
    LandscapeError
        For an unknown loss or option, or a value out of range.

    Examples
    --------
    >>> build_loss("ldam", [5000, 500, 50], max_margin=0.5).margins
    tensor([0.1581, 0.2812, 0.5000], dtype=torch.float64)
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    known = [option for option in inspect.signature(LOSSES[name]).parameters if option != "class_counts"]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of loss '{name}'", option, known or ["(none)"])
    return LOSSES[name](class_counts, **options)


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
    counts = _counts(class_counts)
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


def _counts(class_counts: Counts, *, minimum: int = 1) -> Tensor:
    """Return validated class counts, (C,) float64 on the CPU."""
    counts = torch.as_tensor(class_counts).detach().to(dtype=torch.float64, device="cpu").clone()
    if counts.dim() != 1 or len(counts) == 0:
        raise LandscapeError(f"class_counts must be one number per class, got shape {tuple(counts.shape)}")
    bad = ~(counts >= minimum) | ~counts.isfinite()
    if bad.any():
        c = int(bad.nonzero()[0])
        raise LandscapeError(f"class_counts must be at least {minimum}, got {counts[c]:g} for class {c}")
    return counts


def _number(name: str, value: float, *, minimum: float = -math.inf, above: float = -math.inf) -> float:
    """Return a validated option."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= minimum and value > above):
        bound = f" above {above:g}" if above > -math.inf else f" of at least {minimum:g}" if minimum > -math.inf else ""
        raise LandscapeError(f"{name} must be a finite number{bound}, got {value}")
    return float(value)


def _checked(logits: Tensor, num_classes: int) -> Tensor:
    """Return the logits if they are (B, C); a single column would broadcast silently."""
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise LandscapeError(
            f"the loss is for {num_classes} classes: expected logits (B, {num_classes}), got {tuple(logits.shape)}"
        )
    return logits


def _is_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where a logit belongs to the label, in the type of the logits, (B, C)."""
    return (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each example, (B, C), (B,) -> (B,)."""
    return functional.cross_entropy(logits, labels, reduction="none")

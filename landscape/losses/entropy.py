"""Cross-entropy: plain, focused on what is misclassified, and with smoothed labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from landscape.class_weights import Counts, checked_counts, class_balanced_weights
from landscape.errors import LandscapeError, unknown_name
from landscape.losses.inputs import checked_logits, validated_flag, validated_number
from landscape.losses.likelihood import cross_entropy, surprises

SmoothingShape = Literal["concave", "linear", "convex", "exponential"]
Spread = Literal["all", "others"]


class CrossEntropy(nn.Module):
    r"""Softmax cross-entropy, :math:`\text{CE}(z)`."""

    def __init__(self, class_counts: Counts) -> None:
        super().__init__()
        self.num_classes = len(checked_counts(class_counts, minimum=0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        return cross_entropy(checked_logits(logits, self.num_classes), labels)


class Focal(nn.Module):
    r"""Focal loss, :math:`(1 - p_y)^\gamma\, \text{CE}(z)` with :math:`p = \text{softmax}(z)`.

    With ``weights_inside`` the class weights w of :func:`class_balanced_weights` enter the probability too:

    .. math:: (1 - p)^\gamma\, w_y \text{CE}(z), \qquad p = \exp(-w_y \text{CE}(z))

    Parameters
    ----------
    gamma
        Focusing exponent, at least 0; 1 as in the released LDAM code. 0 is cross-entropy.
    weights_inside
        False for the paper's form, whose weights :class:`Reweighting` multiplies afterwards; True for the form of the
        released LDAM code, whose results are averaged plainly over the batch. Train it through
        :meth:`Reweighting.weigh`, which then adds no weights of its own.
    beta
        Of the weights inside; see :func:`class_balanced_weights`.

    Notes
    -----
    Source: Lin et al., *Focal Loss*, ICCV 2017, eq. 4, for the softmax; Cao et al., *LDAM-DRW*, NeurIPS 2019, released
    code. The two differ in: 1. p, and therefore which examples count; 2. the mean: the weights inside are not divided
    by their sum over the batch, so they do not cancel in a batch of one class, nor in its Hessian.

    Examples
    --------
    >>> z, y = torch.zeros(1, 3), torch.tensor([2])  # p = 1/3
    >>> Focal([9, 3, 1])(z, y) / torch.tensor(3.0).log()
    tensor([0.6667])
    """

    class_weights: Tensor

    def __init__(
        self, class_counts: Counts, *, gamma: float = 1.0, weights_inside: bool = False, beta: float = 0.9999
    ) -> None:
        super().__init__()
        self.gamma = validated_number("gamma", gamma, minimum=0)
        self.weights_inside = validated_flag("weights_inside", weights_inside)
        self.num_classes = len(checked_counts(class_counts, minimum=0))
        if self.weights_inside:
            self.register_buffer("class_weights", class_balanced_weights(class_counts, beta))

    def forward(self, logits: Tensor, labels: Tensor, *, is_weighted: bool = True) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); ``is_weighted=False`` leaves out weights inside."""
        ce = cross_entropy(checked_logits(logits, self.num_classes), labels)
        if self.weights_inside and is_weighted:
            ce = self.class_weights.to(ce.dtype)[labels] * ce
        return focal_factor(ce, self.gamma) * ce


class LabelAwareSmoothing(nn.Module):
    r"""Label-aware smoothing, :math:`(1 - \varepsilon_y)\, \text{CE}(z) + \varepsilon_y\, \overline{-\log p}`.

    The factor rises with the count from :math:`\varepsilon_K` of the rarest to :math:`\varepsilon_1` of the most frequent
    class. With :math:`x_c = (n_c - n_{\min}) / (n_{\max} - n_{\min})` and :math:`d = \varepsilon_1 - \varepsilon_K`:

    .. math::
        \text{concave: } \varepsilon_K + d \sin \tfrac{\pi}{2} x_c, \quad \text{linear: } \varepsilon_K + d\, x_c, \quad
        \text{convex: } \varepsilon_1 - d \cos \tfrac{\pi}{2} x_c, \quad
        \text{exponential: } \varepsilon_K + d\, x_c^{\,\text{power}}

    Parameters
    ----------
    smooth_head, smooth_tail
        :math:`\varepsilon_1` and :math:`\varepsilon_K`, in [0, 1]. Released: CIFAR-10-LT at ratio 100, 50, 10: (0.3, 0),
        (0.2, 0), (0.1, 0); CIFAR-100-LT: (0.4, 0.1), (0.3, 0), (0.2, 0); ImageNet-LT and iNaturalist 2018: (0.3, 0);
        Places-LT: (0.4, 0.1).
    shape
        ``"concave"``, which all released settings use, ``"linear"``, ``"convex"`` or ``"exponential"``.
    power
        Exponent of ``"exponential"``, above 0; the release has no default for it.
    spread
        Whom the smoothed mass goes to: ``"all"`` classes, the mean of :math:`-\log p_c` over all of them, as released;
        or the ``"others"``, over all but the label: the usual form of the paper, whose targets are
        :math:`1 - \varepsilon_y` and :math:`\varepsilon_y / (C - 1)`.

    Notes
    -----
    Source: Zhong et al., *Improving Calibration for Long-Tailed Recognition* (MiSLAS), CVPR 2021, section 3, and
    released code. Differs from the release in: 1. with equal counts, where it divides by zero, every class has the
    factor of the most frequent one.

    Examples
    --------
    >>> LabelAwareSmoothing([5000, 500, 50]).smoothing
    tensor([0.3000, 0.0427, 0.0000], dtype=torch.float64)
    """

    smoothing: Tensor

    def __init__(
        self,
        class_counts: Counts,
        *,
        smooth_head: float = 0.3,
        smooth_tail: float = 0.0,
        shape: SmoothingShape = "concave",
        power: float | None = None,
        spread: Spread = "all",
    ) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        head = validated_number("smooth_head", smooth_head, minimum=0, maximum=1)
        tail = validated_number("smooth_tail", smooth_tail, minimum=0, maximum=1)
        if shape not in SMOOTHING_SHAPES:
            raise unknown_name("shape of the smoothing", str(shape), SMOOTHING_SHAPES)
        if spread not in get_args(Spread):
            raise unknown_name("spread of the smoothing", str(spread), get_args(Spread))
        if (power is None) is (shape == "exponential"):
            raise LandscapeError(f"power belongs to shape 'exponential' and is needed there, got {power} for '{shape}'")
        exponent = 1.0 if power is None else validated_number("power", power, above=0)
        self.spread = spread
        self.num_classes = len(counts)
        rise = SMOOTHING_SHAPES[shape](_position(counts), exponent)
        self.register_buffer("smoothing", tail + (head - tail) * rise)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,)."""
        surprise = surprises(checked_logits(logits, self.num_classes))  # (B, C)
        own = surprise.gather(1, labels[:, None])[:, 0]
        if self.spread == "all":
            rest = surprise.mean(1)
        else:
            rest = (surprise.sum(1) - own) / max(self.num_classes - 1, 1)
        smoothing = self.smoothing.to(logits.dtype)[labels]
        return (1 - smoothing) * own + smoothing * rest


SMOOTHING_SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "concave": lambda x, power: (math.pi / 2 * x).sin(),
    "linear": lambda x, power: x,
    "convex": lambda x, power: 1 - (math.pi / 2 * x).cos(),
    "exponential": lambda x, power: x**power,
}


def focal_factor(ce: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(1 - e^{-\text{ce}})^\gamma` of each example, (B,)."""
    # 1 - p without cancellation; kept off 0, where a power below 2 has no second derivative.
    return (-torch.expm1(-ce)).clamp_min(torch.finfo(ce.dtype).tiny) ** gamma


def _position(counts: Tensor) -> Tensor:
    """Return where each count lies between the smallest, 0, and the largest, 1, (C,)."""
    span = counts.max() - counts.min()
    return (counts - counts.min()) / span if span > 0 else torch.ones_like(counts)

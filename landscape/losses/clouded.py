"""Cosines under noise that grows with the rarity of the class: Gaussian clouded logits and their relatives."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from landscape.class_weights import Counts, checked_counts, rarity
from landscape.errors import LandscapeError
from landscape.losses.entropy import focal_factor
from landscape.losses.inputs import checked_logits, is_target, validated_flag, validated_number
from landscape.losses.likelihood import cross_entropy, surprises


class _Clouded(nn.Module):
    """What losses under clouds have in common: the checked counts and scale, the rarities, and the noise."""

    generator: torch.Generator | None = None
    clouds: Tensor
    name: ClassVar[str]

    def __init__(self, class_counts: Counts, scale: float) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.scale = validated_number("scale", scale, above=0)
        self.num_classes = len(counts)
        self.register_buffer("clouds", rarity(counts))

    def draw_clouds(self, logits: Tensor) -> Tensor:
        r"""Draw :math:`|u|\,\hat m` for each logit, u on the generator's device, (B, C) in [0, 1]."""
        if self.generator is None:
            raise LandscapeError(
                f"{self.name} draws noise in training mode: assign loss.generator, or call loss.eval()"
            )
        noise = torch.empty_like(logits, device=self.generator.device).normal_(std=1 / 3, generator=self.generator)
        return noise.clamp_(-1, 1).abs_().to(logits.device) * self.clouds.to(logits.dtype)


class _CloudedLogits(_Clouded):
    """Clouds and a margin on the logits themselves."""

    def __init__(self, class_counts: Counts, scale: float, margin: float, noise_mul: float) -> None:
        super().__init__(class_counts, scale)
        self.margin = validated_number("margin", margin)
        self.noise_mul = validated_number("noise_mul", noise_mul, minimum=0)

    def clouded(self, logits: Tensor, target: Tensor) -> Tensor:
        r"""Return :math:`s\,(z - a\,|u|\,\hat m - m\, e_y)`, (B, C); without noise in evaluation mode."""
        adjusted = logits - self.margin * target
        if self.training and self.noise_mul > 0:
            adjusted = adjusted - self.noise_mul * self.draw_clouds(logits)
        return self.scale * adjusted


class GCL(_CloudedLogits):
    r"""Gaussian clouded logits, :math:`\text{CE}(s\,(z - a\,|u|\,\hat m - m\, e_y))` on cosines z.

    .. math:: \hat m_c = (\log n_{\max} - \log n_c) / (\log n_{\max} - \log n_{\min}), \qquad
              u \sim \text{clip}(N(0, 1/3^2), \pm 1) \text{ for each logit}

    The second stage multiplies by :math:`(1 - p)^\gamma`, :math:`p = e^{-\text{CE}}` of the same logits, as a constant.

    Parameters
    ----------
    scale, margin, noise_mul, gamma
        s, m, a and :math:`\gamma`: 30, 0, 0.5, 0 in the released first stage, the defaults; 20, 0.1, 0.5, 1 in its
        second; 25, 0.1, 1, 0 in GNM-PT.
    detach
        Whether training takes the focal factor as a constant, as released; False differentiates it.

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
    evaluations of the loss differ; 2. with equal counts, where the released code divides by zero, there is no noise;
    3. class weights multiply afterwards (:class:`Reweighting`); there they would enter p, but the second stage has none.

    With :math:`\gamma > 0` and ``detach`` the gradient of training, :math:`(1 - p)^\gamma \nabla \text{CE}`, is not that
    of the value. It is that of :math:`F(\text{CE})`, :math:`F(\ell) = \int_0^\ell (1 - e^{-t})^\gamma\, dt`; for
    :math:`\gamma = 1`, :math:`\text{CE} - (1 - p)`. A Hessian-vector product through the constant would be
    :math:`(1 - p)^\gamma \nabla^2 \text{CE}`, the derivative of neither gradient. So in evaluation mode, where losses are
    analysed, the factor is differentiated: value, gradient and Hessian belong to one function, the value. Its
    stationary points are not those of the training.

    Examples
    --------
    >>> second_stage = GCL([5000, 500, 50], scale=20, margin=0.1, gamma=1).eval()
    >>> second_stage(torch.tensor([[0.2, 0.1, 0.4]]), torch.tensor([2]))
    tensor([0.0190])
    """

    name = "gcl"

    def __init__(
        self,
        class_counts: Counts,
        *,
        scale: float = 30.0,
        margin: float = 0.0,
        noise_mul: float = 0.5,
        gamma: float = 0.0,
        detach: bool = True,
    ) -> None:
        super().__init__(class_counts, scale, margin, noise_mul)
        self.gamma = validated_number("gamma", gamma, minimum=0)
        self.detach = validated_flag("detach", detach)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); with noise in training mode."""
        clouded = self.clouded(logits, is_target(checked_logits(logits, self.num_classes), labels))
        return _focused(cross_entropy(clouded, labels), self.gamma, detach=self.training and self.detach)


class AngularGCL(_Clouded):
    r"""Gaussian clouds on angles: :math:`\text{CE}(s \cos(\theta + \delta))`, :math:`\theta = \arccos z` of cosines z.

    .. math:: \delta = \tfrac{\pi}{2} \epsilon\, |u|\, \hat m + m\, e_y

    with the noise u and the rarities :math:`\hat m` of :class:`GCL`. Where :math:`\theta + \delta` would pass
    :math:`\pi` the cosine is :math:`z - \sin \delta` instead; with ``easy_margin`` it stays z where
    :math:`\theta \ge \pi/2`. The loss jumps at either border.

    Parameters
    ----------
    scale, margin, epsilon, gamma
        s, m in radians, :math:`\epsilon` and the focal exponent: 30, 0.5, 0.1 and 0 in the released class. Its forerunner,
        the angular noise loss, was run with m = 0, :math:`\epsilon = 0.5` and ``easy_margin``.
    easy_margin
        See above.
    detach
        As in :class:`GCL`.

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
    Source: Li et al., *Adjusting Logit in Gaussian Form for Long-Tailed Visual Recognition*, IEEE Transactions on
    Artificial Intelligence 2024, and released code (``GCLAngLoss``). Differs in the points of :class:`GCL`, and in:
    4. the sine is kept off 0 by the rounding unit, where its derivative is infinite.
    """

    name = "gcl-angular"

    def __init__(
        self,
        class_counts: Counts,
        *,
        scale: float = 30.0,
        margin: float = 0.5,
        epsilon: float = 0.1,
        easy_margin: bool = False,
        gamma: float = 0.0,
        detach: bool = True,
    ) -> None:
        super().__init__(class_counts, scale)
        self.margin = validated_number("margin", margin, minimum=0)
        self.epsilon = validated_number("epsilon", epsilon, minimum=0)
        self.easy_margin = validated_flag("easy_margin", easy_margin)
        self.gamma = validated_number("gamma", gamma, minimum=0)
        self.detach = validated_flag("detach", detach)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); with noise in training mode."""
        turn = self.margin * is_target(checked_logits(logits, self.num_classes), labels)
        if self.training and self.epsilon > 0:
            turn = turn + math.pi / 2 * self.epsilon * self.draw_clouds(logits)
        sine = (1 - logits**2).clamp_min(torch.finfo(logits.dtype).eps ** 2).sqrt()
        turned = logits * turn.cos() - sine * turn.sin()
        if self.easy_margin:
            adjusted = torch.where(logits > 0, turned, logits)
        else:
            adjusted = torch.where(logits > -turn.cos(), turned, logits - turn.sin())
        return _focused(cross_entropy(self.scale * adjusted, labels), self.gamma, detach=self.training and self.detach)


class AsymmetricGCL(_CloudedLogits):
    r"""Asymmetric GCL: smoothed cross-entropy of clouded logits, with a focal exponent each for label and others.

    .. math:: -\sum_c t_c\, f_c \log p_c, \qquad f_y = (1 - p_y)^{\gamma_+}, \quad f_c = p_c^{\gamma_-}, \qquad
              p = \text{softmax}(s\,(z - a\,|u|\,\hat m - m\, e_y))

    with targets t of :math:`1 - \eta + \eta / C` at the label and :math:`\eta / C` elsewhere; cosines z, noise u and
    rarities :math:`\hat m` as in :class:`GCL`.

    Parameters
    ----------
    scale, margin, noise_mul
        s, m and a; 20, 0.1 and 0.5 as released.
    gamma_pos, gamma_neg
        :math:`\gamma_+` and :math:`\gamma_-`: 0 and 4 on the class-balanced branch of LPT, the defaults; 0.5 and 8 on its
        instance-balanced branch.
    smoothing
        :math:`\eta` in [0, 1], 0.1 as released; 0 leaves :math:`-f_y \log p_y`, in which :math:`\gamma_-` has no part.

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
    Source: Dong et al., *LPT: Long-tailed Prompt Tuning*, ICLR 2023, and released code. The factors are differentiated,
    as there. Differs in points 1 and 2 of :class:`GCL`. LPT adds the two branches' losses and prompt similarities:
    :math:`L_b - \frac12 \text{sim}_b + \frac12 (1 - t / T) (L_i - \frac12 \text{sim}_i)` in epoch t of T.

    Examples
    --------
    >>> AsymmetricGCL([9, 1], gamma_neg=0, smoothing=0, margin=0).eval()(torch.tensor([[0.0, 0.1]]), torch.tensor([1]))
    tensor([0.1269])
    """

    name = "asymmetric-gcl"

    def __init__(
        self,
        class_counts: Counts,
        *,
        scale: float = 20.0,
        margin: float = 0.1,
        noise_mul: float = 0.5,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__(class_counts, scale, margin, noise_mul)
        self.gamma_pos = validated_number("gamma_pos", gamma_pos, minimum=0)
        self.gamma_neg = validated_number("gamma_neg", gamma_neg, minimum=0)
        self.smoothing = validated_number("smoothing", smoothing, minimum=0, maximum=1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); with noise in training mode."""
        target = is_target(checked_logits(logits, self.num_classes), labels)
        surprise = surprises(self.clouded(logits, target))  # (B, C), -log p
        own = surprise.gather(1, labels[:, None])[:, 0]
        of_label = focal_factor(own, self.gamma_pos) * own
        spread = (self.smoothing / self.num_classes) * (1 - target) * torch.exp(-self.gamma_neg * surprise) * surprise
        return (1 - self.smoothing + self.smoothing / self.num_classes) * of_label + spread.sum(1)


def _focused(ce: Tensor, gamma: float, *, detach: bool) -> Tensor:
    """Return the focal factor times the cross-entropy of each example, (B,)."""
    return ce if gamma == 0 else focal_factor(ce.detach() if detach else ce, gamma) * ce

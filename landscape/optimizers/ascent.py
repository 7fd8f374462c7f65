"""Methods without classes: plain gradient descent, SAM, ASAM and the penalty on the gradient's norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from landscape.directions import TINY, adaptive_ascent, gradient_ascent, tree_norm
from landscape.optimizers.radius import Schedule, check_schedule, radius_at, schedule_needs
from landscape.optimizers.terms import Batch, Term, check_choice, check_option


@dataclass(frozen=True)
class SGD:
    r"""The base optimizer itself: one term, :math:`\epsilon = 0`. One forward and one backward pass."""

    name: ClassVar[str] = "sgd"
    needs: ClassVar[frozenset[str]] = frozenset()

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at theta."""
        return [Term()]


@dataclass(frozen=True)
class SAM:
    r"""Sharpness-aware minimisation: the gradient at the worst point of a ball, to first order.

    .. math:: \epsilon = \rho\, g / \|g\|_2, \qquad \text{step} = g(\theta + \epsilon)

    with the norm over all parameters jointly. Two forward and two backward passes.

    Parameters
    ----------
    rho
        Radius of the ball. For long-tailed CIFAR-10/100, Rangwani et al. (Saddle-LongTail, NeurIPS 2022) release 0.1
        / 0.2 with cross-entropy and 0.5 / 0.8 with deferred re-weighting; 0.05 is the default of the original paper.
    schedule, rho_steps, rho_epochs, rho_range
        How rho follows the epoch: ``"constant"``, ``"step"``, ``"linear"`` or ``"linear-released"``, see
        :func:`landscape.optimizers.radius.radius_at`. The steps are the release's for CIFAR.

    Notes
    -----
    Source: Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR
    2021, algorithm 1.

    1. Differs from the paper: the whole batch has one perturbation, not one per accelerator.
    2. Differs from most released code: weights are restored from clones, not by subtracting :math:`\epsilon`.
    """

    rho: float = 0.05
    schedule: Schedule = "constant"
    rho_steps: tuple[float, ...] = (0.05, 0.1, 0.5, 0.6)
    rho_epochs: tuple[float, ...] = (5, 160, 180)
    rho_range: tuple[float, ...] = (0.05, 0.8)
    name: ClassVar[str] = "sam"

    def __post_init__(self) -> None:
        check_schedule(self)

    @property
    def needs(self) -> frozenset[str]:
        """The epoch, where the radius follows it."""
        return schedule_needs(self)

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at the end of the ascent step."""
        rho = radius_at(self, batch.epoch, batch.num_epochs)
        (gradient,) = batch.gradients(None)
        return [Term(perturbation=gradient_ascent(gradient, rho))]


@dataclass(frozen=True)
class ASAM:
    r"""Adaptive SAM: the ball is stretched by the weights, so rescaling a layer does not change the perturbation.

    .. math:: \epsilon = \rho\, T_w^2 g / \|T_w g\|_2, \qquad T_w = |w| + \eta

    Two forward and two backward passes.

    Parameters
    ----------
    rho
        Radius in stretched units; 0.5 is the authors' choice for CIFAR-10 (1.0 for CIFAR-100).
    eta
        Offset of the stretch; by default 0.01 in the official variant and 0 in the other, as released.
    variant
        ``"official"``: only parameters with "weight" in their name are stretched (T = 1 otherwise), so it needs the
        model or named parameters. ``"all-parameters"``: all are, the ``adaptive=True`` option of a widely used code.

    Notes
    -----
    Source: Kwon et al., *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning*, ICML 2021, eq. 8.

    1. Differs from the paper: its eq. 8 has no eta; the offset is the release's.
    2. Differs from the release: weights are restored from clones, and the norm's guard is 1e-12, not 1e-16.
    """

    rho: float = 0.5
    eta: float | None = None
    variant: Literal["official", "all-parameters"] = "official"
    name: ClassVar[str] = "asam"

    def __post_init__(self) -> None:
        check_option(self, "rho", self.rho)
        check_choice(self, "variant", self.variant, ("official", "all-parameters"))
        if self.eta is not None:
            check_option(self, "eta", self.eta)

    @property
    def needs(self) -> frozenset[str]:
        """The official variant decides by the parameters' names."""
        return frozenset({"names"}) if self.variant == "official" else frozenset()

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at the end of the stretched ascent step."""
        is_official = self.variant == "official"
        eta = self.eta if self.eta is not None else (0.01 if is_official else 0.0)
        is_scaled = ["weight" in name for name in batch.names] if is_official else None
        (gradient,) = batch.gradients(None)
        step = adaptive_ascent(gradient, batch.params, self.rho, eta=eta, is_scaled=is_scaled)
        return [Term(perturbation=step)]


@dataclass(frozen=True)
class GNP:
    r"""Penalty on the norm of the gradient: part of SAM's gradient, part of the plain one.

    .. math::

        \nabla \big(L + \lambda \|\nabla L\|_2\big)
        \approx (1 - \alpha)\, g(\theta) + \alpha\, g(\theta + r\, g / \|g\|_2), \qquad \alpha = \lambda / r

    Two forward and two backward passes; SAM with radius r is alpha = 1.

    Parameters
    ----------
    r
        Length of the step from which the Hessian's product with the gradient is taken; 0.1 as released for ResNet-50
        on CIFAR.
    alpha
        Share of the gradient at its end; 0.8 as released there. Beyond 1 it extrapolates.
    variant
        ``"paper"``: the formula above. ``"released"``: the default of the release, which mixes in the normalised clean
        gradient, :math:`(1 - \alpha)\, g / \|g\|_2 + \alpha\, g'`.

    Notes
    -----
    Source: Zhao et al., *Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning*, ICML 2022,
    algorithm 1, and its released code. Differs from the release in:

    1. The default of ``variant``.
    2. There the L2 penalty is part of the loss, hence of both gradients; here weight decay belongs to the base optimizer.
    3. There the perturbation is one per accelerator unless synchronised; here the whole batch has one.
    4. There the gradient is clipped to norm 5 before a Nesterov step; both are the base optimizer's business.
    """

    r: float = 0.1
    alpha: float = 0.8
    variant: Literal["paper", "released"] = "paper"
    name: ClassVar[str] = "gnp"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_option(self, "r", self.r)
        check_option(self, "alpha", self.alpha)
        check_choice(self, "variant", self.variant, ("paper", "released"))

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at theta and at the end of the ascent step."""
        (gradient,) = batch.gradients(None)
        moved = Term(perturbation=gradient_ascent(gradient, self.r), scale=self.alpha)
        if self.alpha == 1:
            return [moved]
        clean = 1 - self.alpha
        return [Term(scale=clean if self.variant == "paper" else clean / (tree_norm(gradient) + TINY)), moved]

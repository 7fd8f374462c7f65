"""Methods that weigh flatness by class: Focal-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from landscape.directions import gradient_ascent
from landscape.optimizers.radius import Schedule, check_schedule, radius_at, schedule_needs
from landscape.optimizers.terms import Batch, Term, check_option


@dataclass(frozen=True)
class FocalSAM:
    r"""Focal-SAM: the rarer a class, the larger the part of its loss that is made flat.

    .. math::

        \text{step} = \nabla \tfrac1B \sum_i (1 - c_{y_i})\, \ell_i(\theta)
        + \nabla \tfrac1B \sum_i c_{y_i}\, \ell_i(\theta + \epsilon), \qquad
        \epsilon = \rho \frac{\nabla \sum_i c_{y_i} \ell_i}{\|\nabla \sum_i c_{y_i} \ell_i\|_2}, \qquad
        c_j = \lambda\, (1 - \pi_j)^\gamma

    with pi the class frequencies of the training data. Two forward and three backward passes.

    Parameters
    ----------
    rho
        Radius of the ball.
    gamma, lam
        Focusing parameter and factor lambda of the weights c. Beyond 1, lambda takes the plain loss of rare classes with
        a negative weight, as in the published setting for iNaturalist.
    schedule, rho_steps, rho_epochs, rho_range
        How rho follows the epoch, see :func:`landscape.optimizers.radius.radius_at`. ``schedule="step"`` is the published
        schedule for ImageNet-LT, 0.1 and then 0.2 in the last fifth of the epochs.

    Notes
    -----
    Source: Li et al., *Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification*, ICML 2025, and its
    released code, whose setting for CIFAR-10-LT is the default. The others, (rho, gamma, lambda): CIFAR-100-LT (0.3, 3.2,
    0.8); ImageNet-LT (step, 0.8, 0.8); iNaturalist 2018 (0.2, 2.0, 1.1); with a CLIP ViT-B/16, CIFAR-10-LT (0.05, 1.5, 0.7),
    CIFAR-100-LT (0.05, 5.5, 0.8), ImageNet-LT (0.05, 0.5, 0.8), iNaturalist (0.02, 0.2, 1.0). Weight decay there: 2e-4, 1e-3,
    5e-4, 2e-4, and 5e-4 with CLIP.

    1. Differs from the release: its ImageNet-LT schedule tests e < 0.8 E with e from 1, so the larger radius starts one
       epoch before the last fifth; ``rho_epochs=(159,)`` does so for its 200 epochs.
    """

    rho: float = 0.2
    gamma: float = 3.0
    lam: float = 0.5
    schedule: Schedule = "constant"
    rho_steps: tuple[float, ...] = (0.1, 0.2)
    rho_epochs: tuple[float, ...] = (0.8,)
    rho_range: tuple[float, ...] = (0.05, 0.8)
    name: ClassVar[str] = "focal-sam"

    def __post_init__(self) -> None:
        check_schedule(self)
        check_option(self, "gamma", self.gamma)
        check_option(self, "lam", self.lam)

    @property
    def needs(self) -> frozenset[str]:
        """The labels and class counts, and the epoch where the radius follows it."""
        return frozenset({"labels", "class_counts"}) | schedule_needs(self)

    def class_weights(self, class_counts: Tensor) -> Tensor:
        r"""Return c, (C,) float64: :math:`\lambda (1 - n_j / N)^\gamma`."""
        counts = class_counts.double()
        return self.lam * (1 - counts / counts.sum()) ** self.gamma

    def terms(self, batch: Batch) -> list[Term]:
        """Return the weighted loss at theta, and its complement at the end of its ascent step."""
        assert batch.labels is not None
        assert batch.task.class_counts is not None
        weights = self.class_weights(batch.task.class_counts)[batch.labels]
        plain, flat = (1 - weights).to(batch.dtype), weights.to(batch.dtype)
        rho = radius_at(self, batch.epoch, batch.num_epochs)
        (gradient,) = batch.gradients(flat, here=[plain])
        return [Term(plain), Term(flat, gradient_ascent(gradient, rho))]

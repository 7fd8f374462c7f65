"""Methods that treat the losses of head and tail classes apart: ImbSAM and SSE-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from landscape.directions import gradient_ascent
from landscape.optimizers.terms import Batch, Term, check_option

# 0.7 * 10 and the like must not miss the epoch they name by a rounding error of the product.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ImbSAM:
    r"""Imbalanced SAM: only the loss of the tail classes is made flat.

    .. math:: \text{step} = g_H(\theta) + w\, g_T(\theta + \rho\, g_T / \|g_T\|_2), \qquad
              L_T = \tfrac1B \sum_{i:\, n_{y_i} < \eta} \ell_i

    Both losses are divided by the batch size, so a batch without tail examples is a plain step on the head's loss. All
    parameters are perturbed. Two forward and three backward passes.

    Parameters
    ----------
    rho
        Radius of the ball.
    eta
        Classes with fewer training examples are tail classes, unless ``tail_classes`` is passed to ``build_optimizer``.
    tail_weight
        Factor w of the tail's gradient: 1 in the paper's objective, 2 in the released code since September 2023. It
        does not change the perturbation.

    Notes
    -----
    Source: Zhou et al., *ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition*,
    ICCV 2023. Does not differ from the paper's objective.

    1. Differs from the release: ``tail_weight`` is 1 by default.
    2. Differs from the release: weights are restored from clones, not by subtracting the perturbation.
    """

    rho: float = 0.05
    eta: float = 20
    tail_weight: float = 1.0
    name: ClassVar[str] = "imbsam"
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "tail_classes"})

    def __post_init__(self) -> None:
        check_option(self, "rho", self.rho)
        check_option(self, "eta", self.eta)
        check_option(self, "tail_weight", self.tail_weight)

    def terms(self, batch: Batch) -> list[Term]:
        """Return the head's loss at theta and the tail's at the end of its ascent step."""
        is_tail = batch.is_tail()
        head, tail = ~is_tail, is_tail.to(batch.dtype) * self.tail_weight
        (gradient,) = batch.gradients(tail, here=[head])
        return [Term(head), Term(tail, gradient_ascent(gradient, self.rho))]


@dataclass(frozen=True)
class SSESAM:
    r"""Stage-wise saddle escaping SAM: head and tail are made flat apart; after the switch, the tail only.

    .. math:: \text{step} = g_H(\theta + \rho_H\, g_H / \|g_H\|_2) + g_T(\theta + \rho_T\, g_T / \|g_T\|_2), \qquad
              \rho_H \leftarrow 0 \text{ once } \mathrm{epoch} \ge \gamma\, \mathrm{num\_epochs}

    with epochs from 0. Three forward and four backward passes, two and three after the switch.

    Parameters
    ----------
    rho_head, rho_tail
        Radii of the two balls.
    gamma
        Share of the training after which the head is no longer perturbed: 0 from the start (ImbSAM), 1 never.
        In between, :meth:`NeighbourhoodOptimizer.start_epoch` must be called.
    eta
        Classes with fewer training examples are tail classes, unless ``tail_classes`` is passed to ``build_optimizer``.

    Notes
    -----
    Source: Lyu et al., *SSE-SAM: Balancing Head and Tail Classes Gradually through Stage-Wise SAM*, AAAI 2025, and its
    released code, which the rule follows and whose settings for CIFAR-LT are the defaults. Differs from it in:

    1. Three forward passes instead of four, because head and tail share the one at theta. With
       ``bn_statistics="every-pass"`` running statistics are therefore updated three times, not four.
    2. No pass is spent on perturbing the head after the switch, where the release still takes four and four with a radius
       of zero: the gradients are the same. The switch is where the release's is: it counts the epochs that are done and
       sets the radius to zero after the first with count >= gamma num_epochs (140 of 200: from epoch 140 on, from 0).
    3. Weights are restored from clones, not by subtracting the perturbation.
    """

    rho_head: float = 0.05
    rho_tail: float = 0.10
    gamma: float = 0.70
    eta: float = 100
    name: ClassVar[str] = "ssesam"

    def __post_init__(self) -> None:
        check_option(self, "rho_head", self.rho_head)
        check_option(self, "rho_tail", self.rho_tail)
        check_option(self, "gamma", self.gamma, maximum=1.0)
        check_option(self, "eta", self.eta)

    @property
    def needs(self) -> frozenset[str]:
        """The length of the training matters only if there is a switch in it."""
        always = frozenset({"labels", "tail_classes"})
        return always | {"num_epochs"} if 0 < self.gamma < 1 else always

    def terms(self, batch: Batch) -> list[Term]:
        """Return the head's and the tail's loss, each at the end of its own ascent step."""
        tail = batch.is_tail()
        head = ~tail
        if self._has_switched(batch) or self.rho_head == 0:
            (g_tail,) = batch.gradients(tail, here=[head])
            return [Term(head), Term(tail, gradient_ascent(g_tail, self.rho_tail))]
        g_head, g_tail = batch.gradients(head, tail)
        return [
            Term(head, gradient_ascent(g_head, self.rho_head)),
            Term(tail, gradient_ascent(g_tail, self.rho_tail)),
        ]

    def _has_switched(self, batch: Batch) -> bool:
        if self.gamma in (0, 1):
            return self.gamma == 0
        assert batch.num_epochs is not None
        return batch.epoch >= self.gamma * batch.num_epochs - ROUNDING

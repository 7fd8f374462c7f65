"""Methods that average the weights of several epochs: stochastic weight averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from landscape.errors import LandscapeError
from landscape.optimizers.companions import Batches
from landscape.optimizers.terms import Batch, Term, check_choice, check_option


@dataclass(frozen=True)
class SWA:
    r"""Stochastic weight averaging: plain descent at a high learning rate, and the running mean of its last weights.

    .. math:: \theta_{\text{SWA}} \leftarrow \frac{n\, \theta_{\text{SWA}} + \theta_e}{n + 1}
              \quad \text{after each epoch } e \ge e_0

    The network that is evaluated and saved has the mean weights, with BatchNorm statistics from one pass over the
    training data. One forward and one backward pass per step.

    Parameters
    ----------
    start
        The first epoch e0 whose weights count: from 1 on, the number of the epoch counted from 1 (the release's
        ``swa_start``, 161 of 200 or 300 epochs, 126 of 225); below 1, the share of the epochs before it, so that 0.8 of 200
        is 161.
    swa_lr
        Learning rate while averaging: 0.05, or 0.01 for VGG-16 and for PreResNets on CIFAR-10, as released.
    schedule
        ``"own"``: the training's learning rate lr until half of e0 epochs, then linearly to ``swa_lr`` at 0.9 of them, see
        :meth:`learning_rate`. ``"given"``: the training's own schedule throughout.

    Notes
    -----
    Source: Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, UAI 2018, algorithm 1 with
    a constant rate, and its released code. The averages are torch's (``torch.optim.swa_utils``). Differs from the release
    in:

    1. BatchNorm statistics are the plain mean over batches, also of a smaller last one (torch's ``update_bn``); there
       batches count by their size.
    """

    start: float = 0.8
    swa_lr: float = 0.05
    schedule: Literal["own", "given"] = "own"
    name: ClassVar[str] = "swa"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_option(self, "start", self.start)
        check_option(self, "swa_lr", self.swa_lr)
        check_choice(self, "schedule", self.schedule, ("own", "given"))

    def first_epoch(self, num_epochs: int) -> int:
        """Return the first epoch whose weights count, from 1.

        Raises
        ------
        LandscapeError
            If the training ends before it.

        Examples
        --------
        >>> SWA(start=0.8).first_epoch(200), SWA(start=161).first_epoch(300)
        (161, 161)
        """
        if self.start < 1:
            # 0.7 * 10 is 7.000000000000001 or so; the last epoch counts in any case
            return min(math.ceil(round(self.start * num_epochs, 9)) + 1, num_epochs)
        if self.start > num_epochs:
            raise LandscapeError(
                f"swa: start={self.start:g} is after the last of {num_epochs} epochs, so nothing would be averaged: "
                "lower it, or give a share of the epochs such as 0.8"
            )
        return math.ceil(self.start)

    def learning_rate(self, epoch: int, num_epochs: int, *, lr: float) -> float:
        r"""Return the learning rate of an epoch, counted from 0.

        .. math::

            t = e / e_0, \qquad
            \eta(e) = \begin{cases} \eta & t \le 0.5 \\ \eta + (\eta_{\text{SWA}} - \eta)(t - 0.5) / 0.4 & t \le 0.9 \\
            \eta_{\text{SWA}} & \text{else} \end{cases}

        Examples
        --------
        >>> [round(SWA().learning_rate(epoch, 200, lr=0.1), 4) for epoch in (0, 80, 112, 145, 199)]
        [0.1, 0.1, 0.0755, 0.05, 0.05]
        """
        t = epoch / self.first_epoch(num_epochs)
        if t <= 0.5:
            return lr
        return lr + (self.swa_lr - lr) * (t - 0.5) / 0.4 if t <= 0.9 else self.swa_lr

    def companion(self, model: nn.Module) -> WeightAverage:
        """Return the average that goes with the steps."""
        return WeightAverage(self, model)

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at theta."""
        return [Term()]


class WeightAverage:
    """The mean of the network's weights at the ends of epochs; see :class:`landscape.optimizers.Companion`.

    Parameters
    ----------
    rule
        Says when to average.
    model
        The network that is trained; it is copied once.
    """

    def __init__(self, rule: SWA, model: nn.Module) -> None:
        self.rule = rule
        self.model = model
        self.average = AveragedModel(model)

    def learning_rate(self, scheduled: float, *, epoch: int, num_epochs: int, lr: float) -> float:
        """Return the method's own learning rate, or the training's if the rule says so."""
        return scheduled if self.rule.schedule == "given" else self.rule.learning_rate(epoch, num_epochs, lr=lr)

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Add the weights to the mean, from the rule's first epoch on."""
        if epoch + 1 >= self.rule.first_epoch(num_epochs):
            self.average.update_parameters(self.model)

    def export(self, batches: Batches) -> nn.Module:
        """Return the network with the mean weights and recomputed statistics; before the first mean, the trained one."""
        if int(self.average.n_averaged) == 0:
            return self.model
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.average.modules()):
            update_bn(batches(), self.average)
        network: nn.Module = self.average.module
        return network

    def state_dict(self) -> dict[str, Any]:
        """Return the mean weights and their number."""
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.average.load_state_dict(state["average"])

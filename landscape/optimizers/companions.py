"""What a method does around its steps: the network before training, after each epoch, and the one that is evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

from torch import Tensor, nn

from landscape.optimizers.terms import Rule

Batches = Callable[[], Iterable[Any]]

# Networks whose method was asked what it does outside the steps, while they live.
_ACCOMPANIED: WeakSet[nn.Module] = WeakSet()


class Companion(Protocol):
    """A method's part outside the steps. A training loop calls all of it for every method; most do nothing.

    It is made by :func:`accompany` before the optimizer is built, because it may replace the network's parameters.
    """

    def learning_rate(self, scheduled: float, *, epoch: int, num_epochs: int, lr: float) -> float:
        """Return the learning rate of an epoch (from 0): the training's own, ``scheduled``, or the method's.

        ``lr`` is the base rate, before any schedule.
        """

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Take note of the weights at the end of an epoch (from 0)."""

    def export(self, batches: Batches) -> nn.Module:
        """Return the network to evaluate and to save, with plain parameters; the trained one is left as it is.

        ``batches()`` gives one pass over the training data, of tensors or tuples that begin with the inputs; only what
        recomputes statistics asks for it. The network may be the trained one itself, and its mode is the caller's choice.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs besides the states of the network and of the optimizer."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""


class Bystander:
    """The companion of methods that consist of their steps."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def learning_rate(self, scheduled: float, *, epoch: int, num_epochs: int, lr: float) -> float:
        """Return the training's own learning rate."""
        return scheduled

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Do nothing."""

    def export(self, batches: Batches) -> nn.Module:
        """Return the trained network itself."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load nothing."""


def accompany(rule: Rule, model: nn.Module) -> Companion:
    """Return what a method does outside its steps, and let it prepare the network.

    Call it before the optimizer is built and before a saved state is loaded into the network.

    Parameters
    ----------
    rule
        A rule of ``OPTIMIZERS``. One that acts outside its steps has a method ``companion(model)``.
    model
        The network, on its device; ``spectral-norm`` registers parametrizations on it.

    Returns
    -------
    Companion
        Call its ``learning_rate`` before each epoch, ``end_epoch`` after it, and ``export`` before an evaluation or a
        checkpoint.

    Examples
    --------
    >>> import torch
    >>> from landscape.optimizers import SWA, build_optimizer
    >>> model = torch.nn.Linear(2, 3)
    >>> companion = accompany(SWA(start=1, swa_lr=0.05), model)
    >>> optimizer = build_optimizer("swa", model.parameters(), base_options={"lr": 0.1}, model=model)
    >>> for epoch in range(2):
    ...     lr = companion.learning_rate(0.1, epoch=epoch, num_epochs=2, lr=0.1)
    ...     with torch.no_grad():
    ...         _ = model.bias.fill_(epoch)  # stands for the steps
    ...     companion.end_epoch(epoch, 2)
    >>> companion.export(lambda: []).bias
    Parameter containing:
    tensor([0.5000, 0.5000, 0.5000], requires_grad=True)
    """
    make = getattr(rule, "companion", None)
    companion: Companion = Bystander(model) if make is None else make(model)
    _ACCOMPANIED.add(model)
    return companion


def warn_if_alone(rule: Rule, params: Sequence[Tensor]) -> None:
    """Warn where a rule that acts outside its steps is about to make them without :func:`accompany`."""
    if not hasattr(rule, "companion"):
        return
    own = {id(p) for p in params}
    if not any(id(p) in own for model in _ACCOMPANIED for p in model.parameters()):
        warnings.warn(
            f"{rule.name}: its steps alone are plain descent, and the network has no companion: companion = accompany(rule, model) "
            "before the optimizer is built, then companion.learning_rate and end_epoch in every epoch, and companion.export for "
            "the network to evaluate (landscape.optimizers.accompany)",
            stacklevel=4,
        )

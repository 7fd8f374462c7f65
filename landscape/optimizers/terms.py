r"""What a method is made of: terms of the step, and the batch that evaluates their gradients.

Every method of this package computes

.. math:: \text{step} = \sum_t \nabla_\theta \Big[\tfrac1B \sum_i w_t(i)\, \ell_i\Big](\theta + \epsilon_t)

so a method is a *rule*: a small frozen dataclass that looks at the batch and returns its terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError

Closure = Callable[[], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
Gradient = list[Tensor | None]  # one entry per trainable parameter; None where the losses do not depend on it


@dataclass(frozen=True)
class Term:
    """One gradient of the step.

    Attributes
    ----------
    weights
        Weight of each example, (B,), bool or floating; None means 1 for all.
    perturbation
        One tensor per trainable parameter, added to the weights for this term; None means at theta itself.
    losses
        Losses (B,) to differentiate instead of the closure's, attached to the graph of the pass at theta.
    gradient
        A finished gradient, one entry per trainable parameter: it costs no pass. Leave None where the losses do not
        depend on the parameter (:meth:`Batch.is_used`), so that weight decay leaves it alone.
    scale
        Factor of this term's gradient, a number or a scalar tensor. Two terms with the same weights and other scales
        share their gradient at theta.
    """

    weights: Tensor | None = None
    perturbation: Sequence[Tensor] | None = None
    losses: Tensor | None = None
    gradient: Gradient | None = None
    scale: float | Tensor = 1.0


@dataclass(frozen=True)
class Task:
    """What a rule may know about the task besides the batch; None where the user did not say."""

    model: nn.Module | None = None
    criterion: Criterion | None = None
    head: nn.Module | None = None
    class_counts: Tensor | None = None  # (C,)
    tail_classes: Tensor | None = None  # (number of tail classes,)


class Rule(Protocol):
    """A method: its options (dataclass fields), what it needs, and the terms of one step."""

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """What it cannot do without.

        Out of labels, names, tail_classes, class_counts, head, criterion, num_epochs, generator.
        """

    def terms(self, batch: Batch) -> list[Term]:
        """Return the terms of the step; called without gradient tracking."""


class Batch:
    """One mini-batch during one step: a forward pass at theta that all gradients at theta share, and perturbed passes.

    Rules use :attr:`params`, :attr:`names`, :attr:`labels`, :meth:`losses`, :meth:`gradient`, :meth:`at` and the
    schedule; the engine the rest.

    Attributes
    ----------
    memory
        Tensors by name that a rule keeps from step to step; saved with the optimizer's state. A rule replaces entries
        and does not change the tensors in place, so that a step that fails leaves the memory as it was.
    shift
        One tensor per trainable parameter that stays in the weights: the base step starts from theta plus shift.
    """

    def __init__(
        self,
        closure: Closure,
        params: list[Tensor],
        labels: Tensor | None,
        *,
        names: Sequence[str] = (),
        task: Task,
        epoch: int,
        num_epochs: int | None,
        generator: torch.Generator,
        keep_first_buffers: bool = False,
    ) -> None:
        self.params = params
        self.labels = labels
        self.names = names
        self.task = task
        self.epoch = epoch
        self.num_epochs = num_epochs
        self.generator = generator
        self.num_forwards = 0
        self.num_backwards = 0
        self.first_loss: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self.shift: Sequence[Tensor] | None = None
        self._closure = closure
        self._losses: Tensor | None = None
        self._gradients: dict[int, tuple[Tensor | None, Gradient]] = {}
        self._originals: list[Tensor] | None = None
        self._buffers = list(task.model.buffers()) if keep_first_buffers and task.model is not None else []
        self._first_buffers: list[Tensor] = []

    # What rules use.

    def losses(self) -> Tensor:
        """Return the per-example losses at theta with their graph, (B,); the first call runs the forward pass."""
        if self._losses is None:
            self._losses = self._forward()
        return self._losses

    def gradient(self, weights: Tensor | None = None) -> list[Tensor]:
        """Return the gradient at theta of the mean of ``weights * losses``, zero where a parameter is not used.

        Cached by the identity of ``weights``: hand the same tensor object to this method and to a term.
        """
        raw = self._at_theta(weights, retain_graph=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, raw)]

    def is_used(self) -> list[bool]:
        """Return which trainable parameters the losses at theta depend on."""
        return [g is not None for g in self._at_theta(None, retain_graph=True)]

    def at(self, perturbation: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, Gradient]:
        """Return the losses (B,), detached, and the gradient of the mean of ``weights * losses`` at theta + perturbation.

        For rules whose terms depend on losses elsewhere. It invalidates the graph of :meth:`losses`.
        """
        if self._originals is None:
            self._originals = [p.detach().clone() for p in self.params]
        try:
            torch._foreach_add_(self.params, list(perturbation))
            losses = self._forward()
            return losses.detach(), self._backward(losses, weights, retain_graph=False)
        finally:
            # From the clones: subtracting the perturbation again would leave its round-off in the weights.
            torch._foreach_copy_(self.params, self._originals)

    def is_tail(self) -> Tensor:
        """Return which examples belong to a tail class, (B,) bool."""
        assert self.labels is not None
        assert self.task.tail_classes is not None
        return (self.labels.unsqueeze(1) == self.task.tail_classes).any(dim=1)

    # What the engine uses.

    def total(self, terms: Sequence[Term]) -> Gradient:
        """Return the sum of the terms' gradients; those at theta first, because perturbing invalidates their graph."""
        total: Gradient = [None] * len(self.params)
        here = [term for term in terms if term.perturbation is None and term.gradient is None]
        for i, term in enumerate(here):
            retain_graph = i + 1 < len(here)
            if term.losses is None:
                gradient = self._at_theta(term.weights, retain_graph=retain_graph)
            else:
                gradient = self._backward(term.losses, term.weights, retain_graph=retain_graph)
            total = _add(total, _scaled(gradient, term.scale))
        self._losses = None
        self._gradients.clear()
        for term in terms:
            if term.gradient is not None:
                total = _add(total, _scaled(term.gradient, term.scale))
            elif term.perturbation is not None:
                total = _add(total, _scaled(self.at(term.perturbation, term.weights)[1], term.scale))
        return total

    def close(self) -> None:
        """Put back the buffers as the first forward pass left them, if that is the policy."""
        with torch.no_grad():
            for buffer, first in zip(self._buffers, self._first_buffers):
                buffer.copy_(first)
        self._losses = None

    def _at_theta(self, weights: Tensor | None, *, retain_graph: bool) -> Gradient:
        key = id(weights)  # the entry holds the tensor, so the id cannot be taken over by another one
        if key not in self._gradients:
            self._gradients[key] = (weights, self._backward(self.losses(), weights, retain_graph=retain_graph))
        return self._gradients[key][1]

    def _forward(self) -> Tensor:
        if self.num_forwards == 1:
            self._first_buffers = [buffer.detach().clone() for buffer in self._buffers]
        self.num_forwards += 1
        with torch.enable_grad():
            losses = self._closure()
        self._check(losses)
        if self.first_loss is None:
            self.first_loss = losses.detach().mean()
        return losses

    def _backward(self, losses: Tensor, weights: Tensor | None, *, retain_graph: bool) -> Gradient:
        self.num_backwards += 1
        with torch.enable_grad():
            objective = losses.mean() if weights is None else (weights * losses).mean()
        return list(torch.autograd.grad(objective, self.params, retain_graph=retain_graph, allow_unused=True))

    def _check(self, losses: Tensor) -> None:
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"{type(losses).__name__}"
            raise LandscapeError(
                f"the closure must return per-example losses of shape (B,), got {got}: "
                'compute the loss with reduction="none" and do not average it'
            )
        if not losses.requires_grad:
            raise LandscapeError(
                "the closure must return losses with a graph, got a tensor that needs no gradient: "
                "do not detach it, call backward in it or run it under no_grad"
            )
        if self.labels is not None and self.labels.shape != losses.shape:
            raise LandscapeError(
                f"labels must hold one class index per loss, {tuple(losses.shape)}, got {tuple(self.labels.shape)}: "
                "pass the labels of the batch that the closure evaluates"
            )


def check_option(rule: Rule, option: str, value: object, *, minimum: float = 0.0, maximum: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number in ``[minimum, maximum]``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not minimum <= value <= maximum:  # type: ignore[arg-type, operator]
        upper = "" if math.isinf(maximum) else f" and <= {maximum:g}"
        raise LandscapeError(f"{rule.name}: {option} must be a finite number >= {minimum:g}{upper}, got {value!r}")


def check_choice(rule: Rule, option: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise LandscapeError(f"{rule.name}: {option} must be one of {', '.join(choices)}, got {value!r}")


def _scaled(gradient: Gradient, scale: float | Tensor) -> Gradient:
    """Return scale * gradient; the same tensors where the scale is the number 1."""
    if not isinstance(scale, Tensor) and scale == 1:
        return gradient
    given = [g for g in gradient if g is not None]
    scaled = iter(torch._foreach_mul(given, scale) if given else ())
    return [None if g is None else next(scaled) for g in gradient]


def _add(a: Gradient, b: Gradient) -> Gradient:
    """Return a + b with None as zero; new tensors where both are given, because the cache may hold a or b."""
    both = [i for i, (x, y) in enumerate(zip(a, b)) if x is not None and y is not None]
    total = [y if x is None else x for x, y in zip(a, b)]
    if both:
        sums = torch._foreach_add([a[i] for i in both], [b[i] for i in both])  # type: ignore[misc]
        for i, value in zip(both, sums):
            total[i] = value
    return total

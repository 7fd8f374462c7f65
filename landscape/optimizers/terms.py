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
from landscape.optimizers.gradients import Gradient, added, scaled, with_zeros
from landscape.optimizers.passes import Closure, Passes, Piece
from landscape.processes import Processes

__all__ = ["Batch", "Closure", "Criterion", "Gradient", "Piece", "Rule", "Task", "Term", "check_choice", "check_option"]

Criterion = Callable[[Tensor, Tensor], Tensor]


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
        What to differentiate at theta instead of the closure's losses: losses (B,) on the graph of :meth:`Batch.losses`,
        or a function of a piece of the batch (:class:`Piece`, a forward pass each) that returns the piece's.
    gradient
        A finished gradient, one entry per trainable parameter: it costs no pass. Leave None where the losses do not
        depend on the parameter (:meth:`Batch.is_used`), so that weight decay leaves it alone.
    scale
        Factor of this term's gradient, a number or a scalar tensor. Two terms with the same weights and other scales
        share their gradient at theta.
    """

    weights: Tensor | None = None
    perturbation: Sequence[Tensor] | None = None
    losses: Tensor | Callable[[Piece], Tensor] | None = None
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


@dataclass(frozen=True)
class Moment:
    """Where in the training a step is, and the source of its noise."""

    epoch: int
    num_epochs: int | None
    generator: torch.Generator


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

    Rules use :attr:`params`, :attr:`names`, :attr:`labels`, :meth:`losses`, :meth:`gradient`, :meth:`gradients`,
    :meth:`at`, :attr:`pieces` and the schedule; the engine the rest. A batch that is cut into pieces, or shared by
    several processes, looks to a rule like any other: labels, weights, losses and gradients are those of the whole.

    Attributes
    ----------
    pieces, ascent_pieces
        The parts in which this process evaluates the losses that are minimised, and those that perturbations come from.
    is_shared
        Whether one forward pass at theta serves perturbations and terms: the batch is in one piece, and both take the
        same losses.
    memory
        Tensors by name that a rule keeps from step to step; saved with the optimizer's state. A rule replaces entries
        and does not change the tensors in place, so that a step that fails leaves the memory as it was.
    shift
        One tensor per trainable parameter that stays in the weights: the base step starts from theta plus shift.
    """

    def __init__(
        self,
        passes: Passes,
        closures: Sequence[Closure],
        ascents: Sequence[Closure] | None = None,
        *,
        labels: Tensor | None,
        names: Sequence[str] = (),
        task: Task,
        moment: Moment,
    ) -> None:
        self.params = passes.params
        self.labels = labels
        self.names = names
        self.task = task
        self.epoch = moment.epoch
        self.num_epochs = moment.num_epochs
        self.generator = moment.generator
        self.memory: dict[str, Tensor] = {}
        self.shift: Sequence[Tensor] | None = None
        self.pieces = _pieces(closures, passes)
        self.ascent_pieces = self.pieces if ascents is None else _pieces(ascents, passes)
        self.is_shared = ascents is None and passes.is_whole
        self.copies: list[Tensor] | None = None  # of the weights; the engine hands in those of the step before
        self.ascent_processes: Processes | None = None  # None: all
        self._passes = passes
        self._has_copied = False
        self._losses: Tensor | None = None
        # By the identity of the weights: the entry holds the tensor, so the id cannot be taken over by another one.
        self._gradients: dict[int, tuple[Tensor | None, Gradient]] = {}
        self._ascent_gradients = self._gradients if ascents is None else {}

    # What rules use.

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of what multiplies losses."""
        return self.params[0].dtype

    @property
    def num_examples(self) -> int:
        """Examples in the whole batch."""
        return len(self.losses() if self.labels is None else self.labels)

    def losses(self) -> Tensor:
        """Return the per-example losses at theta, (B,); those of the ascent, if it has its own.

        The first call runs the forward pass. They carry their graph where one pass serves everything (``is_shared``).
        """
        if self._losses is None:
            if self.is_shared:
                self._losses = self._run(self.pieces[0])
            else:
                with torch.no_grad():
                    self._losses = self._passes.whole([self._run(piece).detach() for piece in self.ascent_pieces])
        return self._losses

    def gradient(self, weights: Tensor | None = None) -> list[Tensor]:
        """Return the gradient at theta of the mean of ``weights * losses``, zero where a parameter is not used.

        Cached by the identity of ``weights``: hand the same tensor object to this method and to a term.
        """
        if id(weights) not in self._ascent_gradients:
            self._differentiate(weights, retain_graph=True)
        return with_zeros(self._ascent_gradients[id(weights)][1], self.params)

    def gradients(self, *weights: Tensor | None, here: Sequence[Tensor | None] = ()) -> list[list[Tensor]]:
        """Return :meth:`gradient` for several weightings, all that the rule asks for; cheaper than one by one.

        The graph at theta is released, and each piece of the batch runs forward only once. ``here`` are the weights of
        terms at theta that follow; they are differentiated in the same pass where that is possible.
        """
        wanted = [*weights, *(here if self._ascent_gradients is self._gradients else ())]
        missing = {id(w): w for w in wanted if id(w) not in self._ascent_gradients}
        if missing:
            self._differentiate(*missing.values(), retain_graph=False)
        return [self.gradient(w) for w in weights]

    def is_used(self) -> list[bool]:
        """Return which trainable parameters the losses at theta depend on."""
        self.gradient()
        return [g is not None for g in self._ascent_gradients[id(None)][1]]

    def at(self, perturbation: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, Gradient]:
        """Return the losses (B,), detached, and the gradient of the mean of ``weights * losses`` at theta + perturbation.

        For rules whose terms depend on losses elsewhere. It invalidates the graph of :meth:`losses`.
        """
        gradient, values = self._perturbed(perturbation, weights)
        return self._passes.whole(values), gradient

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """Return rows (B_k, ...) that belong to the pieces as those of the whole batch, (B, ...)."""
        return self._passes.whole(parts)

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
            gradient = self._at_theta(term, retain_graph=i + 1 < len(here))
            total = added(total, scaled(gradient, term.scale))
        self._losses = None
        for term in terms:
            if term.gradient is not None:
                total = added(total, scaled(term.gradient, term.scale))
            elif term.perturbation is not None:
                total = added(total, scaled(self._perturbed(term.perturbation, term.weights)[0], term.scale))
        return total

    def close(self) -> None:
        """Put back the buffers as the first forward pass left them, if that is the policy; let go of the graph."""
        self._passes.restore_buffers()
        self._losses = None

    def _run(self, piece: Piece) -> Tensor:
        losses = piece.run()
        if self.labels is not None and self._passes.is_whole and self.labels.shape != losses.shape:
            raise LandscapeError(
                f"labels must hold one class index per loss, {tuple(losses.shape)}, got {tuple(self.labels.shape)}: "
                "pass the labels of the batch that the closure evaluates"
            )
        if self.labels is not None and piece.rows.stop > len(self.labels):
            raise LandscapeError(
                f"labels must hold one class index per loss of the whole batch, got {len(self.labels)} labels and losses "
                f"up to number {piece.rows.stop}: pass the labels of all pieces"
            )
        return losses

    def _differentiate(self, *weights: Tensor | None, retain_graph: bool) -> None:
        """Put gradients of the ascent's losses at theta into the cache."""
        if self.is_shared:
            losses = self.losses()
            for number, w in enumerate(weights, start=1):
                gradient = self._passes.backward(losses, w, retain_graph=retain_graph or number < len(weights))
                self._ascent_gradients[id(w)] = (w, gradient)
            if not retain_graph:
                self._losses = None
            return
        found, _ = self._passes.gradients(
            self.ascent_pieces, weights, losses_of=self._run, processes=self.ascent_processes
        )
        self._ascent_gradients |= {id(w): (w, gradient) for w, gradient in zip(weights, found)}

    def _at_theta(self, term: Term, *, retain_graph: bool) -> Gradient:
        weights = term.weights
        if isinstance(term.losses, Tensor):
            return self._passes.backward(term.losses, weights, retain_graph=retain_graph)
        if term.losses is not None:
            return self._passes.gradients(self.pieces, [weights], losses_of=term.losses)[0][0]
        if id(weights) not in self._gradients:
            if self.is_shared:
                self._differentiate(weights, retain_graph=retain_graph)
            else:
                ((gradient,), _) = self._passes.gradients(self.pieces, [weights], losses_of=self._run)
                self._gradients[id(weights)] = (weights, gradient)
        return self._gradients[id(weights)][1]

    def _perturbed(self, perturbation: Sequence[Tensor], weights: Tensor | None) -> tuple[Gradient, list[Tensor]]:
        if not self._has_copied:
            if self.copies is None or [c.shape for c in self.copies] != [p.shape for p in self.params]:
                self.copies = [torch.empty_like(p) for p in self.params]
            torch._foreach_copy_(self.copies, self.params)
            self._has_copied = True
        assert self.copies is not None
        try:
            torch._foreach_add_(self.params, list(perturbation))
            torch.clear_autocast_cache()  # a caller's autocast would go on with the weights as they were
            (gradient,), values = self._passes.gradients(self.pieces, [weights], losses_of=self._run)
            return gradient, values
        finally:
            # From the copies: subtracting the perturbation again would leave its round-off in the weights.
            torch._foreach_copy_(self.params, self.copies)
            torch.clear_autocast_cache()


def _pieces(closures: Sequence[Closure], passes: Passes) -> list[Piece]:
    pieces: list[Piece] = []
    for closure in closures:
        pieces.append(Piece(closure, passes, pieces[-1] if pieces else None))
    return pieces


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

"""Forward and backward passes of one step: counted, in pieces, in the run's arithmetic, averaged over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.optimizers.gradients import Gradient, WeightedMean
from landscape.optimizers.precision import Arithmetic
from landscape.processes import Processes

Closure = Callable[[], Tensor]


class Piece:
    """A part of the batch that is evaluated at once; :meth:`run` makes a forward pass at the weights as they are.

    Attributes
    ----------
    rows
        Which examples of the batch it holds; known once the piece and those before it have run.
    """

    def __init__(self, closure: Closure, passes: Passes, before: Piece | None) -> None:
        self._closure = closure
        self._passes = passes
        self._before = before
        self.rows = slice(passes.first_row, passes.first_row)

    def run(self) -> Tensor:
        """Return the losses of the piece with their graph, (B_k,)."""
        losses = self._passes.forward(self._closure)
        start = self.rows.start if self._before is None else self._before.rows.stop
        self.rows = slice(start, start + len(losses))
        return losses


class Passes:
    """The passes of one step.

    Attributes
    ----------
    num_forwards, num_backwards
        Passes over the whole batch so far; those over its pieces make up one together.
    first_loss
        Mean loss of this process's examples where they were first evaluated.
    """

    def __init__(
        self,
        params: list[Tensor],
        *,
        num_pieces: int,
        arithmetic: Arithmetic,
        processes: Processes,
        rows: tuple[int, int | None] = (0, None),
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self.params = params
        self.first_row, self.num_examples = rows  # where this process's part begins, and the length of the whole
        self.num_pieces = num_pieces
        self.processes = processes
        self.is_whole = num_pieces == 1 and processes.size == 1
        self._arithmetic = arithmetic
        self._forward_runs = 0
        self._backward_runs = 0
        self._first: list[tuple[Tensor, int]] = []
        self._buffers = list(buffers)
        self._first_buffers: list[Tensor] = []

    @property
    def num_forwards(self) -> int:
        """Forward passes over the whole batch."""
        return -(-self._forward_runs // self.num_pieces)

    @property
    def num_backwards(self) -> int:
        """Backward passes over the whole batch."""
        return -(-self._backward_runs // self.num_pieces)

    @property
    def first_loss(self) -> Tensor:
        """Mean loss where the batch was first evaluated, detached."""
        if len(self._first) == 1:
            return self._first[0][0]
        num_examples = sum(num for _, num in self._first)
        return torch.stack([mean * (num / num_examples) for mean, num in self._first]).sum()

    def forward(self, closure: Closure) -> Tensor:
        """Return the losses of a piece with their graph."""
        if self._forward_runs == self.num_pieces:
            self._first_buffers = [buffer.detach().clone() for buffer in self._buffers]
        self._forward_runs += 1
        with torch.enable_grad(), self._arithmetic.autocast():
            losses = closure()
        _check(losses)
        if len(self._first) < self.num_pieces:
            self._first.append((losses.detach().mean(), len(losses)))
        return losses

    def backward(self, losses: Tensor, weights: Tensor | None, *, retain_graph: bool = False) -> Gradient:
        """Return the gradient of the mean of ``weights * losses``."""
        self._backward_runs += 1
        with torch.enable_grad():
            objective = losses.mean() if weights is None else (weights * losses).mean()
            objective = self._arithmetic.scaled(objective)
        return self._arithmetic.unscaled(_differentiated(objective, self.params, retain_graph=retain_graph))

    def gradients(
        self,
        pieces: Sequence[Piece],
        weightings: Sequence[Tensor | None],
        *,
        losses_of: Callable[[Piece], Tensor] = Piece.run,
        processes: Processes | None = None,
    ) -> tuple[list[Gradient], list[Tensor]]:
        """Return the gradient of the batch for each weighting (B,), and the detached losses of this process's pieces.

        Each piece runs forward once, and its graph is gone before the next one runs. ``processes`` are those over which
        gradients are averaged, by default all.
        """
        processes = processes or self.processes
        means = [WeightedMean() for _ in weightings]
        values = []
        for piece in pieces:
            losses = losses_of(piece)
            values.append(losses.detach())
            for number, (weights, mean) in enumerate(zip(weightings, means)):
                part = weights if weights is None or self.is_whole else weights[piece.rows]
                mean.add(self.backward(losses, part, retain_graph=number + 1 < len(weightings)), len(losses))
        return [mean.result(processes, self.params) for mean in means], values

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """Return rows (B_k, ...) of this process's pieces as those of the whole batch, (B, ...)."""
        rows = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        if self.processes.size == 1:
            return rows
        if self.num_examples is None:
            raise LandscapeError(
                "several processes need the labels of the whole batch, got none: step(closure, labels=y)"
            )
        full = rows.new_zeros(self.num_examples, *rows.shape[1:])
        full[self.first_row : self.first_row + len(rows)] = rows
        return self.processes.sum_(full)

    def restore_buffers(self) -> None:
        """Put back the buffers as the first forward pass left them, if they were to be kept."""
        with torch.no_grad():
            for buffer, first in zip(self._buffers, self._first_buffers):
                buffer.copy_(first)


def _check(losses: Tensor) -> None:
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


def _differentiated(objective: Tensor, params: Sequence[Tensor], *, retain_graph: bool) -> list[Tensor | None]:
    """Return the gradient; LandscapeError where the graph is gone because the closure differentiated already."""
    try:
        return list(torch.autograd.grad(objective, params, retain_graph=retain_graph, allow_unused=True))
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise LandscapeError(
            "the graph of the closure's losses is gone: return them without calling backward, which the optimizer does itself"
        ) from error

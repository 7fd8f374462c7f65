"""A risk whose inputs are drawn anew at every evaluation: the published protocol, kept to be shown, not to be trusted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk.model import ModelRisk
from landscape.risk.protocol import ClassRisk, HessianProduct

# Stored inputs (M, ...) and a CPU generator -> the inputs augmented anew.
Redraw = Callable[[Tensor, torch.Generator], Tensor]


class RedrawnRisk:
    """Class losses whose inputs are augmented anew at every evaluation and at every Hessian product.

    Two calls see two different functions: ``is_fixed`` is False, and no eigenvalue found here belongs to any matrix.
    It imitates the released analysis of Rangwani et al. (NeurIPS 2022), which reads the training loader, random crops
    and flips included, once per Lanczos step. Every single product is that of the Hessian of one draw.

    Parameters
    ----------
    base
        The risk on the stored inputs; its own proof of determinism holds for every single draw.
    redraw
        Augments stored inputs (M, ...), :meth:`landscape.data.augmentation.Transform.redraw` for instance.
    seed
        Root of the draws. Call k of the whole object (whatever it evaluates) uses the stream ``augment/call=k``, so
        that a run as a whole repeats.

    Raises
    ------
    LandscapeError
        If the inputs are not one tensor.

    Examples
    --------
    >>> base = ModelRisk(torch.nn.Linear(2, 2), (torch.ones(4, 2), torch.tensor([0, 0, 1, 1])))
    >>> risk = RedrawnRisk(base, lambda x, g: x + torch.randn(x.shape, generator=g))
    >>> bool((risk.losses(risk.theta) == risk.losses(risk.theta)).any())
    False
    """

    is_fixed = False
    is_additive = True  # of one draw

    def __init__(self, base: ModelRisk, redraw: Redraw, *, seed: int = 0) -> None:
        stored = base._examples.inputs
        if not isinstance(stored, Tensor):
            got = (
                "named tensors" if isinstance(stored, dict) else "more images than fit the memory (see --max-per-class)"
            )
            raise LandscapeError(f"redrawn augmentation: expected inputs in one tensor, got {got}")
        self._base, self._stored = base, stored
        self._redraw = redraw
        self._seed = seed
        self._calls = itertools.count()
        self.class_names, self.class_counts, self.groups = base.class_names, base.class_counts, base.groups
        self.theta, self.layout, self.train_counts = base.theta, base.layout, base.train_counts
        self.dtype, self.device, self.loss_name = base.dtype, base.device, base.loss_name
        self.attributes: dict[str, object] = {**base.attributes, "augment_seed": seed}
        if base.attributes.get("augmentation", "none") == "none":
            self.attributes["augmentation"] = "redraw"

    @property
    def chunk_size(self) -> int:
        """Examples per forward pass with gradients."""
        return self._base.chunk_size

    @property
    def inputs_per_example(self) -> int:
        """Numbers in one stored input."""
        return self._base.inputs_per_example

    def in_float64(self) -> RedrawnRisk:
        """Return the same risk in float64, drawing from the same streams."""
        if self.dtype == torch.float64:
            return self
        clone = RedrawnRisk(self._base.in_float64(), self._redraw, seed=self._seed)
        clone._calls = self._calls
        clone.attributes = {**self.attributes, "dtype": "float64"}
        return clone

    def drawn(self, classes: Sequence[int] | None = None) -> ModelRisk:
        """Return the risk of one new draw, a fixed function; only the classes asked for may be evaluated."""
        examples = self._base._examples
        wanted = range(len(self.class_names)) if classes is None else sorted(set(classes))
        rows = torch.cat([torch.arange(examples.offsets[c], examples.offsets[c + 1]) for c in wanted])
        rows = rows.to(self._stored.device)
        generator = stream(self._seed, f"augment/call={next(self._calls)}")
        inputs = torch.zeros_like(self._stored)
        inputs[rows] = self._redraw(self._stored[rows], generator)
        return self._base.with_inputs(inputs)

    def losses(self, theta: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Return (C,) float64 mean losses of one new draw; NaN for classes not asked for or without examples."""
        return self.drawn(classes).losses(theta, classes)

    def lane_losses(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B,) float64 losses of lanes (B, C) on one new draw."""
        return self.drawn(_support(weights)).lane_losses(theta, weights)

    def evaluate(self, theta: Tensor, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``loss``, ``cross_entropy`` and ``accuracy`` of one new draw, each (C,) float64."""
        return self.drawn(classes).evaluate(theta, classes)

    def gradients(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B, n) gradients of one new draw."""
        return self.drawn(_support(weights)).gradients(theta, weights)

    def hvps(self, theta: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, n) products of one new draw."""
        with self.hessian(theta, weights) as product:
            return product(vectors[:, None])[:, 0]

    @contextmanager
    def hessian(self, theta: Tensor, weights: Tensor, **options: Any) -> Iterator[HessianProduct]:
        """Give a product (B, P, n) -> (B, P, n) that draws all examples anew at every call.

        Nothing can be kept between calls: a product costs three gradients instead of two. ``options`` are those of
        :meth:`ModelRisk.hessian`.
        """

        def product(vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
            rows = weights if lanes is None else weights[list(lanes)]
            fixed = self.drawn(_support(rows))
            # Graphs that serve one product are not worth keeping; a route chosen by time would not repeat its bits.
            with fixed.hessian(theta, rows, **{"strategy": "fresh", **options}) as of_this_draw:
                return of_this_draw(vectors)

        yield product


def _support(weights: Tensor) -> list[int]:
    """Return the classes that any lane (B, C) weighs."""
    return torch.nonzero((weights.cpu() != 0).any(0))[:, 0].tolist()


def require_fixed(risk: ClassRisk, what: str) -> None:
    """Raise LandscapeError where ``what`` (a surface, say) would be measured on a function that moves.

    Examples
    --------
    >>> require_fixed(ModelRisk(torch.nn.Linear(1, 2), (torch.ones(2, 1), torch.tensor([0, 1]))), "a surface")
    """
    if not getattr(risk, "is_fixed", True):
        raise LandscapeError(
            f"{what} needs a fixed function, got augmentation redrawn at every evaluation: choose --augment none or frozen"
        )

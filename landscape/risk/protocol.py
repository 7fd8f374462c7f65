"""The one core object: a risk split by class, at a point theta."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from landscape.layout import ParameterLayout


class HessianProduct(Protocol):
    """Products with the Hessians of B lanes, as :meth:`ClassRisk.hessian` yields them."""

    def __call__(self, vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
        """Return (B', P, n): row b holds the products of lane ``lanes[b]`` (by default of all B) with vectors[b]."""
        ...


class ClassRisk(Protocol):
    """C class losses L_c as functions of a flat parameter vector theta (n,), with gradients and Hessian products.

    Toy losses (:class:`AnalyticRisk`) and networks (:class:`ModelRisk`) satisfy it alike, so that every estimator is
    tested on closed forms by the very code that runs on a checkpoint. Nothing here changes the caller's model, its
    mode, gradients or buffers, or a random state.

    A risk of a network has more, which callers ask for with ``getattr``: ``gauss_newton(theta, weights)``, a context
    manager like :meth:`hessian`, and ``curvature_split(theta, weights, vectors)``. An analytic risk has no logits and
    hence neither.
    """

    class_names: tuple[str, ...]
    class_counts: Tensor  # (C,) int64, on the CPU
    groups: dict[str, tuple[int, ...]]
    theta: Tensor  # (n,) detached: the point under study
    layout: ParameterLayout

    attributes: dict[str, object]  # what a result must record: objective, split, dtype, BatchNorm policy, hashes

    @property
    def is_additive(self) -> bool:
        """Whether a lane's loss is the weighted sum of its classes'; not where its examples share batch statistics."""
        ...

    def losses(self, theta: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Return (C,) float64: the mean loss over each class, NaN for classes not asked for or without examples."""
        ...

    def lane_losses(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B,) float64: the loss of lanes (B, C), ``sum_c weights[b, c] L_c`` where ``is_additive``."""
        ...

    def evaluate(self, theta: Tensor, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return class means (C,) float64 from one forward pass: at least ``loss``; networks add more."""
        ...

    def gradients(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B, n): row b is the gradient of ``sum_c weights[b, c] L_c``; weights (B, C)."""
        ...

    def hvps(self, theta: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, n): row b is ``sum_c weights[b, c] H_c vectors[b]``; weights (B, C), vectors (B, n)."""
        ...

    def hessian(self, theta: Tensor, weights: Tensor) -> AbstractContextManager[HessianProduct]:
        """Give a product (B, P, n) -> (B, P, n) that keeps its graphs between calls; weights (B, C)."""
        ...

    def in_float64(self) -> ClassRisk:
        """Return the same risk in double precision (itself where it already is)."""
        ...

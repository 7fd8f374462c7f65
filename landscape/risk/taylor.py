"""Values, slopes and curvatures of every example's loss along directions, by forward differentiation twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.losses import cross_entropy
from landscape.risk.arithmetic import differentiation, load_forward_mode
from landscape.risk.intake import resolve_loss
from landscape.risk.kernels import TwiceDifferentiable

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# Per example: values (N,), slopes (D, N) and curvatures (D, D, N).
ExampleTerms = tuple[Tensor, Tensor, Tensor]


def nested_product(
    function: Callable[[Tensor], Tensor], point: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return :math:`f`, :math:`f'a`, :math:`f'b` and :math:`a^T f'' b`, each of the function's shape, in one pass.

    Forward differentiation inside forward differentiation: no graph is kept, and a function of many outputs (the
    losses of all examples) costs no more than one of a single output.

    Parameters
    ----------
    function
        From a vector (n,) to a tensor of any shape.
    point, first, second
        Where, and the directions a and b, each (n,).

    Raises
    ------
    NotImplementedError, RuntimeError
        Where an operation has no (nested) forward derivative.

    Examples
    --------
    >>> x, a, b = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> [float(t) for t in nested_product(lambda t: t[0] ** 2 * t[1], x, a, b)]
    [12.0, 12.0, 4.0, 4.0]
    """
    load_forward_mode()

    def inner(p: Tensor) -> Any:
        return torch.func.jvp(function, (p,), (first,))

    outer: Any = torch.func.jvp(inner, (point,), (second,))
    (value, slope), (other_slope, curvature) = outer
    return value, slope, other_slope, curvature


@differentiation()
def example_terms(risk: ModelRisk, directions: Tensor) -> dict[str, ExampleTerms]:
    """Return the terms of ``loss`` (plain cross-entropy) and, where it differs, of ``own_loss``, float64 on the CPU.

    One nested product per direction and one per pair of directions, chunk by chunk, for both losses at once. The
    mixed terms are not polarised: ((a + b)'H(a + b) - a'Ha - b'Hb) / 2 costs the same and cancels.

    Parameters
    ----------
    risk
        A network's; its rows must not share batch statistics.
    directions
        (D, n) in the risk's dtype.

    Raises
    ------
    LandscapeError
        If BatchNorm statistics are recalibrated: they depend on the weights.
    NotImplementedError, RuntimeError
        Where an operation has no nested forward derivative.
    """
    risk._require_derivatives()
    is_plain = risk.loss_name == "ce"
    names = ("loss",) if is_plain else ("loss", "own_loss")
    num = len(directions)
    values, slopes, curvatures = [], [], []
    with torch.no_grad():
        for rows in risk.row_chunks():

            def losses(theta: Tensor, rows: slice = rows) -> Tensor:  # (losses, rows)
                with TwiceDifferentiable():
                    logits = risk.logits(theta, rows)
                    own = risk.losses_of(logits, rows)
                    if is_plain:
                        return own[None]
                    plain = cross_entropy(logits, risk.labels[rows])
                    return torch.stack([plain, own])

            slope: list[Tensor] = []
            curvature: dict[tuple[int, int], Tensor] = {}
            for i in range(num):
                for j in range(i, -1, -1):  # the first product of a direction is with itself
                    value, at_i, _, term = nested_product(losses, risk.theta, directions[i], directions[j])
                    if i == j:
                        slope.append(at_i.double())
                    curvature[i, j] = curvature[j, i] = term.double()
            values.append(value.double())
            slopes.append(torch.stack(slope))
            curvatures.append(torch.stack([torch.stack([curvature[i, j] for j in range(num)]) for i in range(num)]))
    parts = [torch.cat(found, -1).cpu() for found in (values, slopes, curvatures)]
    return {name: (parts[0][k], parts[1][:, k], parts[2][:, :, k]) for k, name in enumerate(names)}


def with_cross_entropy(risk: ModelRisk) -> ModelRisk:
    """Return the same risk with plain cross-entropy for its loss; copies no data."""
    clone = copy.copy(risk)
    clone.loss_name, clone.loss = resolve_loss("ce", risk.train_counts, device=risk.device, dtype=risk.dtype)
    clone.attributes = {**risk.attributes, "objective": "ce"}
    clone._known = {}  # times and sizes of another loss's graphs
    return clone

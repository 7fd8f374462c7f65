"""Exact slopes and curvatures of every class's loss along directions, with their standard errors over images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk
from landscape.risk.augmented import require_fixed
from landscape.risk.points import class_losses
from landscape.risk.taylor import ExampleTerms, example_terms, with_cross_entropy

logger = logging.getLogger(__name__)

PER_EXAMPLE = "one nested forward-mode product per direction and pair of directions, all examples at once"
PER_CLASS = "Hessian products class by class, no standard errors over images"


@dataclass(frozen=True)
class DirectionalDerivatives:
    r"""Taylor terms of C class losses along D directions: :math:`L_c`, :math:`g_c^T d_i`, :math:`d_i^T H_c d_j`.

    Attributes
    ----------
    value
        (C,) float64, like everything here, on the CPU; NaN for classes without examples.
    slope, curvature
        (D, C), in the loss's units per unit of the direction, and (D, D, C), symmetric, per unit squared.
    slope_stderr, curvature_stderr
        Standard errors over images, :math:`s_c / \sqrt{n_c}`: NaN for a class of one image, and where the class was
        differentiated as a whole.
    example_slope, example_curvature
        (D, N) and (D, D, N) of single rows in the risk's order; None where the class was differentiated as a whole.
    route
        How, in words.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor
    slope_stderr: Tensor
    curvature_stderr: Tensor
    example_slope: Tensor | None
    example_curvature: Tensor | None
    route: str


def directional_derivatives(risk: ClassRisk, directions: Sequence[Tensor]) -> dict[str, DirectionalDerivatives]:
    r"""Differentiate every class's loss along directions at the weights: :math:`g_c^T d_i` and :math:`d_i^T H_c d_j`.

    The loss of example k on the line through d has the derivatives of :math:`t \mapsto \ell_k(\theta + t d)` at 0.
    Forward differentiation twice gives them for all examples in one pass, so that all classes cost what one does, and
    the spread over a class's examples gives the standard error of its mean. The derivatives themselves are exact up
    to rounding in the risk's dtype; the standard errors say what other images of the class would have changed.

    Parameters
    ----------
    risk
        Networks: nested forward mode, or Hessian products class by class where an operation has no forward derivative
        or lanes have batch statistics of their own. Analytic risks: Hessian products.
    directions
        D vectors (n,).

    Returns
    -------
    dict
        ``loss``, plain cross-entropy where the risk is a classifier's, as surfaces show it, and ``own_loss`` where the
        risk's objective is another one.

    Raises
    ------
    LandscapeError
        For directions of another shape or not finite, inputs redrawn at every evaluation, and BatchNorm statistics
        that are recalibrated.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t[0] ** 2 + 3 * t[0] * t[1] + t[1])[None], torch.ones(2, dtype=torch.float64))
    >>> found = directional_derivatives(risk, list(torch.eye(2, dtype=torch.float64)))["loss"]
    >>> found.slope[:, 0].tolist(), found.curvature[:, :, 0].tolist()
    ([5.0, 4.0], [[2.0, 3.0], [3.0, 0.0]])

    Notes
    -----
    Kinks: in networks of ReLUs these are derivatives of the one linear piece around the weights. What the loss does at
    a distance includes the kinks on the way, which no derivative at a point sees; see :mod:`landscape.surface.fit`.
    In float32 a ReLU may switch by rounding: of 30 classes of three ResNet-20 most agreed with float64 to 1e-5, the
    worst to 5e-3. Pass ``risk.in_float64()`` where that matters.
    """
    require_fixed(risk, "a quadratic model")
    stacked = _stacked(risk, directions)
    if hasattr(risk, "row_chunks") and risk.is_additive:
        network: Any = risk
        try:
            found = example_terms(network, stacked)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            logger.info("no nested forward derivative, Hessian products instead: %s", str(error).splitlines()[:1])
        else:
            draws, counts = int(network.draws_per_example), risk.class_counts.cpu()
            return {name: _of_classes(terms, counts, draws) for name, terms in found.items()}
    return _by_products(risk, stacked)


def _stacked(risk: ClassRisk, directions: Sequence[Tensor]) -> Tensor:
    """Return the directions as (D, n) in the risk's dtype."""
    if not len(directions):
        raise LandscapeError("expected at least one direction (n,), got none")
    for d in directions:
        if torch.as_tensor(d).shape != risk.theta.shape:
            raise LandscapeError(
                f"expected directions of shape {tuple(risk.theta.shape)}, got {tuple(torch.as_tensor(d).shape)}"
            )
        if not bool(torch.as_tensor(d).isfinite().all()):
            raise LandscapeError("a direction is not finite: draw it again, or find what made it so")
    return torch.stack([torch.as_tensor(d).detach().to(risk.theta) for d in directions])


def _of_classes(terms: ExampleTerms, counts: Tensor, draws: int) -> DirectionalDerivatives:
    """Reduce rows in class order, ``draws`` adjacent ones to an image, to means and standard errors of classes."""
    (value, _), *others = [_means(part, counts, draws) for part in terms]
    (slope, slope_stderr), (curvature, curvature_stderr) = others
    return DirectionalDerivatives(
        value, slope, curvature, slope_stderr, curvature_stderr, terms[1], terms[2], PER_EXAMPLE
    )


def _means(rows: Tensor, counts: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return means and their standard errors (..., C) of rows (..., N); 0 / 0 makes NaN of what is not defined."""
    images = rows.unflatten(-1, (-1, draws)).mean(-1)
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    num = counts.double()

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(*values.shape[:-1], len(counts)).index_add_(-1, labels, values)

    mean = sums(images) / num
    squares = sums((images - mean[..., labels]).square())
    return mean, (squares / (num - 1) / num).sqrt()


def _by_products(risk: ClassRisk, directions: Tensor) -> dict[str, DirectionalDerivatives]:
    network: Any = risk
    sources: dict[str, ClassRisk] = {"loss": risk}
    values = class_losses(risk, risk.theta)
    if "own_loss" in values:
        sources = {"loss": with_cross_entropy(network), "own_loss": risk}
    return {name: _of_whole_classes(source, values[name], directions) for name, source in sources.items()}


def _of_whole_classes(risk: ClassRisk, value: Tensor, directions: Tensor) -> DirectionalDerivatives:
    num, num_classes = len(directions), len(risk.class_names)
    slope = torch.full((num, num_classes), torch.nan, dtype=torch.float64)
    curvature = torch.full((num, num, num_classes), torch.nan, dtype=torch.float64)
    weights = torch.eye(num_classes, dtype=torch.float64)
    along = directions.double()
    for c in torch.nonzero(risk.class_counts.cpu() > 0)[:, 0].tolist():
        row = weights[c : c + 1]
        slope[:, c] = (along @ risk.gradients(risk.theta, row)[0].double()).cpu()
        with risk.hessian(risk.theta, row) as product:
            products = product(directions[None])[0].double()
        found = (along @ products.T).cpu()
        curvature[:, :, c] = (found + found.T) / 2  # symmetric to rounding
    missing = torch.full_like(slope, torch.nan), torch.full_like(curvature, torch.nan)
    return DirectionalDerivatives(value.double(), slope, curvature, *missing, None, None, PER_CLASS)

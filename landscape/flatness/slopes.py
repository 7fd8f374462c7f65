"""First derivatives: the gradient's norm, and the slope of every example's loss along the weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from landscape.flatness.study import Estimate, Study, example_means
from landscape.risk import ModelRisk
from landscape.risk.arithmetic import differentiation, load_forward_mode
from landscape.risk.kernels import TwiceDifferentiable

# Gradients (n,) of so many lanes at a time.
LANES_AT_ONCE = 32


def gradient_norm(study: Study) -> Estimate:
    r"""Return the norm of every lane's gradient.

    .. math:: \|g\|_2, \qquad g = \nabla L(w)

    Parameters
    ----------
    study
        Any risk.

    Returns
    -------
    Estimate
        (L,) nats per example and weight unit; exact over the examples to rounding.

    Notes
    -----
    Source: none needed. A class gradient that is not zero is the mark of a long tail: the mean over all classes is
    stationary, its classes are not.

    Critique: not invariant to rescalings (Dinh et al., 2017); every worst case of a small radius is a multiple of it.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> from landscape.risk import lanes_of
    >>> risk = AnalyticRisk(lambda x: torch.stack([3 * x[0] + 4 * x[1], x[0] ** 2]), torch.ones(2))
    >>> gradient_norm(Study(risk, lanes_of(risk, "classes"))).value.tolist()
    [5.0, 2.0]
    """

    def measure() -> dict[str, object]:
        waves = study.lanes.weights.split(LANES_AT_ONCE)
        norms = [
            torch.linalg.vector_norm(study.risk.gradients(study.risk.theta, wave).double(), dim=1) for wave in waves
        ]
        return {"norm": torch.cat(norms).cpu().numpy()}

    return Estimate(study.block("gradient", measure)["norm"])


def radial_slope(study: Study) -> Estimate:
    r"""Return the slope of the loss when all weights grow in proportion.

    .. math:: w \cdot \nabla L(w) = \frac{d}{ds} L((1 + s) w) \Big|_{s = 0}

    Parameters
    ----------
    study
        Any risk; ``w`` are the parameters that were chosen for it.

    Returns
    -------
    Estimate
        (L,) nats per example; exact over the examples to rounding, with the standard error over images where there are
        any.

    Notes
    -----
    Source: the linear term of Liang et al. (AISTATS 2019); with weight decay lambda a stationary point has the value
    -lambda |w|^2 for the training set as a whole.

    Critique: of confidence, not of curvature: it is negative where larger logits would lower the loss further.
    """
    network = study.network
    if network is None:
        theta = study.risk.theta
        gradients = study.risk.gradients(theta, study.lanes.weights).double()
        return Estimate((gradients @ theta.double()).cpu().numpy())
    return Estimate(*_means(study, network, "slope", power=1))


def fisher_rao_norm(study: Study) -> Estimate:
    r"""Return the squared Fisher-Rao norm of the weights.

    .. math:: \|w\|_{fr}^2 = w^T E[\nabla \ell\, \nabla \ell^T] w = E[(w \cdot \nabla \ell)^2]

    Parameters
    ----------
    study
        A network; ``w`` are the parameters that were chosen for it.

    Returns
    -------
    Estimate
        (L,) nats squared; exact over the examples to rounding, with the standard error over images. NaN for an analytic
        risk, which has class losses only.

    Notes
    -----
    Source: Liang et al., *Fisher-Rao Metric, Geometry, and Complexity of Neural Networks*, AISTATS 2019, with the labels
    as they are. One derivative in forward mode along w gives the slopes of all examples, hence of every class; for a
    bias-free ReLU network with L hidden layers it is (L + 1)^2 E[(dl/df . f)^2].

    Critique: invariant to rescalings of layers; driven by the few examples with a large loss and by the scale of the
    logits (dl/df . f), hence confounded with confidence.
    """
    network = study.network
    if network is None:
        return study.without_examples("losses of single examples")
    return Estimate(*_means(study, network, "square", power=2))


def _means(study: Study, network: ModelRisk, name: str, *, power: int) -> tuple[np.ndarray, np.ndarray]:
    def measure() -> dict[str, object]:
        return {"slope": slopes_along(network, network.theta).cpu().numpy()}

    slopes = torch.as_tensor(study.block("slopes", measure)["slope"], device=network.device)
    return example_means(study, slopes**power)


def slopes_along(risk: ModelRisk, direction: Tensor) -> Tensor:
    r"""Return the slope :math:`d \cdot \nabla \ell_i` of every row's loss along a direction (n,), (N,) float64.

    One derivative in forward mode per chunk of rows; row by row backwards where an operation has no forward derivative.
    """
    with differentiation(), TwiceDifferentiable():
        return torch.cat([_slopes(risk, direction.to(risk.theta), rows).double() for rows in risk.row_chunks()])


def _slopes(risk: ModelRisk, direction: Tensor, rows: slice) -> Tensor:
    load_forward_mode()
    zero = torch.zeros((), dtype=risk.theta.dtype, device=risk.theta.device)

    def losses(s: Tensor) -> Tensor:
        return risk.per_example(risk.theta + s * direction, rows)

    try:
        return torch.func.jvp(losses, (zero,), (torch.ones_like(zero),))[1].detach()
    except (NotImplementedError, RuntimeError):  # an operation without a forward derivative
        return _by_backward(risk, direction, rows)


def _by_backward(risk: ModelRisk, direction: Tensor, rows: slice) -> Tensor:
    s = torch.zeros((), dtype=risk.theta.dtype, device=risk.theta.device, requires_grad=True)
    losses = risk.per_example(risk.theta + s * direction, rows)
    parts = [torch.autograd.grad(loss, s, retain_graph=True, materialize_grads=True)[0] for loss in losses.unbind()]
    return torch.stack(parts)

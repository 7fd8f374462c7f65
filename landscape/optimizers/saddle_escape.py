"""Methods that escape saddle points by noise: perturbed gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from landscape.directions import TINY, gaussian, tree_norm
from landscape.errors import LandscapeError
from landscape.optimizers.terms import Batch, Term, check_choice, check_option

MEMORY = "steps_since_noise"


@dataclass(frozen=True)
class PerturbedGD:
    r"""Perturbed gradient descent (PGD): a random jump where the gradient is small, or noise in every step.

    .. math:: \theta \leftarrow \theta + \xi, \ \xi \sim U(B_0(r)) \quad \text{if } \|g(\theta)\|_2 \le g_{\text{thres}}
              \text{ and } t - t_{\text{noise}} > t_{\text{thres}}; \qquad \text{step} = g(\theta)

    The jump stays in the weights, unlike the perturbations of the other methods, and the gradient is taken after it. Two
    forward and two backward passes, because nothing in a step may depend on a value that the host would have to wait for;
    one and one with ``gradient_at="before"`` or ``variant="stochastic"``.

    Parameters
    ----------
    radius
        Radius r of the ball; in the stochastic variant the root of the noise's mean square length.
    threshold
        The gradient's norm g_thres (of the batch) up to which the weights jump.
    wait
        Steps t_thres that must have passed since the last jump. The first jump may come at once.
    gradient_at
        ``"after"`` the jump, as in the paper; ``"before"``: the gradient that was tested is used, at half the price.
    variant
        ``"ball"``: the algorithm above. ``"stochastic"``: :math:`\text{step} = g(\theta) + \xi` in every step with
        :math:`\xi \sim N(0, (r^2 / d)\, I)`, d the number of parameters.

    Notes
    -----
    Source: Jin et al., *How to Escape Saddle Points Efficiently*, ICML 2017, algorithms 1 and 2; the stochastic variant:
    Jin et al., *On Nonconvex Optimization for Machine Learning: Gradients, Stochasticity, and Saddle Points*, JACM 2021.
    :func:`published_constants` gives the radius and thresholds of the former. The defaults are ours: no setting for
    networks is public. The paper on saddles of tail classes (Rangwani et al., NeurIPS 2022) compares SAM with PGD as we
    remember it; its released code has no PGD, so neither the variant nor its options are known. Differs from the paper in:

    1. Gradients are those of batches, and the test uses their norm.
    2. There the algorithm ends where the objective has not dropped by f_thres within t_thres steps of a jump; training
       goes on.
    """

    radius: float = 0.1
    threshold: float = 0.1
    wait: int = 100
    gradient_at: Literal["after", "before"] = "after"
    variant: Literal["ball", "stochastic"] = "ball"
    name: ClassVar[str] = "perturbed-gd"
    needs: ClassVar[frozenset[str]] = frozenset({"generator"})

    def __post_init__(self) -> None:
        for option in ("radius", "threshold", "wait"):
            check_option(self, option, getattr(self, option))
        if not isinstance(self.wait, int):
            raise LandscapeError(f"perturbed-gd: wait must be a whole number, got {self.wait!r}")
        check_choice(self, "gradient_at", self.gradient_at, ("after", "before"))
        check_choice(self, "variant", self.variant, ("ball", "stochastic"))

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss after the jump, if there is one."""
        if self.variant == "stochastic":
            dimension = sum(p.numel() for p in batch.params)
            noise = gaussian(batch.params, batch.generator, sigma=self.radius / math.sqrt(dimension))
            return [Term(), Term(gradient=[n if used else None for n, used in zip(noise, batch.is_used())])]
        gradient = batch.gradient()
        since = batch.memory.get(MEMORY)
        if since is None:
            since = torch.full((), self.wait + 1, device=gradient[0].device)
        jumps = (tree_norm(gradient) <= self.threshold) & (since > self.wait)
        batch.memory[MEMORY] = torch.where(jumps, 0, since) + 1
        shift = uniform_in_ball(batch.params, batch.generator, radius=self.radius)
        shift = [s * (jumps.to(s.dtype) if used else 0) for s, used in zip(shift, batch.is_used())]
        batch.shift = shift
        return [Term()] if self.gradient_at == "before" else [Term(perturbation=shift)]


def uniform_in_ball(shapes_like: list[Tensor], generator: torch.Generator, *, radius: float) -> list[Tensor]:
    r"""Return a draw from the uniform distribution on the ball of a radius, over all tensors jointly.

    .. math:: \xi = r\, u^{1/d}\, z / \|z\|_2, \qquad z \sim N(0, I_d), \quad u \sim U(0, 1)
    """
    direction = gaussian(shapes_like, generator, sigma=1.0)
    dimension = sum(tensor.numel() for tensor in shapes_like)
    share = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64) ** (1 / dimension)
    length = radius * share.to(direction[0].device) / (tree_norm(direction) + TINY)
    return [z * length.to(z.dtype) for z in direction]


class PublishedConstants(NamedTuple):
    """Step size and thresholds of algorithm 1, in its symbols: eta, r, g_thres, f_thres, t_thres."""

    learning_rate: float
    radius: float
    threshold: float
    decrease: float
    wait: float


def published_constants(
    *, smoothness: float, hessian_lipschitz: float, epsilon: float, c: float, delta: float, gap: float, dimension: int
) -> PublishedConstants:
    r"""Return the step size and thresholds with which the paper proves convergence.

    .. math::

        \chi = 3 \max\{\log(d \ell \Delta_f / (c\, \epsilon^2 \delta)), 4\}, \quad \eta = c / \ell, \quad
        r = \frac{\sqrt c\, \epsilon}{\chi^2 \ell}, \quad g_{\text{thres}} = \frac{\sqrt c\, \epsilon}{\chi^2}, \quad
        f_{\text{thres}} = \frac{c}{\chi^3} \sqrt{\epsilon^3 / \rho}, \quad
        t_{\text{thres}} = \frac{\chi}{c^2} \frac{\ell}{\sqrt{\rho \epsilon}}

    Parameters
    ----------
    smoothness, hessian_lipschitz
        Lipschitz constants l of the gradient and rho of the Hessian.
    epsilon
        The accuracy asked for.
    c, delta, gap
        The proof's absolute constant, the probability of failure, and the bound of the first value over the minimum.
    dimension
        Number of parameters d.

    Notes
    -----
    Source: Jin et al., ICML 2017, algorithm 1.

    Examples
    --------
    >>> constants = published_constants(
    ...     smoothness=2.0, hessian_lipschitz=1.0, epsilon=0.01, c=1.0, delta=0.1, gap=1.0, dimension=100
    ... )
    >>> round(constants.threshold / constants.radius, 12)
    2.0
    """
    chi = 3 * max(math.log(dimension * smoothness * gap / (c * epsilon**2 * delta)), 4.0)
    return PublishedConstants(
        learning_rate=c / smoothness,
        radius=math.sqrt(c) * epsilon / (chi**2 * smoothness),
        threshold=math.sqrt(c) * epsilon / chi**2,
        decrease=c / chi**3 * math.sqrt(epsilon**3 / hessian_lipschitz),
        wait=chi / c**2 * smoothness / math.sqrt(hessian_lipschitz * epsilon),
    )

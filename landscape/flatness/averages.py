"""How much a lane's loss rises on average under random changes of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from landscape.flatness.study import Estimate, Study
from landscape.perturbation import lane_means, random_direction
from landscape.randomness import stream
from landscape.risk import ClassRisk
from landscape.risk.normalised import logit_normalised

# A perturbation (n,) of the weights from a stream.
Draw = Callable[[torch.Generator], Tensor]


def _pair_increases(study: Study, key: str, draw: Draw, *, of: ClassRisk | None = None, draws: str = "") -> np.ndarray:
    """Return L(w + e) - L(w) and L(w - e) - L(w) of every pair and lane, (K, 2, L)."""
    risk = study.risk if of is None else of
    theta, classes, lanes = risk.theta, study.classes, study.lanes

    def walk(pair: int) -> Mapping[str, object]:
        offset = draw(stream(study.seed, f"flatness/{draws or key}/pair={pair}"))
        return {"loss": [lane_means(lanes, risk.losses(theta + sign * offset, classes)) for sign in (1.0, -1.0)]}

    def centre() -> Mapping[str, object]:
        return {"loss": lane_means(lanes, risk.losses(theta, classes))}

    at_theta = study.block(f"{key}/centre", centre)["loss"]
    pairs = [study.block(f"{key}/pair={k}", partial(walk, k))["loss"] for k in range(study.options.num_pairs)]
    return np.stack(pairs) - at_theta


def _mean(samples: np.ndarray) -> Estimate:
    """Return mean and standard error over the first axis of (K, L)."""
    return Estimate(samples.mean(0), samples.std(0, ddof=1) / math.sqrt(len(samples)))


def _over_pairs(increases: np.ndarray) -> Estimate:
    return _mean(increases.mean(1))


def _gaussian(study: Study) -> np.ndarray:
    def draw(generator: torch.Generator) -> Tensor:
        return study.options.sigma * random_direction(study.risk, generator, is_filter_normalised=False)

    return _pair_increases(study, "gaussian", draw)


def mean_increase(study: Study) -> Estimate:
    r"""Return the expected increase under Gaussian noise, from antithetic pairs.

    .. math:: E_{e \sim N(0, \sigma^2 I)}\, \tfrac12 (L(w + e) + L(w - e)) - L(w)

    Where the loss has four derivatives around w this is :math:`\tfrac{\sigma^2}{2} \mathrm{tr} H + O(\sigma^4)`. It is not in
    networks with kinks (ReLU, max pooling), at no sigma: the kinks within reach of the noise carry curvature of their own, which
    the Hessian at w does not hold (:data:`landscape.flatness.catalogue.KINKS`).

    Parameters
    ----------
    study
        ``options.sigma`` in weight units, ``options.num_pairs``.

    Returns
    -------
    Estimate
        (L,) nats per example, with the standard error over pairs; images as given.

    Notes
    -----
    Source: expected sharpness, Neyshabur et al., NeurIPS 2017. The pairs cancel the slope and every odd order, which at
    a class that is not stationary are the larger part of a plain draw.

    Critique: a rescaling of layers that leaves the function as it is changes it at will (Dinh et al., 2017), so
    networks whose weights have other norms cannot be compared.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> from landscape.risk import lanes_of
    >>> bowl = AnalyticRisk(lambda x: (x @ x)[None] / 2, torch.ones(3000, dtype=torch.float64))
    >>> found = mean_increase(Study(bowl, lanes_of(bowl, "all")))  # smooth: sigma^2 / 2 tr H = 0.15
    >>> bool(abs(found.value[0] - 0.15) < 5 * found.stderr[0] < 0.01)
    True
    """
    return _over_pairs(_gaussian(study))


def lpf_increase(study: Study) -> Estimate:
    r"""Return the loss under a Gaussian low-pass filter, minus the loss.

    .. math:: (L * N(0, \sigma^2 I))(w) - L(w) = E_e L(w + e) - L(w)

    Parameters
    ----------
    study
        ``options.sigma`` in weight units; ``options.num_pairs`` draws, the first of each pair of :func:`mean_increase`.

    Returns
    -------
    Estimate
        (L,) nats per example, with the standard error over draws.

    Notes
    -----
    Source: Bisla, Wang and Choromanska, *Low-Pass Filtering SGD for Recovering Flat Optima*, AISTATS 2022, section 3.
    Differs from it in: (1) minus the loss, which is no flatness; (2) ``num_pairs`` draws, not 100.

    Critique: in expectation the same number as :func:`mean_increase`, estimated as published from independent draws; the
    slope stays in every draw, so that the error is larger. The critique of that measure holds here as well.
    """
    return _mean(_gaussian(study)[:, 0])


def filter_relative_increase(study: Study) -> Estimate:
    r"""Return the expected increase under perturbations of a given size relative to every filter.

    .. math:: E_d\, L(w + d) - L(w), \qquad \|d_f\|_2 = \xi \|w_f\|_2 \; \text{(sphere) or} \; \le \xi \|w_f\|_2
        \; \text{(ball, uniform)}

    Parameters
    ----------
    study
        ``options.relative_radius`` (the xi), ``options.placement``, ``options.num_pairs``.

    Returns
    -------
    Estimate
        (L,) nats per example, with the standard error over antithetic pairs. ``placement`` says where d lies.

    Notes
    -----
    Source: direction of Li et al., NeurIPS 2018, section 4 (biases and normalisation layers stay); average of Stutz et
    al., *Relating Adversarially Robust Generalization to Flat Minima*, ICCV 2021. Differs from the latter in: (1) filters,
    not layers; (2) antithetic pairs; (3) the ball is uniform in volume, not in the norm.

    Critique: rescaling filters leaves it as it is where the next layer undoes the scale, but normalisation layers, which
    carry scale too, are left out; like every measure it falls with confidence alone (see ``docs/flatness.md``).
    """
    risk, options = study.risk, study.options

    def draw(generator: torch.Generator) -> Tensor:
        direction = random_direction(risk, generator, is_filter_normalised=True)
        if options.placement == "ball":
            direction = _inside(study, direction, generator)
        return options.relative_radius * direction

    found = _over_pairs(_pair_increases(study, f"filter-{options.placement}", draw))
    return Estimate(found.value, found.stderr, attributes={"placement": options.placement})


def _inside(study: Study, direction: Tensor, generator: torch.Generator) -> Tensor:
    """Move each filter of a direction from the sphere into the ball: a radius is U^(1/d) of it, for d weights."""
    layout = study.risk.layout
    parts = []
    for part, dims in zip(layout.unflatten(direction), layout.filter_dims):
        numbering = np.atleast_1d(np.asarray(dims, dtype=int)) if part.dim() > 1 else ()
        shape = [size if axis in numbering else 1 for axis, size in enumerate(part.shape)]
        uniform = torch.rand(shape, generator=generator).to(part)
        parts.append(part * uniform ** (math.prod(shape) / max(part.numel(), 1)))
    return layout.flatten(parts)


def _adaptive(study: Study, key: str, of: ClassRisk | None = None) -> np.ndarray:
    def draw(generator: torch.Generator) -> Tensor:
        noise = random_direction(study.risk, generator, is_filter_normalised=False)
        return study.options.adaptive_radius * study.risk.theta.abs() * noise

    return _pair_increases(study, key, draw, of=of, draws="adaptive")


def adaptive_mean_increase(study: Study) -> Estimate:
    r"""Return the expected increase under Gaussian noise in proportion to every weight.

    .. math:: E_{e \sim N(0, r^2 \mathrm{diag}(w^2))}\, L(w + e) - L(w)
        = \tfrac{r^2}{2} \sum_i w_i^2 H_{ii} + O(r^4)

    Parameters
    ----------
    study
        ``options.adaptive_radius`` (the r, in units of abs(w_i)), ``options.num_pairs``.

    Returns
    -------
    Estimate
        (L,) nats per example, with the standard error over antithetic pairs.

    Notes
    -----
    Source: average-case adaptive sharpness, Andriushchenko et al., *A Modern Look at the Relationship between Sharpness
    and Generalization*, ICML 2023, section 3. Differs from the released code in: (1) antithetic pairs; (2) all examples
    under study in one expectation, not batches.

    Critique: invariant to rescalings of layers, but not to the scale of the logits; Andriushchenko et al. find that it
    often does not go with generalisation, and follows the learning rate instead.
    """
    return _over_pairs(_adaptive(study, "adaptive"))


def normalised_mean_increase(study: Study) -> Estimate:
    r"""Return :func:`adaptive_mean_increase` of the network with normalised logits.

    .. math:: f \leftarrow (f - \bar f) / \|f - \bar f\|_2 \quad \text{per example, in plain cross-entropy}

    Parameters
    ----------
    study
        ``options.adaptive_radius``, ``options.num_pairs``; the draws are those of :func:`adaptive_mean_increase`.

    Returns
    -------
    Estimate
        (L,) nats per example of the normalised network, with the standard error over antithetic pairs; NaN for an
        analytic risk, which has no logits.

    Notes
    -----
    Source: Andriushchenko et al., ICML 2023, section 3 (logit normalisation).

    Critique: what is left when confidence is taken away, as far as it is one scale per example; its values are small and
    none is the deployed network's. The noise is in proportion to the weights, so that scaling the last layer changes
    nothing either.
    """
    if study.network is None:
        return study.without_examples("logits")
    return _over_pairs(_adaptive(study, "normalised-adaptive", logit_normalised(study.network)))

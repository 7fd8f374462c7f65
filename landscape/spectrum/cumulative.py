"""Bounds on cumulative spectral densities from raw quadratures: certain ones, and a band over random probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import LandscapeError
from landscape.spectrum.density import SpectralSample


def dimensions_left(atoms: np.ndarray, probes: Sequence[SpectralSample], num_parameters: int, level: float) -> int:
    """Return n - d, checked against the atoms, the probes and the level."""
    num_left = num_parameters - len(atoms)
    if not 0 < level < 1:
        raise LandscapeError(f"level: expected a probability between 0 and 1, got {level}")
    if num_left < 0:
        raise LandscapeError(f"atoms: expected at most {num_parameters} eigenvalues, got {len(atoms)}")
    if num_left and not probes:
        raise LandscapeError(f"probes: expected at least one quadrature of the {num_left} dimensions left, got none")
    return num_left


def cumulative_bracket(values: np.ndarray, weights: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return bounds on the start vector's spectral measure of :math:`(-\infty, x]`, certain up to rounding.

    With nodes :math:`\theta_1 < \dots < \theta_k` the Chebyshev-Markov-Stieltjes inequalities say
    :math:`\sum_{j<i} w_j \le \mu(-\infty, \theta_i) \le \mu(-\infty, \theta_i] \le \sum_{j \le i} w_j`. Between two nodes
    only monotony is left: the lower bound is that of the node before, the upper bound that of the node after, two
    weights apart.

    Parameters
    ----------
    values, weights
        (k,) nodes, ascending, and weights of one quadrature.
    at
        (m,) points x.

    Returns
    -------
    lower, upper
        (m,) each. Their largest difference bounds the Kolmogorov distance from the quadrature's own distribution.

    Examples
    --------
    >>> lower, upper = cumulative_bracket(np.array([0.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25]), np.array([1.0, 1.5]))
    >>> lower.tolist(), upper.tolist()
    ([0.25, 0.25], [0.75, 1.0])
    """
    if values.shape != weights.shape or np.any(np.diff(values) < 0):
        raise LandscapeError(
            f"quadrature: expected ascending nodes and as many weights, got {values.shape} and {weights.shape}; sort them"
        )
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    before = np.searchsorted(values, at, side="right")  # nodes <= x
    from_below = np.searchsorted(values, at, side="left")  # nodes < x
    lower = sums[np.maximum(before - 1, 0)]
    upper = sums[np.minimum(from_below + 1, len(values))]
    return lower, upper


@dataclass(frozen=True)
class CumulativeBand:
    """Bounds on the share of eigenvalues at most x.

    Attributes
    ----------
    lower, upper
        (m,) bounds that hold together with the stated confidence.
    estimate
        (m,) share of the pooled quadratures.
    deterministic, monte_carlo
        Largest half-width owed to the finite number of steps, and to the random probes.
    """

    lower: np.ndarray
    upper: np.ndarray
    estimate: np.ndarray
    deterministic: float
    monte_carlo: float


def cumulative_band(
    atoms: np.ndarray,
    probes: Sequence[SpectralSample],
    num_parameters: int,
    at: np.ndarray,
    *,
    level: float = 0.95,
) -> CumulativeBand:
    r"""Return a band for the cumulative spectral density, at all points at once.

    Atoms are exact jumps of 1/n. In the complement the mean of P brackets is widened by the random part
    :math:`\sqrt{4 \log(2 N / \delta) / (P (N + 2))}`, which holds at all N eigenvalues together.

    Notes
    -----
    Chen, Trogdon and Ubaru, *Analysis of stochastic Lanczos quadrature for spectrum approximation*, ICML 2021
    (arXiv:2105.06595): the tails of u'Pu for a projector P are those of a beta distribution, sub-Gaussian with
    variance proxy 1 / (2 (N + 2)).
    """
    num_left = dimensions_left(atoms, probes, num_parameters, level)
    exact = np.searchsorted(np.sort(atoms), at, side="right") / num_parameters
    if num_left == 0:
        return CumulativeBand(exact, exact, exact, 0.0, 0.0)
    share = num_left / num_parameters
    brackets = [cumulative_bracket(p.values, p.weights, at) for p in probes]
    lower, upper = (np.mean([b[side] for b in brackets], 0) for side in (0, 1))
    estimate = np.mean([[p.weights[p.values <= x].sum() for x in at] for p in probes], 0)
    random = math.sqrt(4 * math.log(2 * num_left / (1 - level)) / (len(probes) * (num_left + 2)))
    return CumulativeBand(
        exact + share * np.maximum(lower - random, 0.0),
        exact + share * np.minimum(upper + random, 1.0),
        exact + share * estimate,
        share * float((upper - lower).max()) / 2,
        share * random,
    )

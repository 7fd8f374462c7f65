r"""How far beyond its outermost Ritz values a Lanczos run from a random start may have missed an eigenvalue.

The characteristic polynomial :math:`p_m` of the projected matrix is the monic polynomial of degree m that minimises
:math:`\|p(H) u\|`, and its norm is the product of the couplings. So an eigenvalue :math:`\lambda` outside the Ritz values whose
unit eigenvector v holds the share :math:`w = (u^T v)^2` of the start has

.. math:: w \le W(\lambda) = \prod_j \beta_j^2 \Big/ \prod_j (\lambda - \theta_j)^2 .

W falls monotonically away from the Ritz values. For a start uniform on the sphere w is beta distributed whatever H is, hence
an end beyond the point where W has fallen to the p-quantile of w is missed with probability p at most: at every length of
the run at once, so that a run may stop when the point is near enough. Source: van Dorsselaer, Hochstenbach and van der
Vorst, *Computing probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos method*, SIAM J.
Matrix Anal. Appl. 22, 2000, who bound p_m in the same way; several independent starts are joined by Fisher's method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.special
import scipy.stats

from landscape.spectrum.lanczos import RitzPairs

# Halvings of the bracket in which a bound is sought: to 1e-6 of its distance over forty decades.
NUM_HALVINGS = 64


def smallest_share(size: int, probability: float, random_share: float = 1.0) -> float:
    r"""Return a share (u'v)^2 that a random unit vector u of ``size`` dimensions falls below with at most ``probability``.

    :math:`P[(u^T v)^2 \le t] \le 2 \sqrt{t} / B(1/2, (n - 1) / 2)`, the density of the beta distribution being below its
    leading term.

    Parameters
    ----------
    random_share
        The share of a start's squared norm that is random, the rest being a fixed vector: added to a fixed number, a
        unimodal and symmetric random one is no more likely to be near zero than alone.
    """
    if size < 3:
        return float(scipy.special.betaincinv(0.5, (size - 1) / 2, probability)) * random_share if size > 1 else 1.0
    return (probability * float(scipy.special.beta(0.5, (size - 1) / 2)) / 2) ** 2 * random_share


def chance_of_share(log_share: float, size: int) -> float:
    """Return a bound on the probability that a random unit vector has at most the share exp(``log_share``)."""
    if log_share >= 0:
        return 1.0
    if size < 3:
        return float(scipy.special.betainc(0.5, (size - 1) / 2, math.exp(log_share))) if size > 1 else 1.0
    return min(1.0, 2 * math.exp(log_share / 2) / float(scipy.special.beta(0.5, (size - 1) / 2)))


def log_missed_share(ritz: RitzPairs, point: float) -> float:
    """Return log W at a point outside the Ritz values: what share of the start an eigenvalue there may have at most."""
    distances = np.abs(ritz.values - point)
    if not len(distances) or not distances.min() > 0:
        return 0.0 if len(distances) else -math.inf
    return min(0.0, 2 * (ritz.log_couplings - float(np.log(distances).sum())))


def missed_distance(ritz: RitzPairs, share: float, *, is_low: bool) -> float:
    """Return how far below the lowest (or above the highest) Ritz value an eigenvalue with at least ``share`` may lie.

    0 for an exhausted space, which holds every eigenvalue that the start holds.
    """
    if ritz.is_exhausted or not len(ritz.values):
        return 0.0
    offsets = ritz.values - ritz.values[0] if is_low else ritz.values[-1] - ritz.values
    return _distance_where(lambda d: 2 * (ritz.log_couplings - float(np.log(offsets + d).sum())), math.log(share), ritz)


def joint_distance(runs: Sequence[RitzPairs], end: float, size: int, probability: float, *, is_low: bool) -> float:
    r"""Return how far beyond ``end`` an eigenvalue may lie that all independent random starts have missed.

    With :math:`U_i` the chance that a start holds as little as it does, minus twice the sum of their logarithms is
    chi-squared with 2K degrees of freedom (Fisher): the product falls below
    :math:`\exp(-\chi^2_{2K, 1 - p} / 2)` with probability p.

    Parameters
    ----------
    runs
        Ritz pairs of runs with one operator from independent starts on the sphere of ``size`` dimensions.
    end
        At or beyond the outermost Ritz value of all runs.
    """
    if not runs or all(run.is_exhausted for run in runs):
        return 0.0 if runs else math.inf
    limit = -float(scipy.stats.chi2.ppf(1 - probability, 2 * len(runs))) / 2
    sign = -1.0 if is_low else 1.0

    def log_chance(distance: float) -> float:
        point = end + sign * distance
        if any(run.is_exhausted and len(run.values) for run in runs):
            return -math.inf
        return sum(math.log(max(chance_of_share(log_missed_share(run, point), size), 1e-300)) for run in runs)

    return _distance_where(log_chance, limit, max(runs, key=lambda run: float(np.ptp(run.values))))


def _distance_where(function: object, limit: float, ritz: RitzPairs) -> float:
    """Return the distance at which a falling function reaches a limit, rounded up."""
    scale = max(
        float(np.abs(ritz.values).max()), ritz.coupling, math.exp(min(ritz.log_couplings / len(ritz.values), 700))
    )
    if not scale > 0:
        return 0.0
    low, high = scale * 1e-18, scale
    for _ in range(60):
        if function(high) <= limit:  # type: ignore[operator]
            break
        high *= 4
    else:
        return math.inf
    for _ in range(NUM_HALVINGS):
        middle = math.sqrt(low * high)
        if function(middle) <= limit:  # type: ignore[operator]
            high = middle
        else:
            low = middle
        if high <= low * (1 + 1e-6):
            break
    return high


def shifted_by_couplings(point: float, values: np.ndarray, residuals: np.ndarray) -> float:
    r"""Return a lower bound of H from one of its complement, whose couplings to deflated Ritz pairs are all known.

    A run's deflated pairs couple to the complement through its next vector alone, with their residuals. By the Schur
    complement the end of the complement moves by :math:`\sum_j r_j^2 / (\theta_j - \lambda)` at most.

    Parameters
    ----------
    point
        Lower bound of the complement's spectrum; for an upper bound, pass everything with the other sign.
    values, residuals
        (d,) of the deflated pairs; those below ``point`` bound the spectrum themselves.
    """
    if not len(values) or not math.isfinite(point):
        return point
    reach = float(np.sqrt(np.sum(residuals**2)))
    low, high = min(point, float(values.min())) - reach, min(point, float(values.min()))
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        if values.min() > middle and middle + np.sum(residuals**2 / (values - middle)) <= point:
            low = middle
        else:
            high = middle
    return low

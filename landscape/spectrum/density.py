"""Statistics of a spectrum from raw quadrature nodes and weights; nothing here is smoothed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from landscape.spectrum.lanczos import RitzPairs


@dataclass(frozen=True)
class SpectralSample:
    """One probe's picture of a spectrum of n eigenvalues.

    Attributes
    ----------
    values, weights
        (k,) nodes and weights; the weights sum to 1.
    """

    values: np.ndarray
    weights: np.ndarray

    def functional(self, function: np.ufunc | object, num_parameters: int) -> float:
        """Return the estimate of ``sum_i f(lambda_i)``."""
        return num_parameters * float(np.sum(self.weights * function(self.values)))  # type: ignore[operator]


def node_at_zero(values: np.ndarray, first: np.ndarray, couplings: np.ndarray) -> SpectralSample:
    r"""Return the quadrature of a Lanczos run with a node at exactly zero, where most eigenvalues of a network lie.

    A Gauss rule puts its nodes anywhere near a mass point inside the spectrum: one on it, or one on either side, as the
    number of steps happens to be odd or even. Then all the mass is a node spacing away from where it is, and tr|H| of a
    residual network comes out at twice its value. One more node at zero, as in Gauss-Radau rules, costs no product:
    with T the projected matrix and :math:`\beta` its coupling to the rest,

    .. math:: T' = \begin{pmatrix} T & \beta e_k \\ \beta e_k^T & \beta^2 e_k^T T^{-1} e_k \end{pmatrix}

    is singular. The rule is exact for polynomials up to degree 2k; of all measures with these moments it has the
    smallest mean of :math:`|x|`.

    Parameters
    ----------
    values, first, couplings
        (k,) Ritz values, ascending; first components of the eigenvectors of T; beta times their last components.

    Returns
    -------
    SpectralSample
        k + 1 nodes; the k of the Gauss rule where zero is not inside the spectrum, or is a node already (another node
        would have to leave the spectrum).

    Notes
    -----
    Golub, *Some modified matrix eigenvalue problems*, SIAM Review 15, 1973; the extremal property is that of canonical
    representations, Krein and Nudelman, *The Markov Moment Problem and Extremal Problems*, 1977.

    Examples
    --------
    >>> rule = node_at_zero(np.array([-1.0, 1.0]), np.array([0.6, 0.8]), np.array([0.4, -0.3]))
    >>> rule.values.round(3).tolist(), rule.weights.round(3).tolist()
    ([-1.154, 0.0, 1.084], [0.27, 0.184, 0.546])
    """
    gauss = SpectralSample(values, first**2)
    size = len(values)
    if size < 2 or not values[0] < 0 < values[-1] or not couplings.any() or (values == 0).any():
        return gauss
    matrix = np.diag(np.append(values, np.sum(couplings**2 / values)))
    matrix[size, :size] = couplings
    if not np.isfinite(matrix).all():
        return gauss
    nodes, vectors = scipy.linalg.eigh(matrix)
    if nodes[0] < values[0] - abs(couplings[0]) or nodes[-1] > values[-1] + abs(couplings[-1]):
        return gauss
    nodes[np.abs(nodes).argmin()] = 0.0
    return SpectralSample(nodes, (first @ vectors[:size]) ** 2)


def probe_quadrature(ritz: RitzPairs, *, within: tuple[float, float] = (-math.inf, math.inf)) -> SpectralSample:
    """Return what a whole run says about its start vector's spectral measure, with a node at zero where that helps.

    ``within`` are the ends of the spectrum: a rule with a node beyond them is none, and the Gauss rule takes its place.
    """
    gauss = SpectralSample(ritz.values, ritz.weights)
    if ritz.is_exhausted or not ritz.coupling:
        return gauss
    rule = node_at_zero(ritz.values, ritz.coordinates[0], ritz.coupling * ritz.coordinates[-1])
    return rule if within[0] <= rule.values.min() and rule.values.max() <= within[1] else gauss


def deflated_sample(atoms: np.ndarray, ritz: RitzPairs | SpectralSample, num_parameters: int) -> SpectralSample:
    """Join exact atoms (one eigenvalue each) with a quadrature of the complement.

    Parameters
    ----------
    atoms
        (d,) eigenvalues whose eigenvectors were deflated.
    ritz
        Quadrature from a start vector in the orthogonal complement, whose dimension is n - d.
    num_parameters
        n.

    Notes
    -----
    Deflation leaves the random part of the estimate to the complement alone; explicit deflation as in Bhattacharjee
    et al., *Improved Spectral Density Estimation via Explicit and Implicit Deflation*, SODA 2025.
    """
    share = len(atoms) / num_parameters
    values = np.concatenate([atoms, ritz.values])
    weights = np.concatenate([np.full(len(atoms), 1.0 / num_parameters), ritz.weights * (1.0 - share)])
    return SpectralSample(values, weights / weights.sum())


def mean_and_stderr(samples: np.ndarray) -> tuple[float, float]:
    """Return the mean of independent samples (P,) and its standard error; the error is NaN for a single sample."""
    stderr = float(np.std(samples, ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else float("nan")
    return float(np.mean(samples)), stderr


def negative_energy(sample: SpectralSample) -> float:
    r"""Return :math:`\mathrm{tr}(H_-) / \mathrm{tr}|H|` in [0, 1], 0 for the zero operator.

    Lipschitz in the spectrum, so quadrature converges to it; the "fraction of negative eigenvalues" would sit on
    the bulk at zero.
    """
    total = float(np.sum(sample.weights * np.abs(sample.values)))
    return float(np.sum(sample.weights * np.maximum(-sample.values, 0.0))) / total if total > 0 else 0.0

"""Statistics of a spectrum from raw quadrature nodes and weights; nothing here is smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

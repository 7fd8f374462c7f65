r"""Confidence intervals over random probes, and deterministic brackets, from raw quadrature nodes and weights.

The setting throughout: ``atoms`` are exact eigenvalues whose eigenvectors were deflated; each probe's quadrature describes
the spectral measure of a unit vector u uniform on the sphere of the N = n - d dimensions left. For a function g of
the operator there, u'g(H)u has the mean :math:`\bar g = \mathrm{tr}\,g / N` and the *known* variance

.. math:: \mathrm{Var}[u^T g(H) u] = \frac{2}{N + 2} \left(\overline{g^2} - \bar g^2\right),

and the right-hand side is an average over the same quadratures. So the error of an estimate does not rest on the
spread of two or three probes: :math:`\overline{g^2}` is an average over all eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats

from landscape.errors import LandscapeError
from landscape.spectrum.cumulative import cumulative_bracket, dimensions_left
from landscape.spectrum.density import SpectralSample, node_at_zero

Function = Callable[[np.ndarray], np.ndarray]

# Steps taken back to see how far a quadrature still moves, as a fraction of its steps.
TRUNCATION_SHARE = 0.25
# Error of an atom, in units of the largest one: that of an eigenvalue with a residual of 1e-5.
ATOM_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """An estimate with its error bar.

    Attributes
    ----------
    estimate, lower, upper
        The estimate and its confidence interval.
    stderr
        Standard error over the random probes.
    truncation
        How far the estimate still moves with the number of steps: added to both sides of the interval.
    dof
        Effective degrees of freedom behind ``stderr``.
    """

    estimate: float
    lower: float
    upper: float
    stderr: float
    truncation: float
    dof: float


@dataclass(frozen=True)
class _Moments:
    """Mean, variance of the mean and effective degrees of freedom of a function over probes."""

    mean: float
    variance: float
    dof: float


def _moments(function: Function, probes: Sequence[SpectralSample], num_left: int) -> _Moments:
    r"""Return the mean over probes and its sphere variance.

    Degrees of freedom by Satterthwaite: the relative variance of the estimated variance is that of
    :math:`\overline{g^2}`, :math:`2 / (P k)` with :math:`k = (\sum g_i^2)^2 / \sum g_i^4` eigenvalues that matter.
    """
    first = np.array([probe.weights @ function(probe.values) for probe in probes])
    mean = float(first.mean())
    centred = [(probe.weights, function(probe.values) - mean) for probe in probes]
    second = float(np.mean([weights @ values**2 for weights, values in centred]))
    fourth = float(np.mean([weights @ values**4 for weights, values in centred]))
    count = num_left * second**2 / fourth if fourth > 0 else math.inf
    variance = 2 / (num_left + 2) * second / len(probes)
    return _Moments(mean, variance, len(probes) * max(count, 1.0))


def jacobi_matrix(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the diagonal (k,) and off-diagonal (k - 1,) of the tridiagonal matrix behind a Gauss quadrature.

    Lanczos on the diagonal matrix of the nodes from the square roots of the weights, fully orthogonalised (Gautschi,
    *Orthogonal Polynomials*, 2004, section 2.2.3). Nodes of no weight are left out.
    """
    kept = weights > 0
    nodes, vector = values[kept], np.sqrt(weights[kept])
    size = len(nodes)
    basis = np.zeros((size, size))
    alphas, betas = np.zeros(size), np.zeros(max(size - 1, 0))
    vector = vector / math.sqrt(vector @ vector)
    for step in range(size):
        basis[step] = vector
        product = nodes * vector
        alphas[step] = vector @ product
        for _ in range(2):
            product = product - (basis[: step + 1] @ product) @ basis[: step + 1]
        if step + 1 < size:
            betas[step] = math.sqrt(product @ product)
            if betas[step] == 0.0:
                return alphas[: step + 1], betas[:step]
            vector = product / betas[step]
    return alphas, betas


def shortened(matrix: tuple[np.ndarray, np.ndarray], num_steps: int) -> tuple[SpectralSample, SpectralSample]:
    """Return the Gauss quadrature of the first ``num_steps`` steps of a run, and that with a node at 0.

    ``matrix`` is what :func:`jacobi_matrix` returns for the quadrature of all its steps.
    """
    alphas, betas = matrix
    num_steps = min(num_steps, len(alphas))
    values, vectors = scipy.linalg.eigh_tridiagonal(alphas[:num_steps], betas[: num_steps - 1])
    gauss = SpectralSample(values, vectors[0] ** 2)
    if num_steps == len(alphas):
        return gauss, gauss
    return gauss, node_at_zero(values, vectors[0], betas[num_steps - 1] * vectors[-1])


def _interval(estimate: float, variance: float, dof: float, level: float, truncation: float) -> Interval:
    stderr = math.sqrt(max(variance, 0.0))
    half = float(scipy.stats.t.ppf((1 + level) / 2, dof)) * stderr + truncation if stderr > 0 else truncation
    return Interval(estimate, estimate - half, estimate + half, stderr, truncation, dof)


def trace_interval(
    atoms: np.ndarray, probes: Sequence[SpectralSample], num_parameters: int, *, level: float = 0.95
) -> Interval:
    """Return the trace with its interval; a quadrature is exact for it, so nothing is truncated.

    Parameters
    ----------
    atoms
        (d,) exact eigenvalues.
    probes
        Quadratures of the complement, weights summing to 1.
    num_parameters
        n.
    level
        Confidence.
    """
    num_left = dimensions_left(atoms, probes, num_parameters, level)
    exact = float(atoms.sum())
    if num_left == 0:
        return Interval(exact, exact, exact, 0.0, 0.0, math.inf)
    moments = _moments(lambda x: x, probes, num_left)
    return _interval(exact + num_left * moments.mean, num_left**2 * moments.variance, moments.dof, level, 0.0)


@dataclass(frozen=True)
class _KnownTrace:
    """An exact trace, and by how much the estimate of tr(H_-) follows that of the trace."""

    value: float
    error: float
    slope: float

    @classmethod
    def of(cls, trace: Interval, probes: Sequence[SpectralSample]) -> _KnownTrace:
        r"""Return the regression of max(-x, 0) on x over the sphere, which the quadratures give."""

        def mean(function: Function) -> float:
            return float(np.mean([probe.weights @ function(probe.values) for probe in probes]))

        spread = mean(lambda x: x**2) - mean(lambda x: x) ** 2
        shared = -mean(lambda x: np.minimum(x, 0) ** 2) - mean(lambda x: x) * mean(lambda x: np.maximum(-x, 0))
        error = max(trace.upper - trace.estimate, trace.estimate - trace.lower)
        return cls(trace.estimate, error, shared / spread if spread > 0 else 0.0)


def _energy(
    atoms: np.ndarray, probes: Sequence[SpectralSample], num_left: int, known: _KnownTrace | None = None
) -> tuple[float, float]:
    """Return tr(H_-) / tr|H| from pooled numerator and denominator, and tr|H|."""
    negative = float(np.maximum(-atoms, 0).sum())
    total = float(np.abs(atoms).sum())
    if num_left:
        negative += num_left * float(np.mean([p.weights @ np.maximum(-p.values, 0) for p in probes]))
        total += num_left * float(np.mean([p.weights @ np.abs(p.values) for p in probes]))
    if known is not None:
        negative -= known.slope * (total - 2 * negative - known.value)
        negative = max(negative, 0.0, -known.value)
        total = known.value + 2 * negative
    return (negative / total if total > 0 else 0.0), total


def energy_interval(
    atoms: np.ndarray,
    probes: Sequence[SpectralSample],
    num_parameters: int,
    *,
    level: float = 0.95,
    trace: Interval | None = None,
) -> Interval:
    r"""Return the negative energy :math:`r = \mathrm{tr}(H_-) / \mathrm{tr}|H|` with its interval.

    The ratio is linearised (the delta method): its error is that of the mean of
    :math:`g(x) = (\max(-x, 0) - r |x|) / \mathrm{tr}|H|`, whose variance over the sphere the quadratures give. The
    interval is built on the scale of :math:`\log(r / (1 - r))`, hence within [0, 1], and widened by what Gauss rules and
    rules with a node at zero of the last quarter of the steps say. Where no negative node was seen the interval is [0, 0]: what may
    hide below zero is the business of :func:`landscape.spectrum.certificate.lower_bound`.

    Where the trace is exact, it and the ratio imply each other: with :math:`N = \mathrm{tr}(H_-)`,
    :math:`\mathrm{tr}|H| = \mathrm{tr} H + 2 N`. Then N alone is estimated, the probes' own trace as its control variate
    (:math:`\hat N - \beta (\hat t - \mathrm{tr} H)`, :math:`\beta` their regression), and :math:`r = N / (\mathrm{tr} H + 2 N)`
    has the error :math:`|\mathrm{tr} H| / (\mathrm{tr} H + 2 N)^2` times that of N: none where the trace is 0, r = 1/2.

    Parameters
    ----------
    atoms, probes, num_parameters, level
        As for :func:`trace_interval`; one probe is enough.
    trace
        The exact trace, whose own error widens the interval.

    Examples
    --------
    >>> probe = SpectralSample(np.array([-1.0, 1.0]), np.array([0.25, 0.75]))
    >>> interval = energy_interval(np.zeros(0), [probe] * 3, 1000)
    >>> interval.estimate, bool(interval.lower < 0.25 < interval.upper)
    (0.25, True)
    """
    num_left = dimensions_left(atoms, probes, num_parameters, level)
    known = _KnownTrace.of(trace, probes) if trace is not None and num_left else None
    ratio, total = _energy(atoms, probes, num_left, known)
    if num_left == 0 or total == 0:
        return Interval(ratio, ratio, ratio, 0.0, 0.0, math.inf)

    def linearised(x: np.ndarray) -> np.ndarray:
        if known is None:
            return (np.maximum(-x, 0) - ratio * np.abs(x)) / total
        return (np.maximum(-x, 0) - known.slope * x) * (known.value / total**2)

    moments = _moments(linearised, probes, num_left)
    variance = num_left**2 * moments.variance
    below, above = _truncation(ratio, atoms, probes, num_left, known)
    if known is not None:
        of_trace = known.error * abs(known.slope * known.value / total - ratio) / total
        below, above = below + of_trace, above + of_trace
    stderr = math.sqrt(variance)
    half = float(scipy.stats.t.ppf((1 + level) / 2, moments.dof)) * stderr
    lower, upper = _on_logit_scale(ratio, half)
    return Interval(ratio, max(lower - below, 0.0), min(upper + above, 1.0), stderr, max(below, above), moments.dof)


def _truncation(
    ratio: float, atoms: np.ndarray, probes: Sequence[SpectralSample], num_left: int, known: _KnownTrace | None
) -> tuple[float, float]:
    """Return how far below and above a negative energy the finite number of steps may have left it.

    Both rules of the last steps and of a quarter fewer are compared: Gauss rules see too much, as a mass at zero falls
    between their nodes, those with a node at zero too little. That of all steps has the smallest tr|H| that the probes
    allow, and their trace is exact, so a ratio below one half is bounded from below, one above it from above.
    """
    found, matrices = [], [jacobi_matrix(p.values, p.weights) for p in probes]
    for share in (0.0, TRUNCATION_SHARE / 2, TRUNCATION_SHARE):
        steps = [max(1, min(math.ceil((1 - share) * len(p.values)), len(p.values) - 1)) for p in probes]
        pairs = [shortened(matrix, k) for matrix, k in zip(matrices, steps)]
        found += [_energy(atoms, [pair[side] for pair in pairs], num_left, known)[0] for side in (0, 1)]
    moved = float(np.abs(np.array(found) - ratio).max())
    is_bound = all((p.values == 0).any() for p in probes)
    return 0.0 if is_bound and ratio <= 0.5 else moved, 0.0 if is_bound and ratio > 0.5 else moved


def _on_logit_scale(ratio: float, half: float) -> tuple[float, float]:
    """Return ratio -+ half, bent to stay within (0, 1)."""
    slope = ratio * (1 - ratio)
    if slope <= 0:
        return max(ratio - half, 0.0), min(ratio + half, 1.0)
    centre = scipy.special.logit(ratio)
    lower, upper = (float(scipy.special.expit(centre + side * half / slope)) for side in (-1, 1))
    return min(lower, ratio), max(upper, ratio)  # expit of logit rounds


def mass_interval(
    atoms: np.ndarray,
    probes: Sequence[SpectralSample],
    num_parameters: int,
    threshold: float,
    *,
    level: float = 0.95,
) -> Interval:
    r"""Return the share of eigenvalues below ``-threshold``, with its interval.

    The indicator is not smooth, so the quadrature enters by its bracket. For a projector of rank k, u'Pu follows a
    beta distribution with mean F = k / N and variance 2 F (1 - F) / (N + 2): the interval over P probes is Wilson's with
    P (N + 2) / 2 draws, around both ends of the bracket.

    Parameters
    ----------
    atoms, probes, num_parameters, level
        As for :func:`trace_interval`.
    threshold
        Not negative, in the units of the eigenvalues: tau times lambda_max.
    """
    num_left = dimensions_left(atoms, probes, num_parameters, level)
    if not threshold >= 0:
        raise LandscapeError(f"threshold: expected a number that is not negative, got {threshold}")
    exact = float((atoms < -threshold).sum()) / num_parameters
    # An eigenvalue at the threshold itself is on either side, by rounding.
    slack = ATOM_ROUNDING * float(np.abs(atoms).max(initial=0.0))
    surely = float((atoms < -threshold - slack).sum()) / num_parameters
    perhaps = float((atoms < -threshold + slack).sum()) / num_parameters
    if num_left == 0:
        return Interval(exact, surely, perhaps, 0.0, (perhaps - surely) / 2, math.inf)
    share = num_left / num_parameters
    brackets = [cumulative_bracket(p.values, p.weights, np.array([-threshold])) for p in probes]
    low, high = (float(np.mean([b[side][0] for b in brackets])) for side in (0, 1))
    estimate = float(np.mean([p.weights[p.values < -threshold].sum() for p in probes]))
    draws = len(probes) * (num_left + 2) / 2
    lower, upper = _wilson(low, draws, level)[0], _wilson(high, draws, level)[1]
    stderr = share * math.sqrt(max(estimate * (1 - estimate), 0.0) / draws)
    return Interval(
        exact + share * estimate,
        surely + share * lower,
        perhaps + share * upper,
        stderr,
        share * (high - low) / 2 + (perhaps - surely) / 2,
        draws,
    )


def _wilson(share: float, draws: float, level: float) -> tuple[float, float]:
    """Return Wilson's interval for a share observed in a number of draws."""
    z = float(scipy.stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * draws)) / (1 + z**2 / draws)
    half = z / (1 + z**2 / draws) * math.sqrt(max(share * (1 - share), 0.0) / draws + z**2 / (4 * draws**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def count_negative(
    values: np.ndarray,
    residuals: np.ndarray,
    *,
    noise: float = 0.0,
    orthogonality: float = 0.0,
    norm: float | None = None,
    certify_pairs: bool = True,
) -> int:
    r"""Return a lower bound on the index, the number of negative eigenvalues, from Ritz values.

    Cauchy interlacing: the i-th smallest eigenvalue of :math:`Q^T H Q` is at least the i-th smallest of H when the
    basis is orthonormal; residuals play no part. By Sylvester's law of inertia Q'HQ has no more negative eigenvalues
    than H for *any* Q of full rank, :math:`\delta = |Q^T Q - I|_2 < 1`; what orthogonality decides is how far T, whose
    eigenvalues the Ritz values are, lies from Q'HQ: :math:`|Q^T H Q - T| \le \delta (|T| + \beta) + \mathrm{noise}`. So,
    by Weyl's theorem, a value counts where

    .. math:: \theta + \mathrm{noise} + 2 \delta |H| < 0.

    With ``certify_pairs`` the residual is added as well, so that every counted value has an eigenvalue within
    [theta - residual, theta + residual], all of it negative: fewer, and each of them located.

    Parameters
    ----------
    values, residuals
        (k,) Ritz values and residual norms.
    noise
        Rounding of a product, in the units of the eigenvalues.
    orthogonality
        delta, the spectral norm (or any upper bound, such as the Frobenius norm).
    norm
        |H|; by default the largest Ritz value in modulus.
    certify_pairs
        Whether residuals count.

    Raises
    ------
    LandscapeError
        For an orthogonality defect of 1 or more: the basis may have lost rank and the bound means nothing.

    Examples
    --------
    >>> count_negative(np.array([-2.0, -1.0, 0.5]), np.array([0.1, 1.5, 0.0]))
    1
    >>> count_negative(np.array([-2.0, -1.0, 0.5]), np.array([0.1, 1.5, 0.0]), certify_pairs=False)
    2
    """
    if not orthogonality < 1:
        raise LandscapeError(
            f"orthogonality defect: expected below 1, got {orthogonality}: the basis lost its rank; reorthogonalise twice"
        )
    if len(values) == 0:
        return 0
    size = float(np.abs(values).max()) if norm is None else norm
    slack = noise + 2 * orthogonality * size + (residuals if certify_pairs else 0.0)
    return int((values + slack < 0).sum())

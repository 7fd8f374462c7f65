"""Traces of symmetric operators from matrix-vector products, each with its own error estimate.

Nothing here knows of networks: ``matmat`` maps (B, P, n) -> (B, P, n), B operators and P vectors each. Products stay in
the vectors' dtype, the P x P matrices are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError

Matmat = Callable[[Tensor], Tensor]
Method = Literal["xtrace", "hutchinson"]

# Directions of a sketch below this many units of rounding (times P) of its largest one are rounding.
RANK_EPS = 16.0
# A test vector is independent of the others when its leverage is 1 up to the rounding of the sketch.
LEVERAGE_SLACK = 1e-3


@dataclass(frozen=True)
class TraceEstimate:
    """Traces of B operators.

    Attributes
    ----------
    values, stderrs
        (B,) float64: the estimates and their standard errors, 0 where the estimate is exact.
    num_products
        Products spent on each operator.
    """

    values: Tensor
    stderrs: Tensor
    num_products: int


def xtrace(
    matmat: Matmat, starts: Tensor, *, deflated: Tensor | None = None, deflated_traces: Tensor | None = None
) -> TraceEstimate:
    r"""Return :math:`\mathrm{tr}(A)` of symmetric, possibly indefinite operators by XTrace, in 2 P products.

    With :math:`Q_{(i)}` a basis of the range of :math:`A \Omega` without its column i and :math:`\mu_i` the part of
    :math:`\omega_i` orthogonal to it,

    .. math:: t_i = \mathrm{tr}(Q_{(i)}^T A Q_{(i)}) + \frac{n - \dim Q_{(i)}}{|\mu_i|^2} \mu_i^T A \mu_i,

    and the estimate is the mean of the P exchangeable :math:`t_i`, its error that of a mean of independent ones.

    Parameters
    ----------
    matmat
        Products (B, P, n) -> (B, P, n).
    starts
        (B, P, n) test vectors of isotropic direction (:func:`landscape.spectrum.lanczos.sphere`); their length does not
        matter. P at least 2.
    deflated
        (B, d, n) orthonormal vectors, for instance exact eigenvectors or any Lanczos basis; the trace of the
        operator on them is added, the rest is estimated in their complement.
    deflated_traces
        (B,) the traces on ``deflated``: the sum of the eigenvalues, or the trace of T.

    Raises
    ------
    LandscapeError
        For fewer than 2 test vectors, shapes that do not fit, or products that are not finite.

    Notes
    -----
    Epperly, Tropp and Webber, *XTrace: Making the most of every sample in stochastic trace estimation*, 2024
    (arXiv:2301.07825). Different from the paper: (1) the basis comes from a truncated singular value decomposition, so
    operators of rank below P give their exact trace with error 0; (2) where at most 2 P dimensions are left, the
    trace is computed, not estimated.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([3.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    >>> starts = torch.randn(1, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> estimate = xtrace(lambda v: v @ A, starts)  # of rank below 3: exact
    >>> round(float(estimate.values), 9), float(estimate.stderrs)
    (2.0, 0.0)
    """
    basis, offset, num_left = _complement(starts, deflated, deflated_traces)
    num_vectors = starts.shape[1]
    if num_left <= 2 * num_vectors:
        return _exact(matmat, starts, basis, offset)
    tests = _unit(_project(starts, basis))
    sketch = _project(_finite(matmat(tests)), basis)
    frame, weights = torch.linalg.qr(sketch.mT)
    left, singular, right = torch.linalg.svd(weights.double())
    kept = singular > RANK_EPS * num_vectors * torch.finfo(starts.dtype).eps * singular[:, :1]
    # Rows are basis vectors, zero beyond the rank.
    frame = (frame @ left.to(frame.dtype)).mT * kept[:, :, None].to(frame.dtype)
    coefficients = torch.where(kept[:, :, None], singular[:, :, None] * right, 0.0)  # sketch_i = frame^T c_i
    products = _project(_finite(matmat(frame)), basis)
    small = _symmetric((frame @ products.mT).double())  # Q^T A Q
    overlaps = (frame @ tests.mT).double()  # Q^T Omega
    # Orthogonal to every column of the sketch but column i; zero where column i depends on the others.
    independent = (right.square() * kept[:, :, None]).sum(1) > 1 - LEVERAGE_SLACK  # (B, P)
    dual = torch.where(kept[:, :, None], right / singular.clamp_min(torch.finfo(torch.float64).tiny)[:, :, None], 0.0)
    dual = dual / torch.linalg.vector_norm(dual, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    dual = dual * independent[:, None]
    inside = overlaps - dual * (dual * overlaps).sum(1, keepdim=True)  # coordinates of the projected test vectors
    small_inside = small @ inside
    traces = small.diagonal(dim1=1, dim2=2).sum(1)[:, None] - (dual * (small @ dual)).sum(1)
    energy = (overlaps * coefficients).sum(1) - 2 * (inside * coefficients).sum(1) + (inside * small_inside).sum(1)
    lengths = (1 - inside.square().sum(1)).clamp_min(torch.finfo(torch.float64).eps)
    num_free = num_left - kept.sum(1, keepdim=True) + independent
    energy = torch.where(independent, energy, 0.0)
    return _mean(traces + num_free * energy / lengths, offset, 2 * num_vectors)


def xnystrace(
    matmat: Matmat, starts: Tensor, *, deflated: Tensor | None = None, deflated_traces: Tensor | None = None
) -> TraceEstimate:
    r"""Return :math:`\mathrm{tr}(A)` of positive semidefinite operators by XNysTrace, in P products.

    With :math:`H = \Omega^T A \Omega` and the Nystroem approximation :math:`A \Omega H^+ \Omega^T A` without test vector
    i, the trace of the rest is :math:`(n - P + 1) / (|\mu_i|^2 (H^{-1})_{ii})`, :math:`\mu_i` the part of
    :math:`\omega_i` orthogonal to the other test vectors.

    Parameters
    ----------
    matmat, starts, deflated, deflated_traces
        As for :func:`xtrace`; ``deflated`` must be invariant for the operator (eigenvectors) or else only orthonormal,
        the complement of a semidefinite operator being semidefinite.

    Raises
    ------
    LandscapeError
        As :func:`xtrace`, and where the sketch has a negative eigenvalue beyond rounding.

    Notes
    -----
    Epperly, Tropp and Webber 2024, section 2.3. Different from the paper: a truncated pseudo-inverse in place of
    a shifted Cholesky factor, so operators of rank below P give their exact trace with error 0.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    >>> starts = torch.randn(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> round(float(xnystrace(lambda v: v @ A, starts).values), 9)
    4.0
    """
    basis, offset, num_left = _complement(starts, deflated, deflated_traces)
    num_vectors = starts.shape[1]
    if num_left <= num_vectors:
        return _exact(matmat, starts, basis, offset)
    # Orthonormal test vectors condition H like A itself; triangular factors keep the leave-one-out quantities.
    tests = _unit(_project(starts, basis))
    sketch = _project(_finite(matmat(tests)), basis)
    small = _symmetric((tests @ sketch.mT).double())
    gram = _symmetric((sketch @ sketch.mT).double())
    values, vectors = torch.linalg.eigh(small)
    tolerance = RANK_EPS * num_vectors * torch.finfo(starts.dtype).eps * values.abs().amax(1, keepdim=True)
    if bool((values < -8 * tolerance).any()):
        raise LandscapeError(
            f"expected a positive semidefinite operator, got a Rayleigh quotient of {float(values.min()):.3g}: "
            "use xtrace"
        )
    kept = values > tolerance
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    independent = (vectors.square() * kept[:, None]).sum(2) > 1 - LEVERAGE_SLACK  # (B, P)
    pinv = (vectors * inverse[:, None]) @ vectors.mT
    whole = (pinv * gram).sum((1, 2))[:, None]
    scales = torch.where(independent, 1 / pinv.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    removed = (pinv @ gram @ pinv).diagonal(dim1=1, dim2=2) * scales
    lengths = 1 / torch.linalg.inv((tests @ tests.mT).double()).diagonal(dim1=1, dim2=2)
    return _mean(whole - removed + (num_left - num_vectors + 1) * scales / lengths, offset, num_vectors)


def hutchinson(
    matmat: Matmat, starts: Tensor, *, deflated: Tensor | None = None, deflated_traces: Tensor | None = None
) -> TraceEstimate:
    r"""Return :math:`\mathrm{tr}(A) \approx \frac{n}{P} \sum_p u_p^T A u_p` over unit vectors, in P products.

    Parameters and errors are those of :func:`xtrace`. Vectors on the sphere have no component of variance along the
    identity: a multiple of it has its exact trace.
    """
    basis, offset, num_left = _complement(starts, deflated, deflated_traces)
    if num_left <= starts.shape[1]:
        return _exact(matmat, starts, basis, offset)
    tests = _unit(_project(starts, basis))
    quotients = (tests.double() * _finite(matmat(tests)).double()).sum(2)
    return _mean(num_left * quotients, offset, starts.shape[1])


def complement_trace(
    matmat: Matmat, basis: Tensor, basis_traces: Tensor, starts: Tensor, *, method: Method = "hutchinson"
) -> TraceEstimate:
    r"""Return :math:`\mathrm{tr}(A) = \mathrm{tr}(Q^T A Q) + \mathrm{tr}((I - Q Q^T) A (I - Q Q^T))`.

    The first term is exact and free for a Lanczos basis: the trace of T. It needs no converged Ritz pairs.

    Parameters
    ----------
    matmat
        Products (B, P, n) -> (B, P, n).
    basis
        (B, k, n) orthonormal rows.
    basis_traces
        (B,) traces of ``basis A basis^T``.
    starts
        (B, P, n) test vectors for the complement.
    method
        ``"hutchinson"`` (P products) or ``"xtrace"`` (2 P products).

    Notes
    -----
    Persson, Cortinovis and Kressner, *Improved variants of the Hutch++ algorithm*, 2022; Chen and Hallman,
    *Krylov-aware stochastic trace estimation*, 2023.
    """
    estimate = xtrace if method == "xtrace" else hutchinson
    return estimate(matmat, starts, deflated=basis, deflated_traces=basis_traces)


def _complement(
    starts: Tensor, deflated: Tensor | None, deflated_traces: Tensor | None
) -> tuple[Tensor | None, Tensor, int]:
    """Return the deflated rows, their trace (B,) and the dimension of the complement, checked."""
    if starts.dim() != 3 or starts.shape[1] < 2:
        raise LandscapeError(
            f"test vectors: expected (B, P, n) with P at least 2 (for an error estimate), got {tuple(starts.shape)}"
        )
    num_rows, _, size = starts.shape
    if deflated is None or deflated.shape[1] == 0:
        return None, starts.new_zeros(num_rows, dtype=torch.float64), size
    if deflated.shape[0] != num_rows or deflated.shape[2] != size or deflated_traces is None:
        raise LandscapeError(
            f"deflated: expected ({num_rows}, d, {size}) with deflated_traces ({num_rows},), "
            f"got {tuple(deflated.shape)} with {None if deflated_traces is None else tuple(deflated_traces.shape)}"
        )
    return deflated, deflated_traces.to(device=starts.device, dtype=torch.float64), size - deflated.shape[1]


def _project(vectors: Tensor, basis: Tensor | None) -> Tensor:
    """Return the part of the rows orthogonal to the basis; two passes, the first leaves rounding of the part removed."""
    if basis is None:
        return vectors
    for _ in range(2):
        vectors = vectors - (vectors @ basis.mT) @ basis
    return vectors


def _unit(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return vectors / norms.clamp_min(torch.finfo(vectors.dtype).tiny)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _finite(products: Tensor) -> Tensor:
    if not bool(torch.isfinite(products).all()):
        raise LandscapeError("trace: a product is not finite: the operator overflows at these test vectors")
    return products


def _mean(samples: Tensor, offset: Tensor, num_products: int) -> TraceEstimate:
    stderrs = samples.std(1) / samples.shape[1] ** 0.5
    return TraceEstimate(offset + samples.mean(1), stderrs, num_products)


def _exact(matmat: Matmat, starts: Tensor, basis: Tensor | None, offset: Tensor) -> TraceEstimate:
    """Return the trace from one product per dimension of the complement."""
    num_rows, _, size = starts.shape
    frame = torch.eye(size, dtype=starts.dtype, device=starts.device).expand(num_rows, size, size)
    if basis is not None:
        frame = torch.linalg.qr(basis.mT, mode="complete")[0].mT[:, basis.shape[1] :]
    num_left = frame.shape[1]
    if num_left == 0:
        return TraceEstimate(offset, torch.zeros_like(offset), 0)
    traces = (frame.double() * _finite(matmat(frame)).double()).sum((1, 2))
    return TraceEstimate(offset + traces, torch.zeros_like(offset), num_left)

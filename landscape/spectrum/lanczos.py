"""Lanczos tridiagonalisation of symmetric operators, several start vectors in lock-step.

Knows nothing of networks: an operator is a function from vectors (B, n) to products (B, n), row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from landscape.spectrum.basis import BasisPlace, DeviceBasis, make_basis

Matvec = Callable[[Tensor], Tensor]

# A coupling below this many units of rounding of |H| is breakdown: the Krylov space is exhausted. A larger factor fires on
# legitimate couplings (64: one class Hessian of rank 4 in 315 lost an eigenvalue of 0.07 |H| behind one of 38 units), a zero
# test never fires in float32. Breakdown that is seen a step late costs an atom more in the null space.
BREAKDOWN_EPS = 8.0
# Vectors shorter than this have no norm in float64, or no digits in float32; divided by it, they stay bounded.
SMALLEST_NORM = {
    torch.float64: float(torch.finfo(torch.float64).tiny) ** 0.5,
    torch.float32: float(torch.finfo(torch.float32).tiny),
}


@dataclass(frozen=True)
class RitzPairs:
    """Eigenvalues of one projected matrix, ascending, and what they are worth.

    Attributes
    ----------
    values
        (k,) Ritz values.
    weights
        (k,) squared first components of the eigenvectors of T: the Gauss quadrature weights, sum 1; NaN after a restart,
        when the start vector is no longer in the basis.
    coordinates
        (k, k) eigenvectors of T by column: column j times the basis is the Ritz vector.
    residuals
        (k,) estimates beta_k |s_kj| of |H v - theta v|, up to rounding.
    is_exhausted
        Whether the Krylov space became invariant: then every value is an eigenvalue, up to rounding.
    coupling
        beta_k: how strongly H couples the space to the rest.
    log_couplings
        Sum of the logarithms of beta_1 ... beta_k, the norm of the characteristic polynomial of T at the start vector; NaN
        after a restart.
    """

    values: np.ndarray
    weights: np.ndarray
    coordinates: np.ndarray
    residuals: np.ndarray
    is_exhausted: bool
    coupling: float = 0.0
    log_couplings: float = -math.inf


class Lanczos:
    r"""The state of a Lanczos run :math:`H Q_k = Q_k T_k + \beta_k q_{k+1} e_k^T`, which can be continued.

    Two Gram-Schmidt passes against the whole basis ("twice is enough", Giraud, Langou and Rozloznik 2005), each as
    matrix products; T in float64. Nothing within :meth:`extend` waits for the host: couplings are read, and breakdown is
    recognised, when :meth:`ritz` is asked.

    Parameters
    ----------
    matvec
        Products (B, n) -> (B, n) with B symmetric operators (or one operator B times); row b of its argument belongs to
        the start vector ``rows[b]``.
    starts
        (B, n) start vectors; they are orthogonalised against ``deflated`` and normalised.
    deflated
        (D, d, n) orthonormal vectors that every basis vector is kept orthogonal to; B must be a multiple of D, and the
        first B / D rows share the first block. None for none.
    basis
        ``"device"``, ``"host"`` (streamed through the device) or ``"none"`` (the three-term recurrence; Ritz values may
        then repeat, and Ritz vectors need :meth:`replay`).
    most_vectors
        Room on the device for this many vectors per row at most, while :meth:`restart` keeps the run below it.

    Examples
    --------
    >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> run = Lanczos(lambda v: v @ H, torch.ones(1, 3, dtype=torch.float64))
    >>> run.extend(3)
    >>> run.ritz(0).values.round(12).tolist()
    [1.0, 2.0, 4.0]
    """

    def __init__(
        self,
        matvec: Matvec,
        starts: Tensor,
        *,
        deflated: Tensor | None = None,
        basis: BasisPlace = "device",
        most_vectors: int | None = None,
    ) -> None:
        self._matvec = matvec
        self._deflated = deflated if deflated is not None and deflated.shape[1] else None
        self._across = self._deflated.mT if self._deflated is not None else None
        self.rows = list(range(len(starts)))
        self.place = basis
        self._eps = torch.finfo(starts.dtype).eps
        self._basis = make_basis(basis, starts, most_vectors)
        self._basis.reserve(1)
        vectors = starts.unsqueeze(1)
        whole = _norms(vectors)
        for _ in range(2):
            vectors = self._deflate(vectors)
        norm = _norms(vectors)
        self._divisors = vectors.new_empty(norm.shape)
        torch.div(vectors, self._safe(norm), out=self._basis.slot(0))
        self._current = self._basis.settle(0)
        # An empty complement (everything deflated) leaves rounding only.
        self._is_alive = (norm > BREAKDOWN_EPS * self._eps * whole)[:, 0, 0]
        self._starts = starts if basis == "none" else None
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._reset(np.zeros((len(starts), 0)), np.zeros((len(starts), 0)))
        self.num_steps = 0

    def _reset(self, values: np.ndarray, couplings: np.ndarray) -> None:
        """Begin a projected matrix with a diagonal block (B, j) that couples to the next vector (B, j)."""
        rows = len(values)
        self._prefix, self._prefix_couplings = values, couplings
        self._alphas, self._betas, self._defects = (np.zeros((rows, 0)) for _ in range(3))

    # ---- steps --------------------------------------------------------------------------------------------------

    def _deflate(self, vectors: Tensor) -> Tensor:
        if self._deflated is None or self._across is None:
            return vectors
        blocks = vectors.view(len(self._deflated), -1, vectors.shape[2])
        overlap = torch.bmm(blocks, self._across)
        return torch.baddbmm(blocks, overlap, self._deflated, alpha=-1).view_as(vectors)

    def _safe(self, norms: Tensor) -> Tensor:
        """Return divisors in the vectors' own precision: with float64 ones the division takes ten times as long."""
        return torch.add(norms, SMALLEST_NORM[self._divisors.dtype], out=self._divisors)

    def extend(self, num_steps: int) -> None:
        """Take ``num_steps`` more steps; one product each."""
        size = self._prefix.shape[1] + self._alphas.shape[1] + len(self._pending)
        self._basis.reserve(size + num_steps + 1)
        for count in range(size + 1, size + num_steps + 1):
            vectors = self._matvec(self._current.squeeze(1)).unsqueeze(1)
            vectors, first = self._basis.project(self._deflate(vectors), count)
            vectors, second = self._basis.project(self._deflate(vectors), count)
            norm = _norms(vectors)
            # After breakdown the norm is rounding, or zero: what follows is cut off when the couplings are read.
            torch.div(vectors, self._safe(norm), out=self._basis.slot(count))
            self._current = self._basis.settle(count)
            self._pending.append((first, second, norm))
        self.num_steps += num_steps

    def _pull(self) -> None:
        """Bring the couplings of the steps since the last look to the host, in three transfers."""
        if not self._pending:
            return
        sizes = np.cumsum([first.shape[2] for first, _, _ in self._pending])
        firsts, seconds, norms = (torch.cat(parts, 2)[:, 0].double().cpu().numpy() for parts in zip(*self._pending))
        self._pending.clear()
        last = sizes - 1
        alphas = firsts[:, last] + seconds[:, last]
        for step, (start, stop) in enumerate(zip([0, *sizes[:-1]], sizes)):
            expected = np.zeros((len(firsts), stop - start - 1))
            if step + self._alphas.shape[1]:
                before = norms[:, step - 1] if step else self._betas[:, -1]
                expected[:, -1] = before
            elif self._prefix.shape[1]:
                expected[:] = self._prefix_couplings
            off = np.abs(firsts[:, start : stop - 1] - expected)
            defect = off.max(1, keepdims=True) if off.shape[1] else np.zeros((len(off), 1))
            self._defects = np.concatenate([self._defects, defect], 1)
        self._alphas = np.concatenate([self._alphas, alphas], 1)
        self._betas = np.concatenate([self._betas, norms], 1)

    # ---- looks --------------------------------------------------------------------------------------------------

    def _scales(self, index: int) -> np.ndarray:
        kept = np.abs(self._prefix[index]).max(initial=0.0)
        return np.maximum(np.maximum.accumulate(np.abs(self._alphas[index]) + self._betas[index]), kept)

    def _size(self, index: int) -> tuple[int, bool]:
        """Return how many steps of a row count, and whether its space is exhausted."""
        if not bool(self._is_alive[index]):
            return 0, True
        if not np.isfinite(self._alphas[index]).all():
            return self._alphas.shape[1], False
        broken = np.flatnonzero(self._betas[index] <= BREAKDOWN_EPS * self._eps * self._scales(index))
        return (int(broken[0]) + 1, True) if len(broken) else (self._alphas.shape[1], False)

    def _projected(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues and eigenvectors of Q'HQ from the couplings of one row."""
        alphas, betas, prefix = self._alphas[index, :size], self._betas[index, : size - 1], self._prefix[index]
        if not len(prefix):
            return scipy.linalg.eigh_tridiagonal(alphas, betas)
        matrix = np.diag(np.concatenate([prefix, alphas]))
        j = len(prefix)
        matrix[j, :j] = self._prefix_couplings[index]
        matrix[np.arange(j + 1, j + size), np.arange(j, j + size - 1)] = betas
        return scipy.linalg.eigh(matrix)  # reads the lower triangle

    def ritz(self, row: int) -> RitzPairs:
        """Return the Ritz values, weights and residual estimates of one row; waits for the device."""
        self._pull()
        index = self.rows.index(row)
        size, is_exhausted = self._size(index)
        if size == 0 or not self._alphas.shape[1]:
            empty = np.zeros(0)
            return RitzPairs(empty, empty, np.zeros((0, 0)), empty, True)
        if not np.isfinite(self._alphas[index, :size]).all():
            unknown = np.full(size, np.nan)
            return RitzPairs(unknown, unknown, unknown, unknown, False)
        values, vectors = self._projected(index, size)
        coupling = 0.0 if is_exhausted else float(self._betas[index, size - 1])
        weights = vectors[0] ** 2 if not self._prefix.shape[1] else np.full(len(values), np.nan)
        logs = np.nan if self._prefix.shape[1] else -np.inf if is_exhausted else np.log(self._betas[index, :size]).sum()
        return RitzPairs(values, weights, vectors, coupling * np.abs(vectors[-1]), is_exhausted, coupling, float(logs))

    def asymmetry(self, row: int) -> float:
        """Return how far the overlaps of H q_j with earlier vectors are from those of a symmetric H, relative to |H|.

        Free of charge: a symmetric operator gives beta for the vector before and zero for all others.
        """
        self._pull()
        index = self.rows.index(row)
        size, _ = self._size(index)
        if size < 2:
            return 0.0
        return float(self._defects[index, :size].max() / self._scales(index)[size - 1])

    def vectors(self, row: int, coordinates: np.ndarray) -> Tensor:
        """Return the vectors (j, n) whose columns of coordinates (k, j) refer to one row's basis."""
        return self._basis.combine(self.rows.index(row), torch.as_tensor(coordinates))

    def starts_of(self, rows: Sequence[int]) -> Tensor:
        """Return the start vectors (B, n) of a run whose basis was not kept."""
        if self._starts is None:
            raise ValueError("the start vectors are kept with basis='none'")
        return self._starts[list(rows)]

    def space(self, row: int, size: int) -> Tensor:
        """Return one row's first ``size`` basis vectors (size, n): a view while the basis is on the device."""
        if isinstance(self._basis, DeviceBasis):
            return self._basis.block(self.rows.index(row), size)
        return self.vectors(row, np.eye(size))

    # ---- changes ------------------------------------------------------------------------------------------------

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows only; rows that share deflated vectors stay together."""
        self._pull()
        chosen = [self.rows.index(row) for row in rows]
        if len(chosen) == len(self.rows):
            return
        if self._deflated is not None:
            share = len(self.rows) // len(self._deflated)
            blocks = [index // share for index in chosen[::share]]
            if chosen != [share * block + place for block in blocks for place in range(share)]:
                raise ValueError("rows that share deflated vectors go on together")
            self._deflated = self._deflated[blocks]
            self._across = self._deflated.mT
        self._divisors = self._divisors[: len(chosen)]
        self._current, self._is_alive = self._current[chosen], self._is_alive[chosen]  # before the basis moves up
        self._basis.keep(chosen)
        for name in ("_prefix", "_prefix_couplings", "_alphas", "_betas", "_defects"):
            setattr(self, name, getattr(self, name)[chosen])
        self.rows = [self.rows[index] for index in chosen]

    def restart(self, num_low: int, num_high: int) -> None:
        """Shrink every basis to its lowest and highest Ritz vectors and the next Lanczos vector (a thick restart).

        The run goes on from there in fixed memory with both ends as accurate as they were. Source: Wu and Simon,
        *Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix Anal. Appl. 22, 2000.
        """
        if not isinstance(self._basis, DeviceBasis):
            raise ValueError("a thick restart needs the basis on the device")
        self._pull()
        blocks, values, couplings = [], [], []
        for index, row in enumerate(self.rows):
            pairs = self.ritz(row)
            if pairs.is_exhausted:
                raise ValueError("an exhausted row cannot be restarted: it has nothing more to find")
            chosen = [*range(num_low), *range(len(pairs.values) - num_high, len(pairs.values))]
            blocks.append(self._basis.combine(index, torch.as_tensor(pairs.coordinates[:, chosen])))
            values.append(pairs.values[chosen])
            couplings.append(pairs.coupling * pairs.coordinates[-1, chosen])
        kept = torch.stack(blocks)
        self._basis.replace(torch.cat([kept, self._current], 1))
        self._current = self._basis.settle(kept.shape[1])
        self._reset(np.stack(values), np.stack(couplings))

    def replay(
        self, coordinates: np.ndarray, *, rows: Sequence[int] | None = None, matvec: Matvec | None = None
    ) -> Tensor:
        """Return (B, j, n) combinations of a basis that was not kept, coordinates (B, k, j), by the same run again.

        Costs k - 1 products per row. The recurrence repeats bit for bit where the products do. Only some ``rows`` are
        run again with a ``matvec`` of their own.
        """
        if self._starts is None:
            raise ValueError("replay is for basis='none'")
        if rows is not None and (self._deflated is not None or matvec is None):
            raise ValueError("some rows are replayed with a product of their own and without deflated vectors")
        starts = self._starts[self.rows if rows is None else list(rows)]
        again = Lanczos(matvec or self._matvec, starts, deflated=self._deflated, basis="none")
        factors = torch.as_tensor(coordinates).to(starts)
        out = starts.new_zeros(len(starts), factors.shape[2], starts.shape[1])
        for step in range(factors.shape[1]):
            if step:
                again.extend(1)
            out += factors[:, step, :, None] * again._current
        return out


def _norms(vectors: Tensor) -> Tensor:
    """Return (B, 1, 1) float64: in float32 the squares of a fitted class's curvatures (1e-20, say) underflow to zero."""
    return torch.linalg.vector_norm(vectors, dim=2, keepdim=True, dtype=torch.float64)


def sphere(num_vectors: int, size: int, generator: torch.Generator) -> Tensor:
    """Return (num_vectors, size) float64 vectors, uniform on the unit sphere, drawn on the CPU."""
    draws = torch.randn(num_vectors, size, generator=generator, dtype=torch.float64)
    return draws / torch.linalg.vector_norm(draws, dim=1, keepdim=True)

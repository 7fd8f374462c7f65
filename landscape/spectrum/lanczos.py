"""Lanczos tridiagonalisation of symmetric operators, several start vectors in lock-step.

Knows nothing of networks: an operator is a function from vectors (B, n) to products (B, n), row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]

# A coupling below this many units of rounding of |H| is breakdown: the Krylov space is exhausted. A larger factor
# (sqrt(eps), say) would fire on legitimate small couplings, a zero test never fires in float32.
BREAKDOWN_EPS = 64.0


@dataclass(frozen=True)
class RitzPairs:
    """Eigenvalues of one tridiagonal matrix, ascending, and what they are worth.

    Attributes
    ----------
    values
        (k,) Ritz values.
    weights
        (k,) squared first components of the eigenvectors of T: the Gauss quadrature weights, sum 1.
    coordinates
        (k, k) eigenvectors of T by column: column j times the basis is the Ritz vector.
    residuals
        (k,) estimates beta_k |s_kj| of |H v - theta v|, up to rounding.
    is_exhausted
        Whether the Krylov space became invariant: then every value is an eigenvalue, up to rounding.
    """

    values: np.ndarray
    weights: np.ndarray
    coordinates: np.ndarray
    residuals: np.ndarray
    is_exhausted: bool


class Lanczos:
    r"""The state of a Lanczos run :math:`H Q_k = Q_k T_k + \beta_k q_{k+1} e_k^T`, which can be continued.

    Two Gram-Schmidt passes against the whole basis ("twice is enough", Giraud, Langou and Rozloznik 2005), each as
    matrix products; T in float64. A row that breaks down goes on as zeros, so no step waits for the host.

    Parameters
    ----------
    matvec
        Products (B, n) -> (B, n) with B symmetric operators (or one operator B times).
    starts
        (B, n) start vectors; they are orthogonalised against ``deflated`` and normalised.
    deflated
        (B, d, n) orthonormal vectors that every basis vector is kept orthogonal to; None for none.

    Examples
    --------
    >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> run = Lanczos(lambda v: v @ H, torch.ones(1, 3, dtype=torch.float64))
    >>> run.extend(3)
    >>> run.ritz(0).values.round(12).tolist()
    [1.0, 2.0, 4.0]
    """

    def __init__(self, matvec: Matvec, starts: Tensor, *, deflated: Tensor | None = None) -> None:
        self._matvec = matvec
        num_rows, size = starts.shape
        self._offset = 0 if deflated is None else deflated.shape[1]
        self._store = starts.new_zeros(num_rows, self._offset + 1, size)
        if deflated is not None:
            self._store[:, : self._offset] = deflated
        start, _ = self._orthogonalise(starts, self._offset)
        norm = torch.linalg.vector_norm(start, dim=1).double()
        # An empty complement (everything deflated) leaves rounding only.
        alive = norm > BREAKDOWN_EPS * torch.finfo(starts.dtype).eps * torch.linalg.vector_norm(starts, dim=1).double()
        self._store[:, self._offset] = _scaled(start, norm, alive)
        self._alive = alive
        self._sizes = alive.long()  # basis vectors that are not zero
        self._scale = torch.zeros_like(norm)
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return len(self._alphas)

    def _orthogonalise(self, vectors: Tensor, num_vectors: int) -> tuple[Tensor, Tensor]:
        basis = self._store[:, :num_vectors]
        total = vectors.new_zeros(len(vectors), num_vectors)
        for _ in range(2):
            overlap = torch.bmm(basis, vectors[:, :, None])
            vectors = torch.baddbmm(vectors[:, :, None], basis.transpose(1, 2), overlap, alpha=-1)[:, :, 0]
            total = total + overlap[:, :, 0]
        return vectors, total

    def _reserve(self, num_vectors: int) -> None:
        if self._store.shape[1] < num_vectors:
            grown = self._store.new_zeros(self._store.shape[0], num_vectors, self._store.shape[2])
            grown[:, : self._store.shape[1]] = self._store
            self._store = grown

    def extend(self, num_steps: int) -> None:
        """Take ``num_steps`` more steps; one product each."""
        self._reserve(self._offset + self.num_steps + num_steps + 1)
        eps = torch.finfo(self._store.dtype).eps
        for _ in range(num_steps):
            index = self._offset + self.num_steps
            product = self._matvec(self._store[:, index])
            vectors, overlap = self._orthogonalise(product, index + 1)
            alpha = overlap[:, index].double()
            beta = torch.linalg.vector_norm(vectors, dim=1).double()
            self._scale = torch.maximum(self._scale, alpha.abs() + beta)
            alive = self._alive & (beta > BREAKDOWN_EPS * eps * self._scale)
            self._store[:, index + 1] = _scaled(vectors, beta, alive)
            self._alphas.append(alpha)
            self._betas.append(beta * alive)
            self._alive = alive
            self._sizes = self._sizes + alive

    def ritz(self, row: int) -> RitzPairs:
        """Return the Ritz values, weights and residual estimates of one row."""
        size = min(int(self._sizes[row]), self.num_steps)
        if size == 0:
            empty = np.zeros(0)
            return RitzPairs(empty, empty, np.zeros((0, 0)), empty, True)
        alphas = torch.stack(self._alphas)[:size, row].cpu().numpy()
        betas = torch.stack(self._betas)[:size, row].cpu().numpy()
        values, vectors = scipy.linalg.eigh_tridiagonal(alphas, betas[:-1])
        return RitzPairs(values, vectors[0] ** 2, vectors, np.abs(betas[-1] * vectors[-1]), betas[-1] == 0.0)

    def vectors(self, row: int, coordinates: np.ndarray) -> Tensor:
        """Return the vectors (j, n) whose columns of coordinates (k, j) refer to one row's basis."""
        basis = self._store[row, self._offset : self._offset + len(coordinates)]
        columns = torch.as_tensor(coordinates, dtype=basis.dtype, device=basis.device)
        return columns.T @ basis


def _scaled(vectors: Tensor, norms: Tensor, alive: Tensor) -> Tensor:
    factor = torch.where(alive, 1.0 / norms.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(norms))
    return vectors * factor.to(vectors.dtype)[:, None]


def sphere(num_vectors: int, size: int, generator: torch.Generator) -> Tensor:
    """Return (num_vectors, size) float64 vectors, uniform on the unit sphere, drawn on the CPU."""
    draws = torch.randn(num_vectors, size, generator=generator, dtype=torch.float64)
    return draws / torch.linalg.vector_norm(draws, dim=1, keepdim=True)

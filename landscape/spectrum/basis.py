"""Where the vectors of a Krylov basis live: on the device, in the host's memory, or nowhere."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

BasisPlace = Literal["device", "host", "none"]

# Vectors per row that travel to the device at once when the basis lives in the host's memory.
HOST_BLOCK = 16
# Room is made for this many further vectors at a time: growing copies the basis.
GROWTH = 32


class Basis(Protocol):
    """R orthonormal bases of equal length, written vector by vector; vectors are (R, 1, n)."""

    def slot(self, index: int) -> Tensor:
        """Return where vector ``index`` is computed into (R, 1, n)."""
        ...

    def settle(self, index: int) -> Tensor:
        """Put vector ``index`` away after it was written; return it on the device."""
        ...

    def project(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return ``vectors`` (R, 1, n) minus their part in the first ``count`` vectors, and the overlaps (R, 1, k)."""
        ...

    def reserve(self, count: int) -> None:
        """Make room for ``count`` vectors, so that no step has to."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows."""
        ...

    def combine(self, row: int, coordinates: Tensor) -> Tensor:
        """Return (j, n) on the device: columns of ``coordinates`` (k, j) refer to the first k vectors of a row."""
        ...


class DeviceBasis:
    """The basis in one block of device memory: a Gram-Schmidt pass is two batched matrix products."""

    def __init__(self, like: Tensor, most_vectors: int | None = None) -> None:
        self._most = most_vectors
        self._count = 0
        self._use(like.new_zeros(like.shape[0], 0, like.shape[1]))

    def _use(self, store: Tensor) -> None:
        self._store = store
        self._slots = list(store.unsqueeze(2).unbind(1)) if store.shape[1] else []
        self._seen: tuple[int, Tensor, Tensor] | None = None  # both passes of a step look at the same vectors

    def reserve(self, count: int) -> None:
        """Make room for ``count`` vectors."""
        rows, room, size = self._store.shape
        if room < count:
            room_wanted = max(count, min(room + GROWTH, self._most or room + GROWTH))
            grown = self._store.new_empty(rows, room_wanted, size)
            grown[:, :room] = self._store
            self._use(grown)

    def slot(self, index: int) -> Tensor:
        """Return the place of a vector (R, 1, n)."""
        return self._slots[index]

    def settle(self, index: int) -> Tensor:
        """Return the vector, which stays where it is."""
        self._count = index + 1
        return self._slots[index]

    def project(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """One classical Gram-Schmidt pass."""
        if self._seen is None or self._seen[0] != count:
            basis = self._store[:, :count]
            self._seen = count, basis, basis.mT
        _, basis, transposed = self._seen
        overlap = torch.bmm(vectors, transposed)
        return torch.baddbmm(vectors, overlap, basis, alpha=-1), overlap

    def block(self, row: int, count: int) -> Tensor:
        """Return a view (count, n) of one row's first vectors."""
        return self._store[row, :count]

    def replace(self, vectors: Tensor) -> None:
        """Start over with the given vectors (R, j, n) as the first j."""
        if self._store.shape[1] < vectors.shape[1]:
            self._use(self._store.new_empty(vectors.shape[0], 0, vectors.shape[2]))
            self.reserve(vectors.shape[1])
        self._store[:, : vectors.shape[1]] = vectors
        self._seen = None

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows (ascending): they move up within the block, since a new one costs more than the move."""
        for target, row in enumerate(rows):
            if target != row:
                self._store[target, : self._count] = self._store[row, : self._count]
        self._use(self._store[: len(rows)])

    def combine(self, row: int, coordinates: Tensor) -> Tensor:
        """Return combinations of one row's vectors."""
        return coordinates.to(self._store).T @ self._store[row, : len(coordinates)]


class HostBasis:
    """The basis in the host's memory; a pass streams it through the device in blocks, each projected in turn."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._blocks: list[Tensor] = []
        self._current = torch.empty_like(like).unsqueeze(1)

    def reserve(self, count: int) -> None:
        """Make room for ``count`` vectors."""
        pin = self._like.is_cuda
        while len(self._blocks) * HOST_BLOCK < count:
            shape = (HOST_BLOCK, *self._like.shape)
            self._blocks.append(torch.zeros(shape, dtype=self._like.dtype, pin_memory=pin))

    def slot(self, index: int) -> Tensor:
        """Return a device buffer (R, 1, n)."""
        return self._current

    def settle(self, index: int) -> Tensor:
        """Copy the buffer to the host."""
        self._blocks[index // HOST_BLOCK][index % HOST_BLOCK].copy_(self._current[:, 0], non_blocking=True)
        return self._current

    def project(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """One Gram-Schmidt pass, block after block (classical within a block, modified between blocks)."""
        overlaps = []
        for start in range(0, count, HOST_BLOCK):
            block = self._blocks[start // HOST_BLOCK][: min(count - start, HOST_BLOCK)]
            block = block.to(self._like.device, non_blocking=True).transpose(0, 1)
            overlaps.append(torch.bmm(vectors, block.mT))
            vectors = torch.baddbmm(vectors, overlaps[-1], block, alpha=-1)
        return vectors, torch.cat(overlaps, 2)

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows."""
        self._like = self._like[rows]
        self._current = self._current[rows]
        pin = self._like.is_cuda
        self._blocks = [b[:, rows].pin_memory() if pin else b[:, rows] for b in self._blocks]

    def combine(self, row: int, coordinates: Tensor) -> Tensor:
        """Return combinations of one row's vectors, added block by block."""
        out = self._like.new_zeros(coordinates.shape[1], self._like.shape[1])
        for start in range(0, len(coordinates), HOST_BLOCK):
            part = coordinates[start : start + HOST_BLOCK].to(out)
            out += part.T @ self._blocks[start // HOST_BLOCK][: len(part), row].to(out.device)
        return out


class NoBasis:
    """Only the last two vectors: the three-term recurrence, whose Ritz values may repeat ("ghosts")."""

    def __init__(self, like: Tensor) -> None:
        self._ring = [torch.empty_like(like).unsqueeze(1) for _ in range(3)]

    def reserve(self, count: int) -> None:
        """Nothing to reserve."""

    def slot(self, index: int) -> Tensor:
        """Return the place of a vector, the oldest of three."""
        return self._ring[index % 3]

    def settle(self, index: int) -> Tensor:
        """Return the vector."""
        return self._ring[index % 3]

    def project(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Remove the part in the last two vectors."""
        basis = torch.cat([self._ring[i % 3] for i in range(max(count - 2, 0), count)], 1)
        overlap = torch.bmm(vectors, basis.mT)
        return torch.baddbmm(vectors, overlap, basis, alpha=-1), overlap

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows."""
        self._ring = [vectors[rows] for vectors in self._ring]

    def combine(self, row: int, coordinates: Tensor) -> Tensor:
        """Raise: the vectors are gone; :meth:`Lanczos.replay` makes them again."""
        raise RuntimeError("the basis was not kept: use Lanczos.replay")


def make_basis(place: BasisPlace, like: Tensor, most_vectors: int | None = None) -> Basis:
    """Return an empty basis for vectors shaped like ``like`` (R, n), on the device of at most so many vectors per row."""
    if place == "device":
        return DeviceBasis(like, most_vectors)
    return HostBasis(like) if place == "host" else NoBasis(like)

"""Images that stay on disk and look like a tensor: decoded when they are read, ahead of time where the order is known."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.data.decoding import Geometry, evaluation_view, read_rgb, training_view
from landscape.data.pixel_store import PixelStore, cache_path
from landscape.errors import LandscapeError
from landscape.memory import available_memory

# Decoded images are kept if all of them take at most this share of the memory that is free when they are opened.
MEMORY_SHARE = 0.25
# Batches that are decoded while one is being used.
BATCHES_AHEAD = 2
# What is to be read: places in the images, and the draws of their random parts or None.
Wanted = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class ImageFiles:
    """Files below a folder, and where each is named.

    Attributes
    ----------
    root
        The folder that the names start from.
    names
        Relative paths.
    listed_in, entries
        The list that names them, and the line (or ``entry``) of each; None where the folders themselves are the list.
    unit
        What an entry of the list is called.
    """

    root: Path
    names: tuple[str, ...]
    listed_in: Path | None = None
    entries: NDArray[np.int64] | None = None
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, self.names[row])

    def place(self, row: int) -> str:
        """Return where a file is named, for messages."""
        if self.entries is None:
            return self.path(row)
        return f"{self.listed_in}, {self.unit} {self.entries[row]}: '{self.names[row]}'"


class _Pending(NamedTuple):
    """A batch that is being decoded."""

    pixels: NDArray[np.uint8]
    work: list[Future[None]]
    fresh: NDArray[np.int64]  # places in the batch to keep afterwards
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DiskImages:
    """N images of one side as a lazy (N, 3, side, side) uint8 array.

    Reading rows gives the same pixels whether they are decoded now, were kept in memory or in a cache file, and however
    many threads decode. Attributes and methods that tensors have too mean the same.

    Attributes
    ----------
    files
        All files of the set.
    geometry
        What evaluation sees of an image; the pixels of ``images[rows]``.
    rows
        Which files these images are, (N,) int64.
    device
        Where what is read comes out.
    kept
        What was decoded already, of all files.

    Examples
    --------
    >>> files = ImageFiles(Path("photos"), ("a.jpg", "b.jpg", "c.jpg"))
    >>> images = DiskImages.of(files, Geometry.of_side(224))
    >>> tuple(images.take([2, 0]).shape)
    (2, 3, 224, 224)
    """

    files: ImageFiles
    geometry: Geometry
    rows: Tensor
    device: torch.device
    kept: _Kept

    @classmethod
    def of(cls, files: ImageFiles, geometry: Geometry, *, cache_dir: str | Path | None = None) -> DiskImages:
        """Return all images of the files; nothing is read yet."""
        return cls(files, geometry, torch.arange(len(files)), torch.device("cpu"), _Kept(files, geometry, cache_dir))

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self.rows), 3, self.geometry.side, self.geometry.side))

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels: uint8."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self.rows)

    def numel(self) -> int:
        """Return the number of pixel values, which is their bytes."""
        return self.shape.numel()

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that these images take once all of them were read."""
        return self.numel() if self.cache_dir is None and self.kept.store is not None else 0

    @property
    def cache_dir(self) -> str | Path | None:
        """Folder of the file in which decoded images are kept; None where that is the memory, or nowhere."""
        return self.kept.cache_dir

    def to(self, device: str | torch.device) -> DiskImages:
        """Return the same images, read onto a device."""
        return replace(self, device=torch.device(device))

    def take(self, indices: Sequence[int] | Tensor) -> DiskImages:
        """Return the images at ``indices``, in that order; nothing is read."""
        return replace(self, rows=self.rows[torch.as_tensor(indices, dtype=torch.int64).cpu()])

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Return pixels: (3, side, side) of one image, (M, 3, side, side) of several."""
        if isinstance(index, int):
            return self[range(len(self))[index] : range(len(self))[index] + 1][0]
        return self.read(torch.arange(len(self))[index] if isinstance(index, slice) else index)

    def read(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        """Return pixels of the images at ``indices`` (M,): (M, 3, side, side) uint8 on the device.

        Parameters
        ----------
        indices
            Places in these images, (M,) int64, on any device.
        crops
            (M, ``DRAWS_PER_CROP``) of :func:`landscape.data.decoding.draw_crops`: of each image the random part that they
            draw; without them what evaluation sees.

        Raises
        ------
        LandscapeError
            Naming the first image that cannot be decoded, and where it is listed.
        """
        return next(self.stream([(indices, crops)]))

    def stream(self, wanted: Iterable[Wanted]) -> Iterator[Tensor]:
        """Yield what :meth:`read` returns for each entry, decoding the next ones in threads meanwhile."""
        pool = ThreadPoolExecutor(_num_threads())
        pending: deque[_Pending] = deque()
        try:
            for indices, crops in wanted:
                pending.append(self._begin(pool, indices, crops))
                if len(pending) > BATCHES_AHEAD:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def resident(self) -> Tensor:
        """Return all pixels, (N, 3, side, side) uint8 on the device."""
        out = torch.empty(self.shape, dtype=torch.uint8, device=self.device)
        parts = torch.arange(len(self)).split(256)
        for places, pixels in zip(parts, self.stream((part, None) for part in parts)):
            out[int(places[0]) : int(places[-1]) + 1] = pixels
        return out

    def held(self, device: str | torch.device) -> Tensor | DiskImages:
        """Return all pixels on a device if they take at most a quarter of what is free there, else the images themselves."""
        images = self.to(device)
        return images.resident() if self.numel() <= MEMORY_SHARE * available_memory(images.device) else images

    def _begin(self, pool: ThreadPoolExecutor, indices: Tensor, crops: Tensor | None) -> _Pending:
        rows = self.rows[indices.cpu()].numpy()
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        todo = np.arange(len(rows))
        store = None if crops is not None else self.kept.store
        if store is not None:
            known = store.is_filled[rows]
            pixels[known] = store.pixels[rows[known]]
            todo = todo[~known]
        pieces = np.array_split(todo, min(len(todo), 2 * _num_threads())) if len(todo) else []
        draws = None if crops is None else crops.numpy()
        work = [pool.submit(self._decode, rows, piece, pixels, draws) for piece in pieces]
        return _Pending(pixels, work, todo if store is not None else todo[:0], rows)

    def _decode(
        self,
        rows: NDArray[np.int64],
        piece: NDArray[np.int64],
        out: NDArray[np.uint8],
        draws: NDArray[np.float32] | None,
    ) -> None:
        for k in piece:
            try:
                image = read_rgb(self.files.path(rows[k]))
                out[k] = (
                    evaluation_view(image, self.geometry)
                    if draws is None
                    else training_view(image, self.geometry, draws[k])
                )
            except MemoryError:
                raise
            except Exception as error:  # the plugins of Pillow raise whatever a damaged file leads them to
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise LandscapeError(
                    f"{self.files.place(rows[k])} cannot be decoded as an image ({reason}): replace the file or leave it out"
                ) from error

    def _finish(self, batch: _Pending) -> Tensor:
        for work in batch.work:
            work.result()
        if len(batch.fresh) and self.kept.store is not None:
            self.kept.store.keep(batch.rows[batch.fresh], batch.pixels[batch.fresh])
        pixels = torch.from_numpy(batch.pixels)
        if self.device.type == "cuda":
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.to(self.device)


class _Kept:
    """The decoded images of all files, shared by every selection of them; opened at the first reading."""

    def __init__(self, files: ImageFiles, geometry: Geometry, cache_dir: str | Path | None) -> None:
        self.cache_dir = cache_dir
        self._files, self._geometry = files, geometry

    @cached_property
    def store(self) -> PixelStore | None:
        """Where decoded images are kept, None where there is no room for them."""
        files, side = self._files, self._geometry.side
        if self.cache_dir is not None:
            path = cache_path(self.cache_dir, files.root, files.names, self._geometry)
            return PixelStore.on_disk(path, len(files), side)
        if 3 * side**2 * len(files) > MEMORY_SHARE * available_memory(torch.device("cpu")):
            return None
        return PixelStore.in_memory(len(files), side)


def _num_threads() -> int:
    """Return how many images are decoded at once: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Decoded images that are kept: in memory, or in a file that later runs find again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landscape.data.decoding import Geometry
from landscape.errors import LandscapeError
from landscape.files import kind_of, writing_atomically

# Part of the name of a cache file: raise it when the same file and geometry give other pixels.
DECODER_VERSION = 1


class PixelStore:
    """Pixels (M, 3, side, side) that are filled in as images are decoded, each image once.

    Attributes
    ----------
    pixels
        uint8; a row counts only where ``is_filled``.
    is_filled
        (M,) bool.
    """

    def __init__(self, pixels: NDArray[np.uint8], is_filled: NDArray[np.bool_]) -> None:
        self.pixels = pixels
        self.is_filled = is_filled

    @classmethod
    def in_memory(cls, num_images: int, side: int) -> PixelStore:
        """Return an empty store; the system hands out its memory as rows are filled."""
        return cls(np.empty((num_images, 3, side, side), np.uint8), np.zeros(num_images, np.bool_))

    @classmethod
    def on_disk(cls, path: Path, num_images: int, side: int) -> PixelStore:
        """Open the store at ``path``, or make one there: a NumPy array file, followed by one flag per image.

        Raises
        ------
        LandscapeError
            If the folder cannot be written, has no room for all images, or the file is not such a store.
        """
        shape = (num_images, 3, side, side)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _create(path, shape)
            if (kind := kind_of(path)) != "file":
                raise ValueError(f"it is {kind}")
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                found, _, dtype = np.lib.format.read_array_header_1_0(file)
                start = file.tell()
            size = int(np.prod(shape))
            if (found, dtype, path.stat().st_size) != (shape, np.dtype(np.uint8), start + size + num_images):
                raise ValueError(f"it holds {found}, not {shape}")
            pixels = np.memmap(path, np.uint8, "r+", start, shape)
            return cls(pixels, np.memmap(path, np.bool_, "r+", start + size, (num_images,)))
        except OSError as error:
            raise LandscapeError(
                f"cache_dir {path.parent}: cannot keep {num_images} decoded images there ({error.strerror or error})"
            ) from error
        except ValueError as error:
            raise LandscapeError(f"{path} is no cache of these images ({error}): delete it") from error

    def keep(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Fill rows; on disk the pixels are safe before their flags say so."""
        self.pixels[rows] = pixels
        if isinstance(self.pixels, np.memmap):
            self.pixels.flush()
        self.is_filled[rows] = True


def cache_path(cache_dir: str | Path, root: Path, names: tuple[str, ...], geometry: Geometry) -> Path:
    """Return the name of a cache file: a digest of the images (path, size and time of each), geometry and decoder."""
    import PIL

    decoder = {"version": DECODER_VERSION, "pillow": PIL.__version__, **asdict(geometry)}
    digest = hashlib.sha256(json.dumps(decoder).encode())
    for name in names:
        entry = os.stat(os.path.join(root, name))
        digest.update(f"{name}\0{entry.st_size}\0{entry.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return Path(cache_dir).expanduser() / f"{digest.hexdigest()[:24]}.npy"


def _create(path: Path, shape: tuple[int, ...]) -> None:
    """Write an empty store under another name and move it into place: two runs may do so at once."""
    with writing_atomically(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        total = file.tell() + int(np.prod(shape)) + shape[0]
        file.truncate(total)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, total)  # no room is an error here, not a crash while it fills

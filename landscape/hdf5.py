"""HDF5 files: ours carry a seal that is checked before the library opens them; others are first read by a process of its own.

The HDF5 library can crash, loop or ask for any amount of memory on a damaged file, where no exception reaches Python.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from landscape.errors import LandscapeError
from landscape.files import first_line, require_unpackable

# The seal follows the last byte that HDF5 itself wrote; libraries ignore it, and drop it when they change the file.
_MARK = b"\nlandscape sha256 "
_SEAL_BYTES = len(_MARK) + 64 + 1
# Seconds for a first reading, and the bytes that a slow disk gives in each further one.
PATIENCE, SLOW_DISK = 10.0, 20e6
# Address space of the process that reads first, beside the arrays that the file declares.
_ADDRESS_SPACE = 3 << 30

Reader = Literal["arrays", "groups"]


def seal(path: Path) -> None:
    """Append the digest of a finished file."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode() + b"\n")


def is_sealed(path: Path) -> bool:
    """Return whether a file carries a seal; ValueError where it is not that of its content."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        file.seek(max(size, 0))
        end = file.read()
        if size < 0 or not end.startswith(_MARK):
            file.seek(0)
            if size > 0 and size in _ends(file.read(48)):
                raise ValueError("the seal of its content is damaged: copy it again, or measure again")
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while size > 0 and (part := file.read(min(size, 1 << 20))):
            digest.update(part)
            size -= len(part)
    if end != _MARK + digest.hexdigest().encode() + b"\n":
        raise ValueError("its content is not what was written: copy it again, or measure again")
    return True


def _ends(start: bytes) -> tuple[int, ...]:
    """Return where HDF5 may say that its part of a file ends: in superblocks of versions 2 and 3, and 0."""
    return tuple(int.from_bytes(start[place : place + 8], "little") for place in (28, 40))


def require_readable(path: Path, reader: Reader) -> None:
    """Read a file that is not sealed in a process with limits of time and memory; ValueError says why it did not succeed.

    ``reader`` is what the caller will do: read its ``arrays`` with h5py, or its ``groups`` with xarray.
    """
    if is_sealed(path):
        return
    if not _has_signature(path):
        raise ValueError("file signature not found")
    limit = PATIENCE + path.stat().st_size / SLOW_DISK
    command = [sys.executable, "-m", "landscape.hdf5", reader, str(path)]
    # One thread: those of the linear algebra, which is not needed, take address space each.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the HDF5 library did not finish reading within {limit:.0f} s") from None
    if done.returncode < 0:
        raise ValueError(f"the HDF5 library crashed, signal {-done.returncode}")
    if done.returncode:
        raise ValueError((done.stderr.decode(errors="replace").strip().splitlines() or ["unknown reason"])[-1])


def _has_signature(path: Path) -> bool:
    """Return whether HDF5 would find its signature: at the start, or where a user block of 512, 1024 ... bytes ends."""
    with path.open("rb") as file:
        size, place = file.seek(0, os.SEEK_END), 0
        while place < size:
            file.seek(place)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
            place = 2 * place or 512
    return False


def _objects(file: Any) -> Iterator[Any]:
    """Yield the groups and datasets of an open file, each once; LandscapeError for one that leads to other files."""
    import h5py

    seen, waiting = set(), [file]
    while waiting:
        item = waiting.pop()
        where = h5py.h5o.get_info(item.id)
        if (where.fileno, where.addr) in seen:
            continue
        seen.add((where.fileno, where.addr))
        yield item
        if not isinstance(item, h5py.Group):
            continue
        for name in item:
            link = item.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise LandscapeError(f"'{name}' is a link to another file ({link.filename}), which is not followed")
            waiting.append(item[name])


def _declared_bytes(path: Path) -> int:
    import h5py

    total = 0
    with h5py.File(path, "r") as file:
        for item in _objects(file):
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                if item.external or item.is_virtual:
                    raise LandscapeError(f"'{item.name}' is stored in another file, which is not read")
                total += item.size * item.dtype.itemsize
    return total


def _read(path: Path, reader: Reader) -> None:
    import h5py

    if reader == "groups":
        import xarray as xr

        with xr.open_datatree(path, engine="h5netcdf", phony_dims="access") as tree:
            tree.load()
        return
    with h5py.File(path, "r") as file:
        for item in _objects(file):
            if isinstance(item, h5py.Dataset):
                item[()]


def _limit_memory(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes if hard < 0 else min(num_bytes, hard), hard))


def main(reader: Reader, path: Path) -> None:
    """Read a file completely, or end the process with one line that says why not."""
    try:
        _limit_memory(_ADDRESS_SPACE)
        declared = _declared_bytes(path)
        require_unpackable(declared, path.stat().st_size, "its arrays")
        _limit_memory(_ADDRESS_SPACE + 3 * declared)
        _read(path, reader)
    except Exception as error:  # h5py and xarray raise whatever a damaged file leads them to
        raise SystemExit(first_line(error)) from error


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]

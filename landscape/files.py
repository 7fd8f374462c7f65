"""Files as they are met: what is read is a regular file of known size, what is written takes its place in one step."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import LandscapeError

if TYPE_CHECKING:
    import pandas as pd

# Arrays of real measurements and images shrink by a factor of ten at most; deflate reaches 1,000 on zeros.
MAX_UNPACKING = 100
# What may be unpacked whatever the factor.
ALWAYS_UNPACKED = 256 << 20
# Types of special files, by the format bits of their mode.
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Turn whatever the libraries that read a foreign file raise into one line, ``from`` the original.

    Examples
    --------
    >>> with one_line("weights.pt is damaged"):
    ...     {}["storage"]
    Traceback (most recent call last):
    landscape.errors.LandscapeError: weights.pt is damaged (KeyError: 'storage')
    """
    try:
        yield
    except LandscapeError:
        raise
    except Exception as error:  # they raise whatever a damaged file leads them to, MemoryError and RecursionError too
        name = "" if type(error) in (ValueError, OSError) else f"{type(error).__name__}: "
        raise LandscapeError(f"{problem} ({name}{first_line(error)})") from error


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return what a path leads to, links followed: ``file``, ``folder``, ``nothing``, or ``a pipe``, ``a device`` ...

    Examples
    --------
    >>> kind_of("/dev/null"), kind_of("/"), kind_of("/no/such/file")
    ('a device', 'folder', 'nothing')
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a zero byte in the name: no file can be called so
        return "nothing"
    except OSError as error:
        raise LandscapeError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "no file")


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path for a message, on one line whatever is in it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in os.fspath(path)
    )


def require_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path of a regular file; LandscapeError for a folder, a pipe, a device, or where nothing is.

    A pipe would keep its reader waiting, and a device need not end.
    """
    kind = kind_of(path)
    if kind == "file":
        return Path(path)
    shown = shown_path(path)
    if kind == "folder":
        raise LandscapeError(f"expected {what}, got the folder {shown}: name the file in it")
    if kind == "nothing":
        raise LandscapeError(f"no file at {shown}: expected {what}")
    raise LandscapeError(f"{shown} is {kind}: expected {what} on disk, copy its content into a file first")


def require_replaceable(path: str | os.PathLike[str]) -> Path:
    """Return the file that writing to ``path`` replaces, links followed; LandscapeError if something else is there."""
    target = Path(os.path.realpath(path)) if "\0" not in os.fspath(path) else Path(path)
    kind = kind_of(target) if not target.is_symlink() else "a link that leads back to itself"
    if kind not in ("file", "nothing") or "\0" in str(target):
        kind = "a name with a zero byte" if "\0" in str(target) else kind
        shown = shown_path(path)
        raise LandscapeError(f"cannot write {shown}: expected the name of a file, got {kind}; choose another name")
    return target


@contextlib.contextmanager
def writing_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it in one step on success and vanishes on failure.

    Where ``path`` is a link, what it leads to is replaced, as plain writing would do. The temporary file is a new one
    with a name that nobody can know before: neither another's file nor another's link is written to.
    """
    target = require_replaceable(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.partial")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step; a file that cannot be written is a LandscapeError."""
    path = Path(path)
    try:
        with writing_atomically(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise LandscapeError(f"cannot write {path}: {error.strerror or error}") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """Return what JSON says; LandscapeError, beginning with ``where``, for what is none or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise LandscapeError(f"{where} is JSON that is nested too deeply") from error
    except ValueError as error:  # also of numbers of thousands of digits, and bytes that are no text
        raise LandscapeError(f"{where} is not JSON: {first_line(error)}") from error


def require_unpackable(unpacked: int, packed: int, where: str) -> None:
    """Raise LandscapeError where unpacking gives more than any true content of this size would."""
    if unpacked > max(ALWAYS_UNPACKED, MAX_UNPACKING * packed):
        raise LandscapeError(
            f"{where}: {packed / 1e6:.3g} MB would become {unpacked / 1e9:.3g} GB in memory, more than {MAX_UNPACKING} times "
            "as much, so it was not read; if that is what it should hold, save it without compression"
        )


def read_npz(path: Path, keys: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Return arrays of an ``.npz`` file, all or those among ``keys``; their sizes are read before memory is taken.

    Raises whatever NumPy and the archive raise, ValueError where a header and its data differ, and LandscapeError where
    the arrays are out of proportion to the file.
    """
    with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError("an array is in it twice")
        handle.seek(-22, 2)
        end = handle.read()
        told = int.from_bytes(end[10:12], "little")
        if end.startswith(b"PK\5\6") and told not in (len(entries), 0xFFFF):
            raise ValueError(f"it says that it holds {told} arrays, {len(entries)} are listed")
        for entry in archive.infolist():
            archive.open(entry).close()  # the names in the directory must be those beside the arrays
        wanted = {name: entry for name, entry in entries.items() if keys is None or name in keys}
        total = sum(entry.file_size for entry in wanted.values())
        require_unpackable(total, path.stat().st_size, str(path))
        return {name: _read_array(archive, entry) for name, entry in wanted.items()}


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a named index whose texts no spreadsheet takes for formulas.

    An apostrophe stands before what begins like one (a class called ``=cmd|...``): OWASP, *CSV Injection*.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"lane": ["=1+1", "-0.5", "cat"], "loss": [-1.0, 0.0, 1.0]}).set_index("lane")
    >>> inert(table).index.tolist()
    ["'=1+1", '-0.5', 'cat']
    """
    flat = table.reset_index()
    for name in flat.columns:
        if flat[name].dtype.kind not in "biuf":
            flat[name] = [_inert(cell) if isinstance(cell, str) else cell for cell in flat[name]]
    return flat.set_index(list(table.index.names))


def _inert(text: str) -> str:
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError(f"'{entry.filename}' holds objects, which only unpickling could read")
        held, told = entry.file_size - member.tell(), dtype.itemsize * int(np.prod(shape, dtype=object))
        if held != told:
            raise ValueError(f"the header of '{entry.filename}' tells of {told} bytes, {held} are there")
    with archive.open(entry) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
